"""Pictures of scenes and their masks: Pillow's polygons, supersampled for each object, composited in integers."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.grammar import COLORS, KINDS, TEXTURES
from attn.shared_eval.data.shapesworld.outlines import outline
from attn.shared_eval.data.shapesworld.scene import GRAIN, Color, Scene, Shape

_CONFETTI = 24

# Seven segments as rectangles of a digit that is 4 wide and 8 high: top, upper left and right, middle, lower, bottom.
_SEGMENTS = ((0, 0, 4, 1), (0, 0, 1, 4), (3, 0, 4, 4), (0, 3, 4, 5), (0, 4, 1, 8), (3, 4, 4, 8), (0, 7, 4, 8))
_DIGITS = ("012456", "25", "02346", "02356", "1235", "01356", "013456", "025", "0123456", "012356")
_DOTS = (((0, 0),), ((-1, 0), (1, 0)), ((-1, 1), (1, 1), (0, -1)), ((-1, -1), (1, -1), (-1, 1), (1, 1)))

MARK_HEIGHT = 0.048
"""Height of a mark in units of the picture's side (18 pixels at 384), unless the shape is too small for it."""


class PatchLabels(NamedTuple):
    """What each patch of a picture shows; all int64 ``[rows, columns]``, -1 for background.

    Attributes:
        object: index of the object.
        color, kind: its place in `COLORS` and `KINDS`.
    """

    object: np.ndarray
    color: np.ndarray
    kind: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A rendered scene; made by `render`.

    Attributes:
        scene: the scene.
        image: uint8 ``[size, size, 3]``, RGB.
        labels: uint8 ``[size, size]``: 0 for background, i + 1 where object i covers at least half of the pixel and
            no later object does.
    """

    scene: Scene
    image: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return len(self.labels)

    def masks(self) -> np.ndarray:
        """What is visible of each object (modal masks): bool ``[objects, size, size]``."""
        return self.labels == np.arange(1, len(self.scene.objects) + 1, dtype=np.uint8)[:, None, None]

    def amodal_masks(self) -> np.ndarray:
        """Each object as if no other hid it: bool ``[objects, size, size]``."""
        return np.array([cover >= 128 for cover in self._coverages()], dtype=bool).reshape(-1, self.size, self.size)

    def extents(self) -> np.ndarray:
        """Every pixel that an object touches at all, hidden or not: bool ``[objects, size, size]``."""
        return np.array([cover > 0 for cover in self._coverages()], dtype=bool).reshape(-1, self.size, self.size)

    def _coverages(self) -> list[np.ndarray]:
        coverages = []
        for shape in self.scene.objects:
            sprite = _sprite(shape, self.size, self.scene.style == "outlined")
            canvas = Image.new("L", (self.size, self.size))
            canvas.paste(sprite.coverage, sprite.box)
            coverages.append(np.asarray(canvas))
        return coverages

    def boxes(self) -> np.ndarray:
        """The tight box of each modal mask: int64 ``[objects, 4]``, left, top, right, bottom.

        Right and bottom are exclusive; zeros for an object of which nothing is visible.
        """
        boxes = np.zeros((len(self.scene.objects), 4), dtype=np.int64)
        for box, mask in zip(boxes, self.masks(), strict=True):
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            if len(rows):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes

    def rle(self) -> list[dict[str, list[int]]]:
        """The modal masks in COCO's uncompressed run-length code: column by column, first a run of zeros."""
        return [{"size": [self.size, self.size], "counts": run_lengths(mask.T)} for mask in self.masks()]

    def patch_labels(self, patch: int) -> PatchLabels:
        """What each patch shows: the object with most pixels in it, if these are a quarter of the patch or more.

        Args:
            patch: pixels along the side of a patch.

        Raises:
            ValueError: if patch does not divide the picture's size.
        """
        if patch < 1 or self.size % patch:
            raise ValueError(f"patch must divide the picture's size {self.size}, got {patch}")
        n, count = self.size // patch, len(self.scene.objects)
        if not count:
            empty = np.full((n, n), -1)
            return PatchLabels(empty, empty.copy(), empty.copy())
        pixels = self.masks().reshape(count, n, patch, n, patch).sum((2, 4))
        index = np.where(4 * pixels.max(0) >= patch * patch, pixels.argmax(0), -1)
        color = np.array([_COLOR_NAMES.index(shape.color) for shape in self.scene.objects] + [-1])
        kind = np.array([KINDS.index(shape.kind) for shape in self.scene.objects] + [-1])
        return PatchLabels(index, color[index], kind[index])


_COLOR_NAMES = tuple(COLORS)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask read row by row, in turn of False and True; the first may be 0."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *counts] if flat[0] else counts


def render(scene: Scene, size: int) -> Picture:
    """The picture of a scene and the labels of its pixels, the same on every machine.

    Geometry is independent of the size, so that one scene can be drawn at several. An object is supersampled 4 times
    a side, or 8 times up to 32 pixels, where a movement of less than a pixel must show in the grey levels.

    Args:
        scene: at most 254 objects.
        size: pixels along a side, 8 or more.

    Raises:
        ValueError: if size is below 8 or there are too many objects.
        ModuleNotFoundError: if the background is a photographed texture and scikit-image is missing (extra ``text``).
    """
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    if len(scene.objects) > 254:
        raise ValueError(f"scene must have at most 254 objects, got {len(scene.objects)}")
    canvas = Image.fromarray(_background(scene, size))
    labels = Image.new("L", (size, size))
    for label, shape in enumerate(scene.objects, 1):
        sprite = _sprite(shape, size, scene.style == "outlined")
        canvas.paste(sprite.face, sprite.box, sprite.coverage)
        labels.paste(label, sprite.box, sprite.coverage.convert("1", dither=Image.Dither.NONE))  # 128 and more
    return Picture(scene, _styled(np.asarray(canvas), scene), np.asarray(labels))


class _Sprite(NamedTuple):
    """An object in the pixels around it: how much of each it covers, and what color it has there."""

    box: tuple[int, int, int, int]
    coverage: Image.Image
    face: Image.Image | Color


def _sprite(shape: Shape, size: int, outlined: bool) -> _Sprite:
    samples = 8 if size <= 32 else 4
    scale = size * samples
    x, y, r = (round(value * GRAIN) for value in (shape.x, shape.y, shape.r))
    # Pillow also fills the samples on an edge, half a sample more than there is: draw that much smaller.
    drawn = max(1, r - GRAIN // (2 * scale))
    loops = [((points * drawn >> 12) + (x, y)) * scale >> 12 for points in outline(shape.kind, shape.angle)]
    low, high = loops[0].min(0).tolist(), loops[0].max(0).tolist()
    left, top = low[0] // samples, low[1] // samples
    right, bottom = high[0] // samples + 1, high[1] // samples + 1
    box = (left, top, right, bottom)
    extent = ((right - left) * samples, (bottom - top) * samples)
    polygons = [(points - (left * samples, top * samples)).ravel().tolist() for points in loops]

    mask = Image.new("L", extent)
    pen = ImageDraw.Draw(mask)
    pen.polygon(polygons[0], fill=255)
    for hole in polygons[1:]:
        pen.polygon(hole, fill=0)
    coverage = mask.reduce(samples)
    color = _tinted(COLORS[shape.color], shape.tint)
    figures: list[tuple[Color, Image.Image]] = []
    center = ((x * scale >> 12) - left * samples, (y * scale >> 12) - top * samples)
    radius = r * scale >> 12
    if shape.pattern != "plain":
        pattern = _pattern(shape.pattern, extent, center, radius)
        pen = ImageDraw.Draw(pattern)
        for polygon in polygons:  # a rim of the shape's own color keeps its outline whole
            pen.line([*polygon, *polygon[:2]], fill=0, width=max(2, radius // 4))
        figures.append((_second_color(color), pattern))
    if outlined or shape.outline:
        stroke = Image.new("L", extent)
        pen = ImageDraw.Draw(stroke)
        for polygon in polygons:
            pen.line([*polygon, *polygon[:4]], fill=255, width=max(2, scale // 40), joint="curve")
        figures.append(((0, 0, 0), stroke))
    if shape.mark is not None:
        height = min(radius * 4 // 5, int(MARK_HEIGHT * GRAIN) * scale >> 12)
        figures.append(
            ((0, 0, 0) if _luma(color) > 110 else (255, 255, 255), _mark(shape.mark, extent, center, height))
        )
    if not figures:
        return _Sprite(box, coverage, color)
    face = Image.new("RGB", coverage.size, color)
    for ink, figure in figures:
        face.paste(ink, None, figure.reduce(samples))
    return _Sprite(box, coverage, face)


def _tinted(color: Color, tint: Color) -> Color:
    r, g, b = (min(255, max(0, level + change)) for level, change in zip(color, tint, strict=True))
    return r, g, b


def _luma(color: Color) -> int:
    return (77 * color[0] + 150 * color[1] + 29 * color[2]) >> 8


def _second_color(color: Color) -> Color:
    """The color of a pattern on a shape: towards black, or towards white from dark colors.

    Half way, but a quarter from black and white: half way between them lie the greys of the backgrounds.
    """
    light = 255 if _luma(color) < 128 else 0
    own = 1 if max(color) - min(color) > 64 else 3
    r, g, b = ((own * level + light) // (own + 1) for level in color)
    return r, g, b


def _pattern(pattern: str, extent: tuple[int, int], center: tuple[int, int], radius: int) -> Image.Image:
    """Stripes, dots or checks anchored at the center, about four to the diameter."""
    figure = Image.new("L", extent)
    pen = ImageDraw.Draw(figure)
    x, y = center
    cell = max(1, radius * 9 // 40)
    if pattern == "striped":
        for i in range(-2, 3):
            pen.rectangle(
                (0, y + (4 * i - 1) * cell // 2 + cell // 4, extent[0], y + (4 * i + 1) * cell // 2), fill=255
            )
    elif pattern == "dotted":
        for i in range(-2, 3):
            for j in range(-2, 3):
                u, v = x + 2 * i * cell, y + 2 * j * cell
                pen.ellipse((u - cell * 5 // 8, v - cell * 5 // 8, u + cell * 5 // 8, v + cell * 5 // 8), fill=255)
    else:
        cell = cell * 3 // 2
        for i in range(-4, 4):
            for j in range(-4, 4):
                if (i + j) % 2:
                    u, v = x + i * cell, y + j * cell
                    pen.rectangle((u, v, u + cell - 1, v + cell - 1), fill=255)
    return figure


def _mark(mark: str, extent: tuple[int, int], center: tuple[int, int], height: int) -> Image.Image:
    figure = Image.new("L", extent)
    pen = ImageDraw.Draw(figure)
    kind, _, number = mark.partition(" ")
    x, y = center
    if kind == "digit":
        left, top = x - height * 5 // 16, y - height // 2
        for segment in _DIGITS[int(number)]:
            x0, y0, x1, y1 = _SEGMENTS[int(segment)]
            u0, v0, u1, v1 = (height * 5 * x0 // 32, height * y0 // 8, height * 5 * x1 // 32, height * y1 // 8)
            pen.rectangle((left + u0, top + v0, left + max(u1 - 1, u0), top + max(v1 - 1, v0)), fill=255)
    else:
        step, dot = height * 9 // 32, max(1, height * 3 // 16)
        for i, j in _DOTS[int(number) - 1]:
            u, v = x + i * step, y + j * step
            pen.ellipse((u - dot, v - dot, u + dot, v + dot), fill=255)
    return figure


def _background(scene: Scene, size: int) -> np.ndarray:
    background = scene.background
    base, other = np.array(background.base), np.array(background.other)
    if background.kind == "gradient":
        weight = _ramp(size, background.seed % 8)[..., None]
        field = base + ((other - base) * weight >> 8)
    elif background.kind == "noisy":
        weight = (_noise(background.seed ^ 1, size) + 128)[..., None]
        field = base + ((other - base) * weight >> 8)
    elif background.kind in TEXTURES:
        field = base + ((_texture(background.kind, background.seed, size)[..., None] - 128) * 3 >> 3)
    else:
        field = np.broadcast_to(base, (size, size, 3))
    image = field.clip(0, 255).astype(np.uint8)
    strokes = background.strokes + _CONFETTI * (background.kind == "confetti")
    if strokes:
        canvas = Image.fromarray(image).resize((2 * size, 2 * size), Image.Resampling.NEAREST)
        _draw_strokes(canvas, strokes, background.palette, Draw("strokes", background.seed))
        image = np.asarray(canvas.reduce(2))
    if background.noise:
        grains = _noise(background.seed, size) * background.noise >> 7
        image = (image + grains[..., None]).clip(0, 255).astype(np.uint8)
    return image


def _draw_strokes(canvas: Image.Image, count: int, palette: tuple[str, ...], draw: Draw) -> None:
    pen = ImageDraw.Draw(canvas)
    for _ in range(count):
        color = COLORS[draw.choice(palette)]
        x, y = draw.integer(GRAIN), draw.integer(GRAIN)
        dx, dy = draw.integer(480) - 240, draw.integer(480) - 240
        ends = [value * canvas.width // GRAIN for value in (x, y, x + dx, y + dy)]
        pen.line(ends, fill=color, width=max(2, canvas.width // 64))


@lru_cache(maxsize=32)
def _ramp(size: int, direction: int) -> np.ndarray:
    """A ramp of 0 .. 255 along one of eight directions: int64 ``[size, size]``."""
    right, down = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))[direction]
    steps = np.arange(size)
    total = (
        right * (steps if right > 0 else steps - size + 1) + (down * (steps if down > 0 else steps - size + 1))[:, None]
    )
    return total * 255 // ((abs(right) + abs(down)) * (size - 1))


_OCTAVES = (6, 12, 24)


def _noise(seed: int, size: int) -> np.ndarray:
    """Smooth noise: int32 ``[size, size]`` within -128 .. 127, three grids of random levels interpolated linearly.

    The grids are those of the seed at any size. float32 holds every sum of the products exactly.
    """
    words = np.random.Philox(key=seed).random_raw(sum((n + 1) ** 2 for n in _OCTAVES) // 8 + 1)
    levels = words.view(np.uint8) if words.dtype.byteorder != ">" else words.byteswap().view(np.uint8)
    field = np.zeros((size, size), dtype=np.float32)
    start = 0
    for n in _OCTAVES:
        grid = levels[start : start + (n + 1) ** 2].reshape(n + 1, n + 1).astype(np.float32)
        weights = _interpolation(n, size)
        field += weights @ grid @ weights.T
        start += (n + 1) ** 2
    # The mean of three grids, about 2.5 times as strong: their average seldom leaves the middle.
    centered = field.astype(np.int32) - len(_OCTAVES) * 128 * 64 * 64
    return (centered * 5 // (2 * len(_OCTAVES)) >> 12).clip(-128, 127)


@lru_cache(maxsize=32)
def _interpolation(cells: int, size: int) -> np.ndarray:
    """Weights in 1 / 64 of ``cells + 1`` grid points at ``size`` pixels: float32 ``[size, cells + 1]``."""
    place = (2 * np.arange(size) + 1) * cells * 64 // (2 * size)
    weights = np.zeros((size, cells + 1), dtype=np.float32)
    rows = np.arange(size)
    weights[rows, place // 64] = 64 - place % 64
    weights[rows, place // 64 + 1] = place % 64
    return weights


def _texture(name: str, seed: int, size: int) -> np.ndarray:
    """A quarter of the photograph, at a place that the seed gives: int64 ``[size, size]``."""
    photograph = _photograph(name)
    left, top = seed % 257, (seed >> 16) % 257
    cut = photograph.crop((left, top, left + 256, top + 256)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(cut).astype(np.int64)


@lru_cache(maxsize=len(TEXTURES))
def _photograph(name: str) -> Image.Image:
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the background {name!r} needs scikit-image: install attn-shared-eval[text]"
        ) from error
    image: Any = getattr(data, name)()
    return Image.fromarray(image)


def _styled(image: np.ndarray, scene: Scene) -> np.ndarray:
    style = scene.style
    if style is None or style == "outlined":
        return image
    levels = image.astype(np.int32)
    if style == "dark":
        levels = levels * 7 >> 4
    elif style == "bright":
        levels = levels * 9 // 8 + 28
    elif style == "pastel":
        levels = (levels * 9 >> 4) + 112
    elif style in ("warm", "cool"):
        levels = levels + (np.array([36, 6, -40]) if style == "warm" else np.array([-40, 0, 36]))
    elif style == "grey":
        levels = np.repeat((levels @ np.array([77, 150, 29]) >> 8)[..., None], 3, axis=-1)
    else:
        grain = _noise(scene.background.seed ^ 2, len(image))
        levels = levels * (128 + _weave(len(image)) + (grain >> 3))[..., None] >> 7
    return levels.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _weave(size: int) -> np.ndarray:
    """The threads of a canvas, 24 to a side: int64 ``[size, size]`` of -20 or 20."""
    threads = np.arange(size) * 48 // size % 2
    return 40 * (threads ^ threads[:, None]) - 20
