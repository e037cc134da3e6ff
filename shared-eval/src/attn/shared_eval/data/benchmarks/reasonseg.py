"""ReasonSeg (Lai et al., CVPR 2024): pictures with a mask that a question asks for, and SESAME's false premises."""

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from attn.shared_eval.data.benchmarks.files import checked, checked_list, read_json, write_image, write_json
from attn.shared_eval.data.benchmarks.segmentation import polygons
from attn.shared_eval.data.shapesworld.referring import referring
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene

IGNORED = 255
"""The value of pixels that count nowhere."""


class FalsePremise(NamedTuple):
    """A question about something that the picture does not show, and what to answer."""

    question: str
    is_sentence: bool
    answer: str


class ReasonSegItem(NamedTuple):
    """An item of ReasonSeg.

    Attributes:
        name: of its files.
        path: of the picture.
        texts: questions or phrases that mean the same; evaluation takes the first.
        is_sentence: whether they are sentences (long queries) rather than phrases (short queries).
        shapes: label and points ``[points, 2]`` of the polygons that are not deprecated, in the order of the file.
        false_premises: empty but in SESAME's version.
    """

    name: str
    path: Path
    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[tuple[str, np.ndarray], ...]
    false_premises: tuple[FalsePremise, ...]

    def target(self) -> np.ndarray:
        """1 in the target, 255 in what is ignored, 0 elsewhere: uint8 of the picture's ``[height, width]``.

        Polygons are painted from the largest to the smallest, as the release does with OpenCV.

        Raises:
            FileNotFoundError: if the picture is missing.
        """
        with Image.open(self.path) as picture:
            width, height = picture.size
        values = [IGNORED if "ignore" in label.lower() else 1 for label, _ in self.shapes]
        painted = [paint(points.astype(np.int64), height, width) for _, points in self.shapes]
        target = np.zeros((height, width), dtype=np.uint8)
        for place in sorted(range(len(painted)), key=lambda place: -painted[place].sum()):
            target[painted[place]] = values[place]
        return target


def paint(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of a polygon and of its outline: bool ``[height, width]``.

    The pixels of OpenCV's ``fillPoly`` and ``polylines`` (thickness 1), the same where the points lie in the picture;
    its lines that leave the picture can differ by a pixel.

    Args:
        points: pixels, int64 ``[points, 2]``, x and y.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """
    canvas = np.zeros((height, width), dtype=bool)
    ends = np.roll(points, -1, axis=0)
    for start, end in zip(points.tolist(), ends.tolist(), strict=True):
        (x, y), (x1, y1) = sorted((start, end), key=lambda point: point[0])  # Bresenham's line from the left
        across, down = x1 - x, abs(y1 - y)
        long, short = max(across, down), min(across, down)
        steps = np.arange(long + 1)
        aside = -((long - 2 * short * steps) // (2 * max(long, 1)))  # rounded, halves down
        right, along = (steps, aside) if across >= down else (aside, steps)
        columns, rows = x + right, y + (along if y1 >= y else -along)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        canvas[rows[inside], columns[inside]] = True
    (x0, y0), (x1, y1) = points.T, ends.T
    for row in range(max(0, int(y0.min())), min(height - 1, int(y0.max())) + 1):
        cut = (np.minimum(y0, y1) <= row) & (row < np.maximum(y0, y1))
        crossings = np.sort(x0[cut] + (row - y0[cut]) * (x1 - x0)[cut] / (y1 - y0)[cut])
        for enter, leave in crossings.reshape(-1, 2).tolist():
            canvas[row, max(ceil(enter), 0) : max(floor(leave) + 1, 0)] = True
    return canvas


def read_reasonseg(folder: str | Path, split: str) -> list[ReasonSegItem]:
    """The items of a split, in the order of their names.

    Args:
        folder: holds ``<split>/<name>.jpg`` and ``<split>/<name>.json`` (``ReasonSeg`` in the release).
        split: ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: if the split or a picture is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    files = sorted(Path(folder, split).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{Path(folder, split)} must hold pairs of .jpg and .json files, got none")
    return [_item(file) for file in files]


def _item(file: Path) -> ReasonSegItem:
    path = file.with_suffix(".jpg")
    if not path.exists():
        raise FileNotFoundError(f"{file} must have a picture {path.name} beside it, got none")
    fields = {"shapes": list, "text": list, "is_sentence": bool}
    content = checked(read_json(file, encodings=("utf-8", "cp1252")), fields, str(file))
    texts = content["text"]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{file} must have a 'text' of one string or more, got {texts}")
    shapes = []
    for number, shape in enumerate(checked_list(content["shapes"], {"label": str, "points": list}, f"{file}: shapes")):
        if shape["label"].lower() == "flag":  # deprecated in the release
            continue
        try:
            points = np.asarray(shape["points"], dtype=np.float64)
        except (ValueError, TypeError):
            points = np.zeros(0)
        if points.ndim != 2 or len(points) < 2 or points.shape[1] != 2:
            raise ValueError(f"{file}: shapes[{number}] must have 'points' of two numbers each, got {shape['points']}")
        shapes.append((shape["label"], points))
    false = []
    for entry in content.get("false_premise_QA", ()):
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, bool, str]:
            raise ValueError(f"{file} must have a 'false_premise_QA' of question, is_sentence, answer, got {entry}")
        false.append(FalsePremise(*entry))
    return ReasonSegItem(file.stem, path, tuple(texts), content["is_sentence"], tuple(shapes), tuple(false))


def write_reasonseg(folder: str | Path, scenes: Sequence[Scene], size: int, split: str = "val") -> None:
    """Writes a reasoning expression of each scene that admits one, as a long query, each annotation last and whole.

    The others have an expression by attributes, a short query. The entries of SESAME's ``false_premise_QA`` are the
    expressions that nothing fits.

    Args:
        folder: made if it is missing.
        scenes: those without any expression are left out.
        size: pixels along a side.
        split: its name.
    """
    for scene in scenes:
        said = referring(scene, ["reasoning", "attribute"])
        if not said:
            continue
        picture = render(scene, size)
        name = f"{scene.family}_{scene.split}_{scene.seed}_{scene.index}"
        write_image(Path(folder, split, f"{name}.jpg"), picture.image)
        target = said[0].target or 0
        outlines = polygons(picture.masks()[target], through_centers=True)
        content = {
            "text": [said[0].text],
            "is_sentence": said[0].kind == "reasoning",
            "shapes": [
                {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": outline.tolist()}
                for outline in outlines
            ],
            "false_premise_QA": [
                [false.text, False, f"there is no {false.text.removeprefix('the ')}"]
                for false in referring(scene, ["false_premise"], each=2)
            ],
        }
        write_json(Path(folder, split, f"{name}.json"), content)
