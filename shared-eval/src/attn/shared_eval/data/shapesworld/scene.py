"""Scenes as data: everything that a picture and its texts are made from."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.grammar import BACKGROUNDS, COLORS, KINDS, PATTERNS, RADII, STYLES, TEXTURES

GRAIN = 4096
"""Steps of a coordinate in the picture's side: geometry is integer in these units."""

TURN = 128
"""Steps of an angle in a full turn."""

Color = tuple[int, int, int]

MARKS = (*(f"digit {i}" for i in range(10)), *(f"dots {i}" for i in range(1, 5)))


def _one_of(name: str, value: object, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape. Later shapes of a scene hide earlier ones.

    Args:
        kind: one of `KINDS`.
        color: one of `COLORS`.
        size: one of `RADII`; the word for r, kept apart from it.
        x, y: center, in units of the picture's side from its left and upper edge; rounded to 1 / 4096.
        r: radius of the circle around the shape, in the same units, in (0, 0.5]; rounded likewise.
        pattern: one of `PATTERNS`.
        mark: None, ``"digit 0"`` to ``"digit 9"`` or ``"dots 1"`` to ``"dots 4"``, drawn at the center.
        outline: whether it has a dark outline.
        angle: clockwise, in 1 / 128 of a turn.
        tint: what is added to the color's RGB levels.

    Raises:
        ValueError: if a word is unknown or r is out of range.
    """

    kind: str
    color: str
    size: str
    x: float
    y: float
    r: float
    pattern: str = "plain"
    mark: str | None = None
    outline: bool = False
    angle: int = 0
    tint: Color = (0, 0, 0)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("color", self.color, COLORS)
        _one_of("size", self.size, RADII)
        _one_of("pattern", self.pattern, PATTERNS)
        if self.mark is not None:
            _one_of("mark", self.mark, MARKS)
        if not 0 < self.r <= 0.5:
            raise ValueError(f"r must lie in (0, 0.5], got {self.r}")
        for name in ("x", "y", "r"):
            object.__setattr__(self, name, round(getattr(self, name) * GRAIN) / GRAIN)


@dataclass(frozen=True, slots=True)
class Background:
    """What lies behind the shapes.

    Args:
        kind: one of `BACKGROUNDS` or `TEXTURES`.
        base, other: RGB; the second is the far end of a gradient and of noise.
        noise: amplitude of the value noise on top, in grey levels.
        strokes: number of strokes on top (a ``confetti`` background has 24 more).
        palette: words for the colors of the strokes.
        seed: of noise, strokes and the cut of a texture, 0 .. 2**64 - 1.

    Raises:
        ValueError: if a word is unknown.
    """

    kind: str = "plain"
    base: Color = (150, 150, 150)
    other: Color = (120, 120, 120)
    noise: int = 0
    strokes: int = 0
    palette: tuple[str, ...] = ("black",)
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, (*BACKGROUNDS, *TEXTURES))
        for color in self.palette:
            _one_of("palette", color, COLORS)


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes before a background, and the key that everything drawn from the scene depends on.

    Args:
        objects: from back to front.
        background: what lies behind them.
        style: one of `STYLES`, or None.
        target: index of the shape that bears the label or is searched for, in the families that have one.
        family, split, seed, index: where the scene comes from.

    Raises:
        ValueError: if the style is unknown or target is no index of objects.
    """

    objects: tuple[Shape, ...]
    background: Background = Background()
    style: str | None = None
    target: int | None = None
    family: str = "none"
    split: str = "train"
    seed: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if self.style is not None:
            _one_of("style", self.style, STYLES)
        if self.target is not None and not 0 <= self.target < len(self.objects):
            raise ValueError(f"target must lie in 0 .. {len(self.objects) - 1}, got {self.target}")

    @property
    def has_color(self) -> bool:
        """Whether colors can be seen: not in the grey style."""
        return self.style != "grey"

    def draw(self, *purpose: str | int) -> Draw:
        """The random draws of one purpose; scenes that differ in their key draw independently."""
        return Draw("shapesworld", self.family, self.split, self.seed, self.index, *purpose)

    def move(self, index: int, x: float, y: float) -> "Scene":
        """The scene with the center of one object elsewhere."""
        return self.change(index, x=x, y=y)

    def change(self, index: int, **fields: Any) -> "Scene":
        """The scene with some fields of one object changed."""
        objects = list(self.objects)
        objects[index] = replace(objects[index], **fields)
        return replace(self, objects=tuple(objects))

    def to_json(self) -> str:
        """The scene as a JSON object that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The scene of a text that `to_json` wrote.

        Raises:
            ValueError: if a value is out of range, or the text is no JSON.
            TypeError: if a key is missing or unknown.
        """
        fields = json.loads(text)
        objects = tuple(Shape(**shape | {"tint": tuple(shape["tint"])}) for shape in fields.pop("objects"))
        background: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.pop("background").items()
        }
        return cls(objects=objects, background=Background(**background), **fields)
