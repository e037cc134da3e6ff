"""Edits: two scenes that share everything but one thing, so that the right result of an edit is known to the pixel."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.families import MARKED_KINDS, free_place
from attn.shared_eval.data.shapesworld.grammar import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    KINDS,
    PATTERNS,
    RADII,
    STYLES,
    article,
)
from attn.shared_eval.data.shapesworld.phrases import name
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Background, Scene, Shape


@dataclass(frozen=True)
class Edit:
    """A change of a scene and the prompts that describe it before and after, as in PIE-Bench.

    Attributes:
        kind: one of `EDITS`.
        source, target: the scenes; their pictures are equal but in `mask`.
        marked_source, marked_target: prompts with brackets around the words that differ: ``a [red] star``.
        instruction: ``change the red star into a blue star``.
        blended: the word for the changed object in both prompts; empty where the edit is not of an object's looks.
        object: index of the changed object: in the target if it is added, else in the source; None for style and
            background.
    """

    kind: str
    source: Scene
    target: Scene
    marked_source: str
    marked_target: str
    instruction: str
    blended: tuple[str, ...]
    object: int | None

    @property
    def source_prompt(self) -> str:
        """The prompt before the edit, without brackets."""
        return re.sub(r"[\[\]]", "", self.marked_source)

    @property
    def target_prompt(self) -> str:
        """The prompt after the edit, without brackets."""
        return re.sub(r"[\[\]]", "", self.marked_target)

    def mask(self, size: int) -> np.ndarray:
        """Where the pictures may differ: bool ``[size, size]``.

        Every pixel that the changed object touches in either scene; every pixel that the background shines through,
        if this is changed; everything for a style.
        """
        if self.kind == "change_style":
            return np.ones((size, size), dtype=bool)
        if self.kind == "change_background":
            black, white = (
                render(replace(self.source, style=None, background=Background(base=level)), size).image
                for level in ((0, 0, 0), (255, 255, 255))
            )
            return np.asarray((black != white).any(-1))
        mask = np.zeros((size, size), dtype=bool)
        scenes = {"add": (self.target,), "delete": (self.source,)}.get(self.kind, (self.source, self.target))
        for scene in scenes:
            mask |= render(replace(scene, objects=(scene.objects[self.object or 0],), target=None), size).extents()[0]
        return mask


def edits(scene: Scene, kinds: Sequence[str] | None = None, *, variant: int = 0) -> list[Edit]:
    """An edit of each kind that the scene admits, in the order of the kinds.

    - ``change_object``, ``change_color``, ``change_pattern``: another word for one object, which no object has yet.
    - ``change_style``: another style word, or one where there was none; never grey, where colors are not to be seen.
    - ``add``: an object of a kind and color that are not there yet, in a free place in front of the others.
    - ``delete``: one of several objects.
    - ``change_background``: another of `BACKGROUNDS`.

    An edit never leads to a pair of `HELD_OUT`. Colors and styles of grey scenes cannot be changed, patterns of small
    objects neither.

    Args:
        scene: the source; objects that are named in the prompts are all of them.
        kinds: of `EDITS`; None for all.
        variant: further edits of the same scene.

    Raises:
        ValueError: if a kind is unknown.
    """
    kinds = EDITS if kinds is None else kinds
    for kind in kinds:
        if kind not in EDITS:
            raise ValueError(f"kinds must be some of {', '.join(EDITS)}, got {kind!r}")
    made = (_MAKERS[kind](scene, scene.draw("edits", kind, variant)) for kind in kinds)
    return [edit for edit in made if edit is not None]


def _prompt(scene: Scene, phrases: list[str], *, marked: str = "") -> str:
    style = scene.style and f"in a {scene.style} style"
    ground = f"on a {scene.background.kind} background"
    parts = [" and ".join(phrases) or "a picture", ground, *([style] if style else [])]
    return " ".join(f"[{part}]" if part == marked else part for part in parts)


def _phrases(scene: Scene) -> list[str]:
    return [f"{article(words)} {words}" for words in (name(scene, i).words() for i in range(len(scene.objects)))]


def _edited(
    kind: str, scene: Scene, draw: Draw, attribute: str, fitting: list[tuple[int, list[str]]], names: tuple[str, ...]
) -> Edit | None:
    """One attribute of one object replaced by one of the words that are fit for it."""
    fitting = [(index, words) for index, words in fitting if words]
    if not fitting:
        return None
    index, words = draw.choice(fitting)
    target = scene.change(index, **{attribute: draw.choice(words)})
    prompts, plain = [], []
    for version in (scene, target):
        shape = version.objects[index]
        said = [getattr(shape, n) for n in names]
        phrases = _phrases(version)
        inside = [f"[{word}]" if n == attribute else word for n, word in zip(names, said, strict=True)]
        plain.append(" ".join(said))
        phrases[index] = f"{article(said[0])} {' '.join(inside)}"
        prompts.append(_prompt(version, phrases))
    instruction = f"change the {plain[0]} into {article(plain[1])} {plain[1]}"
    blended = (scene.objects[index].kind, target.objects[index].kind)
    return Edit(kind, scene, target, prompts[0], prompts[1], instruction, blended, index)


def _names(scene: Scene) -> tuple[str, ...]:
    return ("color", "kind") if scene.has_color else ("kind",)


def _change_object(scene: Scene, draw: Draw) -> Edit | None:
    present = {shape.kind for shape in scene.objects}
    fitting = []
    for index, shape in enumerate(scene.objects):
        kinds = KINDS if shape.mark is None else MARKED_KINDS
        fitting.append((index, [k for k in kinds if k not in present and (k, shape.color) not in HELD_OUT]))
    return _edited("change_object", scene, draw, "kind", fitting, _names(scene))


def _change_color(scene: Scene, draw: Draw) -> Edit | None:
    if not scene.has_color:
        return None
    present = {shape.color for shape in scene.objects}
    fitting = [
        (index, [color for color in COLORS if color not in present and (shape.kind, color) not in HELD_OUT])
        for index, shape in enumerate(scene.objects)
    ]
    return _edited("change_color", scene, draw, "color", fitting, _names(scene))


def _change_pattern(scene: Scene, draw: Draw) -> Edit | None:
    fitting = [
        (index, [pattern for pattern in PATTERNS if pattern != shape.pattern])
        for index, shape in enumerate(scene.objects)
        if shape.size != "small"
    ]
    return _edited("change_pattern", scene, draw, "pattern", fitting, ("pattern", *_names(scene)))


def _change_style(scene: Scene, draw: Draw) -> Edit | None:
    if not scene.has_color:
        return None
    style = draw.choice([style for style in STYLES if style not in (scene.style, "grey")])
    target = replace(scene, style=style)
    before, after = (_prompt(s, _phrases(s), marked=f"in a {s.style} style") for s in (scene, target))
    return Edit("change_style", scene, target, before, after, f"change the style to {style}", (), None)


def _change_background(scene: Scene, draw: Draw) -> Edit:
    kind = draw.choice([kind for kind in BACKGROUNDS if kind != scene.background.kind])
    target = replace(scene, background=replace(scene.background, kind=kind))
    grounds = [(s, s.background.kind) for s in (scene, target)]
    before, after = (
        _prompt(s, _phrases(s)).replace(f"{word} background", f"[{word}] background") for s, word in grounds
    )
    return Edit("change_background", scene, target, before, after, f"change the background to {kind}", (), None)


def _add(scene: Scene, draw: Draw) -> Edit | None:
    kinds, colors = {shape.kind for shape in scene.objects}, {shape.color for shape in scene.objects}
    pairs = [(k, c) for k in KINDS for c in COLORS if k not in kinds and c not in colors and (k, c) not in HELD_OUT]
    low, high = RADII["medium"]
    r = low + (high - low) * draw.random()
    place = free_place(r, scene.objects, draw, 1.08)
    if not pairs or place is None:
        return None
    kind, color = draw.choice(pairs)
    target = replace(scene, objects=(*scene.objects, Shape(kind, color, "medium", *place, r)))
    phrases = _phrases(target)
    marked = f"[{' and '.join(['', phrases[-1]] if scene.objects else phrases).strip()}]"
    after = _prompt(target, [" ".join([" and ".join(phrases[:-1]), marked]).strip()])
    before = _prompt(scene, phrases[:-1])
    return Edit("add", scene, target, before, after, f"add {phrases[-1]}", (), len(scene.objects))


def _delete(scene: Scene, draw: Draw) -> Edit | None:
    if len(scene.objects) < 2:
        return None
    index = draw.integer(len(scene.objects))
    left = scene.objects[:index] + scene.objects[index + 1 :]
    phrases = _phrases(scene)
    gone = phrases.pop(index)
    # The deleted object is named last, so that the two prompts agree up to it.
    before = _prompt(scene, [f"{' and '.join(phrases)} [and {gone}]"])
    target = replace(scene, objects=left, target=None)
    words = gone.partition(" ")[2]
    return Edit("delete", scene, target, before, _prompt(target, phrases), f"remove the {words}", (), index)


_MAKERS: dict[str, Callable[[Scene, Draw], Edit | None]] = {
    "change_object": _change_object,
    "change_color": _change_color,
    "change_pattern": _change_pattern,
    "change_style": _change_style,
    "add": _add,
    "delete": _delete,
    "change_background": _change_background,
}
EDITS = tuple(_MAKERS)
"""Kinds of edits, see `edits`."""
