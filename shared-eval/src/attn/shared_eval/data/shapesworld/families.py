"""Families of scenes: what is in a scene and where, as a function of split, seed and index."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.grammar import (
    BACKGROUNDS,
    COLORS,
    DISTRACTORS,
    HELD_OUT,
    HUE_SPREAD,
    KINDS,
    NEAR_COLORS,
    NEAR_KINDS,
    NOISE_LEVELS,
    PARTNERS,
    PATTERNS,
    POPULAR,
    RADII,
    SPLITS,
    STROKES,
    STYLES,
    TEXTURES,
)
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import TURN, Background, Color, Scene, Shape

VISIBLE = 0.6
"""The share of every object that must be visible, in pixels of a picture of 64."""

_LEVELS = range(len(DISTRACTORS))
MARKED_KINDS = tuple(kind for kind in KINDS if kind not in ("ring", "moon"))  # the others are filled at the center
_DIRECTED = ("moon", "arrow")


class _Plan(NamedTuple):
    """A shape before it has a place, or with one."""

    kind: str
    color: str
    size: str = "medium"
    r: float | None = None
    pattern: str = "plain"
    mark: str | None = None
    place: tuple[float, float] | None = None


@dataclass(frozen=True)
class World:
    """A distribution of scenes; made by `family`.

    Args:
        name: of the family.
        objects: least and largest number of objects, without distractors.
        kinds, colors, sizes, patterns: words that objects are drawn from. Half of the objects are plain where plain
            is among the patterns, and small ones always.
        pairs: which pairs of kind and color: ``"all"``, ``"seen"`` (without `HELD_OUT`), or ``"held_out"`` (only
            those; distractors from all).
        backgrounds: of `BACKGROUNDS` and `TEXTURES`.
        styles, style_share: styles, and how often a scene has one.
        clutter: levels 0 to 4, of which each scene draws one: distractors, noise, strokes, hues. Scenes of equal key
            and different clutter have the same objects.
        overlap: whether objects may hide parts of others, of each `VISIBLE` remaining.
        partner: probability that the partner of a popular kind is present too, of ``cooccur``; None for 0.7 in the
            training split and 0.35 elsewhere.
        grid: rows and columns, of ``grid``.

    Raises:
        ValueError: if a word is unknown or a number out of range.
    """

    name: str
    objects: tuple[int, int] = (1, 5)
    kinds: tuple[str, ...] = KINDS
    colors: tuple[str, ...] = tuple(COLORS)
    sizes: tuple[str, ...] = tuple(RADII)
    patterns: tuple[str, ...] = PATTERNS
    pairs: str = "all"
    backgrounds: tuple[str, ...] = BACKGROUNDS
    styles: tuple[str, ...] = STYLES
    style_share: float = 0.0
    clutter: tuple[int, ...] = (0,)
    overlap: bool = False
    partner: float | None = None
    grid: tuple[int, int] = (3, 9)

    def __post_init__(self) -> None:
        low, high = self.objects
        if not 0 <= low <= high:
            raise ValueError(f"objects must be two numbers 0 <= low <= high, got {self.objects}")
        for field, allowed in (
            ("kinds", KINDS),
            ("colors", tuple(COLORS)),
            ("sizes", tuple(RADII)),
            ("patterns", PATTERNS),
            ("backgrounds", (*BACKGROUNDS, *TEXTURES)),
            ("styles", STYLES),
            ("clutter", tuple(_LEVELS)),
        ):
            words = getattr(self, field)
            if not words or not set(words) <= set(allowed):
                raise ValueError(f"{field} must be some of {', '.join(map(str, allowed))}, got {words!r}")
        if self.pairs not in ("all", "seen", "held_out"):
            raise ValueError(f"pairs must be one of all, seen, held_out, got {self.pairs!r}")
        for field, share in (("style_share", self.style_share), ("partner", self.partner)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{field} must lie in [0, 1], got {share}")
        if min(self.grid) < 1 or max(self.grid) > 16:
            raise ValueError(f"grid must be two numbers in 1 .. 16, got {self.grid}")
        if not self._pairs():
            raise ValueError(f"pairs must leave some of kinds and colors, got {self.pairs!r}")

    def scene(self, split: str, index: int, *, seed: int = 0) -> Scene:
        """The scene of one index, the same whatever was drawn before.

        Args:
            split: one of `SPLITS`; different splits are independent.
            index: 0 or more.
            seed: which data set of that split.

        Raises:
            ValueError: if the split is unknown, index is negative, or the objects do not fit into the picture.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        key = Scene((), family=self.name, split=split, seed=seed, index=index)
        draw = key.draw("objects")
        plans, target = _COMPOSERS[self.name](self, draw, split)
        shapes = self._place(plans, draw)
        setting = key.draw("setting")
        level = setting.choice(self.clutter)
        palette = tuple(setting.sample(self._free_colors(), min(HUE_SPREAD[level], len(self._free_colors()))))
        background = self._background(setting, level, palette)
        style = setting.choice(self.styles) if setting.random() < self.style_share else None
        if DISTRACTORS[level]:
            taken = {plan.kind for plan in plans}
            shapes += self._distractors(key.draw("distractors"), DISTRACTORS[level], taken, palette, shapes)
        return replace(key, objects=tuple(shapes), background=background, style=style, target=target)

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [(kind, color) for kind in self.kinds for color in self.colors]
        if self.pairs == "all":
            return pairs
        return [pair for pair in pairs if (pair in HELD_OUT) == (self.pairs == "held_out")]

    def _free_colors(self) -> tuple[str, ...]:
        return tuple(color for color in COLORS if self.name != "dual" or color not in ("red", "blue"))

    def _background(self, draw: Draw, level: int, palette: tuple[str, ...]) -> Background:
        def tinted(grey: int) -> Color:
            r, g, b = (grey + draw.integer(17) - 8 for _ in range(3))
            return r, g, b

        kind = draw.choice(self.backgrounds)
        base, other = draw.shuffle([tinted(108 + draw.integer(24)), tinted(156 + draw.integer(24))])
        seed = draw.integer(2**64)
        return Background(kind, base, other, NOISE_LEVELS[level], STROKES[level], palette, seed)

    def _place(self, plans: list[_Plan], draw: Draw) -> list[Shape]:
        for _ in range(60):
            shapes = self._attempt(plans, draw)
            if shapes is not None and (not self.overlap or _visible(shapes)):
                return shapes
        raise ValueError(
            f"objects must leave room for each other, got {len(plans)} that found no places in 60 attempts"
        )

    def _attempt(self, plans: list[_Plan], draw: Draw) -> list[Shape] | None:
        radii = [self._radius(plan, draw) for plan in plans]
        found: dict[int, Shape] = {}
        # Large ones find a place first; the order of drawing is that of the plans.
        for i in sorted(range(len(plans)), key=lambda i: -radii[i]):
            place = plans[i].place or free_place(radii[i], found.values(), draw, 0.72 if self.overlap else 1.08)
            if place is None:
                return None
            found[i] = _shape(plans[i], place, radii[i], draw)
        return [found[i] for i in range(len(plans))]

    @staticmethod
    def _radius(plan: _Plan, draw: Draw) -> float:
        if plan.r is not None:
            return plan.r
        low, high = RADII[plan.size]
        return low + (high - low) * draw.random()

    def _distractors(
        self, draw: Draw, count: int, taken: set[str], palette: tuple[str, ...], shapes: list[Shape]
    ) -> list[Shape]:
        """Small shapes, of kinds that no object has where there are others."""
        kinds = [kind for kind in KINDS if kind not in taken] or list(KINDS)
        pairs = [(kind, color) for kind in kinds for color in palette]
        if self.pairs == "seen":
            pairs = [pair for pair in pairs if pair not in HELD_OUT]
        found: list[Shape] = []
        for _ in range(count):
            plan, radius = _Plan(*draw.choice(pairs), size="small"), 0.035 + 0.015 * draw.random()
            place = free_place(radius, [*shapes, *found], draw, 1.08)
            if place is not None:
                found.append(_shape(plan, place, radius, draw))
        return found


def family(name: str, **overrides: Any) -> World:
    """The world of a family, with some of its settings changed.

    - ``basic``: 1 to 5 objects; ``small``: 3 to 8 of radius 0.05 to 0.09.
    - ``related``: two objects of near kinds and near colors, such as a red circle and an orange ellipse.
    - ``dual``: a red object, the target, and an equally large blue one, on grey noise.
    - ``classify``: one object of 4 kinds and 3 patterns, the target, in clutter; see `class_label`.
    - ``cooccur``: objects of different kinds, of which some come in pairs (`PARTNERS`).
    - ``marks``: every object carries a digit or dots.
    - ``grid``: rows and columns of objects; the target is unique, and 6 to 10 per cent share its kind or its color.
    - ``two_of_a_kind``: two objects of one kind, one on the left and one on the right, and up to two more
      of two other kinds.
    - ``pairs``: 1 to 3 objects of different kinds and colors, for edits.

    Args:
        name: one of the above.
        **overrides: fields of `World`; ``clutter`` may be a single level.

    Raises:
        ValueError: if the family is unknown or a value is out of range.
        TypeError: if there is no such field.
    """
    if name not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {name!r}")
    known = {field.name for field in fields(World)} - {"name"}
    if unknown := overrides.keys() - known:
        raise TypeError(f"overrides must be some of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    if isinstance(overrides.get("clutter"), int):
        overrides["clutter"] = (overrides["clutter"],)
    return replace(_WORLDS[name], **overrides)


CLASS_KINDS = ("circle", "square", "triangle", "star")
CLASS_PATTERNS = ("plain", "striped", "dotted")


def class_label(scene: Scene) -> int:
    """The class of a ``classify`` or ``dual`` scene: the kind of the target, times 3 plus its pattern for ``classify``.

    Kinds and patterns count in the order of the world's defaults.

    Raises:
        ValueError: if the scene is of another family.
    """
    if scene.target is None or scene.family not in ("classify", "dual"):
        raise ValueError(f"scene must be of the family classify or dual, got {scene.family}")
    shape = scene.objects[scene.target]
    if scene.family == "dual":
        return DUAL_KINDS.index(shape.kind)
    return CLASS_KINDS.index(shape.kind) * len(CLASS_PATTERNS) + CLASS_PATTERNS.index(shape.pattern)


DUAL_KINDS = ("circle", "square", "triangle", "cross")


def free_place(r: float, shapes: Iterable[Shape], draw: Draw, gap: float) -> tuple[float, float] | None:
    """A center in the picture, ``gap`` times the sum of the radii from every shape or more; None after 40 attempts."""
    room = 1 - 2 * (r + 0.01)
    for _ in range(40):
        x, y = (r + 0.01 + room * draw.random() for _ in range(2))
        if all((x - s.x) ** 2 + (y - s.y) ** 2 >= (gap * (r + s.r)) ** 2 for s in shapes):
            return x, y
    return None


def _shape(plan: _Plan, place: tuple[float, float], r: float, draw: Draw) -> Shape:
    angle = draw.integer(TURN) if plan.kind in _DIRECTED else draw.integer(9) - 4
    red, green, blue = (draw.integer(17) - 8 for _ in range(3))
    mark = plan.mark
    return Shape(plan.kind, plan.color, plan.size, *place, r, plan.pattern, mark, False, angle, (red, green, blue))


def _visible(shapes: list[Shape]) -> bool:
    picture = render(Scene(tuple(shapes)), 64)
    seen, whole = picture.masks().sum((1, 2)), picture.amodal_masks().sum((1, 2))
    return bool((seen >= VISIBLE * whole).all())


def _count(world: World, draw: Draw) -> int:
    low, high = world.objects
    return low + draw.integer(high - low + 1)


def _sizes(world: World, draw: Draw, count: int) -> list[str]:
    """A size for each object. Two of them may be large; for more there is no room, if other sizes are allowed."""
    others = [size for size in world.sizes if size != "large"]
    sizes: list[str] = []
    for _ in range(count):
        crowded = others and sizes.count("large") == 2
        sizes.append(draw.choice(others if crowded else world.sizes))
    return sizes


def _looks(world: World, draw: Draw, size: str) -> str:
    """A pattern: one pattern in two is plain, if that is allowed, and small shapes are."""
    others = [pattern for pattern in world.patterns if pattern != "plain"]
    if "plain" in world.patterns and (not others or size == "small" or draw.random() < 0.5):
        return "plain"
    return draw.choice(others)


def _any(world: World, draw: Draw, _: str) -> tuple[list[_Plan], None]:
    pairs = world._pairs()
    sizes = _sizes(world, draw, _count(world, draw))
    return [_Plan(*draw.choice(pairs), size, pattern=_looks(world, draw, size)) for size in sizes], None


def _small(world: World, draw: Draw, _: str) -> tuple[list[_Plan], None]:
    pairs = world._pairs()
    return [_Plan(*draw.choice(pairs), "small", 0.05 + 0.04 * draw.random()) for _ in range(_count(world, draw))], None


def _related(world: World, draw: Draw, _: str) -> tuple[list[_Plan], None]:
    kinds, colors = draw.shuffle(draw.choice(NEAR_KINDS)), draw.shuffle(draw.choice(NEAR_COLORS))
    sizes = [size for size in world.sizes if size != "small"] or ["small"]
    return [_Plan(kind, color, draw.choice(sizes)) for kind, color in zip(kinds, colors, strict=True)], None


def _dual(world: World, draw: Draw, _: str) -> tuple[list[_Plan], int]:
    r = 0.15 + 0.05 * draw.random()
    plans = [_Plan(draw.choice(world.kinds), color, "large", r) for color in draw.shuffle(("red", "blue"))]
    return plans, [plan.color for plan in plans].index("red")


def _classify(world: World, draw: Draw, _: str) -> tuple[list[_Plan], int]:
    kind, pattern = draw.choice(world.kinds), draw.choice(world.patterns)
    return [_Plan(kind, draw.choice(world.colors), draw.choice(world.sizes), pattern=pattern)], 0


def _cooccur(world: World, draw: Draw, split: str) -> tuple[list[_Plan], None]:
    chance = world.partner if world.partner is not None else 0.7 if split == "train" else 0.35
    kinds = []
    for kind in draw.sample(POPULAR, min(_count(world, draw), len(POPULAR))):
        kinds.append(kind)
        if draw.random() < chance:
            kinds.append(PARTNERS[kind])
    pairs = world._pairs()
    plans = []
    for kind in draw.shuffle(kinds):
        colors = [color for k, color in pairs if k == kind] or list(world.colors)
        plans.append(_Plan(kind, draw.choice(colors), "small", 0.07 + 0.03 * draw.random()))
    return plans, None


def _marks(world: World, draw: Draw, _split: str) -> tuple[list[_Plan], None]:
    pairs = [pair for pair in world._pairs() if pair[0] in MARKED_KINDS]
    plans = []
    for _ in range(_count(world, draw)):
        mark = f"digit {draw.integer(10)}" if draw.random() < 0.7 else f"dots {1 + draw.integer(4)}"
        plans.append(_Plan(*draw.choice(pairs), draw.choice(world.sizes), mark=mark))
    return plans, None


def _grid(world: World, draw: Draw, _: str) -> tuple[list[_Plan], int]:
    rows, columns = world.grid
    cells = rows * columns
    r = 0.42 / max(rows, columns)
    pairs = world._pairs()
    kind, color = draw.choice(pairs)
    near = [pair for pair in pairs if (pair[0] == kind) != (pair[1] == color)]
    far = [pair for pair in pairs if pair[0] != kind and pair[1] != color]
    if cells > 1 and not (near and far):
        raise ValueError("kinds and colors must leave pairs that share one or nothing with the target, got too few")
    alike = min(cells - 1, max(1, round(0.08 * cells)))
    chosen = [draw.choice(near) for _ in range(alike)] + [draw.choice(far) for _ in range(cells - 1 - alike)]
    chosen = [(kind, color), *chosen]
    order = draw.shuffle(range(cells))
    plans = [
        _Plan(
            *chosen[order[cell]], "small", r, place=((cell % columns + 0.5) / columns, (cell // columns + 0.5) / rows)
        )
        for cell in range(cells)
    ]
    return plans, order.index(0)


def _two_of_a_kind(world: World, draw: Draw, _: str) -> tuple[list[_Plan], None]:
    pairs = world._pairs()
    kind = draw.choice(pairs)[0]
    colors = [color for k, color in pairs if k == kind]
    color = draw.choice(colors)
    second = color if draw.random() < 0.5 else draw.choice(colors)
    plans = [
        _Plan(kind, c, "medium", place=(side + 0.12 * draw.random(), 0.25 + 0.5 * draw.random()))
        for c, side in ((color, 0.18), (second, 0.70))
    ]
    other_kinds = list(dict.fromkeys(k for k, _ in pairs if k != kind))
    plans += [
        _Plan(other, draw.choice([color for k, color in pairs if k == other]), "small")
        for other in draw.sample(other_kinds, min(draw.integer(3), len(other_kinds)))
    ]
    return draw.shuffle(plans), None


def _pairs(world: World, draw: Draw, _: str) -> tuple[list[_Plan], None]:
    plans: list[_Plan] = []
    for size in _sizes(world, draw, _count(world, draw)):
        pairs = [
            pair for pair in world._pairs() if all(pair[0] != plan.kind and pair[1] != plan.color for plan in plans)
        ]
        if not pairs:
            break
        plans.append(_Plan(*draw.choice(pairs), size, pattern=_looks(world, draw, size)))
    return plans, None


_COMPOSERS: dict[str, Callable[[World, Draw, str], tuple[list[_Plan], int | None]]] = {
    "basic": _any,
    "small": _small,
    "related": _related,
    "dual": _dual,
    "classify": _classify,
    "cooccur": _cooccur,
    "marks": _marks,
    "grid": _grid,
    "two_of_a_kind": _two_of_a_kind,
    "pairs": _pairs,
}
FAMILIES = tuple(_COMPOSERS)
"""Names of the families, see `family`."""

_WORLDS = {
    "basic": World("basic"),
    "small": World("small", objects=(3, 8), patterns=("plain",), sizes=("small",)),
    "related": World("related", objects=(2, 2), sizes=("medium", "large"), patterns=("plain",)),
    "dual": World("dual", objects=(2, 2), kinds=DUAL_KINDS, patterns=("plain",), backgrounds=("noisy",)),
    "classify": World(
        *("classify", (1, 1), CLASS_KINDS),
        patterns=CLASS_PATTERNS,
        sizes=("large",),
        clutter=(2,),
    ),
    "cooccur": World("cooccur", objects=(2, 4), patterns=("plain",), sizes=("small",)),
    "marks": World("marks", objects=(2, 5), patterns=("plain",), sizes=("medium",)),
    "grid": World("grid", patterns=("plain",), backgrounds=("plain",)),
    "two_of_a_kind": World("two_of_a_kind", patterns=("plain",)),
    "pairs": World("pairs", objects=(1, 3), sizes=("medium", "large"), backgrounds=("plain", "gradient")),
}
