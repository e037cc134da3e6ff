"""Masks as the annotations of COCO and of others hold them: polygons and run lengths."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of a segmentation of COCO: bool ``[height, width]``.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1 ...]``, whose union is meant; or a dictionary of ``size``
            and ``counts``, run lengths as numbers or in COCO's compressed text.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Raises:
        ValueError: if it is none of these, or of another size.
        ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
    """
    try:
        library: Any = importlib.import_module("pycocotools.mask")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("masks of COCO need pycocotools: install attn-shared-eval[coco]") from error
    if isinstance(segmentation, list) and all(isinstance(p, list) and len(p) >= 6 for p in segmentation):
        if not segmentation:
            return np.zeros((height, width), dtype=bool)
        code = library.merge(library.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"segmentation must have the size {[height, width]}, got {segmentation['size']}")
        plain = isinstance(segmentation["counts"], list)
        code = library.frPyObjects(segmentation, height, width) if plain else segmentation
    else:
        raise ValueError(
            f"segmentation must be a list of polygons of three points or more, or have size and counts, "
            f"got {str(segmentation)[:60]}"
        )
    with warnings.catch_warnings():
        # pycocotools 2.0.11 hands NumPy 2 an array protocol without `copy`
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return np.asarray(library.decode(code), dtype=bool)


def polygons(mask: np.ndarray, *, through_centers: bool = False) -> list[np.ndarray]:
    """Polygons without holes that cover a mask exactly and do not overlap: int64 ``[points, 2]`` each, x and y.

    Parts that touch at corners only have a polygon each; a part with a hole is cut through the hole.

    Args:
        mask: bool ``[height, width]``.
        through_centers: whether points are pixels of the mask, as where outlines belong to the area (labelme, OpenCV),
            rather than corners between pixels (COCO, where the area ends at the outline).
    """
    labels, count = ndimage.label(mask)
    return [
        outline
        for label in range(1, count + 1)
        for part in _without_holes(labels == label)
        for outline in (_outline(part, through_centers),)
    ]


def _without_holes(part: np.ndarray) -> Iterator[np.ndarray]:
    holes = ndimage.binary_fill_holes(part) & ~part
    if not holes.any():
        yield part
        return
    column = int(np.flatnonzero(holes.any(0))[0])
    for side in (slice(0, column), slice(column, None)):
        half = np.zeros_like(part)
        half[:, side] = part[:, side]
        labels, count = ndimage.label(half)
        for label in range(1, count + 1):
            yield from _without_holes(labels == label)


def _outline(part: np.ndarray, through_centers: bool) -> np.ndarray:
    """The corners of a connected part without holes, clockwise: the part lies to the right of every edge."""
    padded = np.pad(part, 1)
    inside = padded[1:-1, 1:-1]
    directions = {  # from the start of an edge: where it leads, and the edges of that direction
        (1, 0): np.argwhere(inside & ~padded[:-2, 1:-1]),
        (0, 1): np.argwhere(inside & ~padded[1:-1, 2:]) + np.array((0, 1)),
        (-1, 0): np.argwhere(inside & ~padded[2:, 1:-1]) + np.array((1, 1)),
        (0, -1): np.argwhere(inside & ~padded[1:-1, :-2]) + np.array((1, 0)),
    }
    # Without holes no two edges start at one corner: pixels that touch there would enclose a hole.
    step = {(x, y): direction for direction, starts in directions.items() for y, x in starts.tolist()}
    start = next(corner for corner, direction in step.items() if direction == (1, 0))
    points: list[tuple[int, int]] = []
    corner, before = start, (0, -1)
    while not points or corner != start:
        dx, dy = step[corner]
        if (dx, dy) != before:
            x, y = corner
            down, left = (dy or before[1]) > 0, (dx or before[0]) < 0
            points.append((x - down, y - left) if through_centers else (x, y))
        corner, before = (corner[0] + dx, corner[1] + dy), (dx, dy)
    return np.array(points, dtype=np.int64)
