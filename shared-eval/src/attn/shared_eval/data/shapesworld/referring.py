"""Referring expressions: phrases that fit exactly one object of a scene, or none."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from attn.shared_eval.data.shapesworld.grammar import COLORS, FACTS, ORDINALS, PATTERNS, RADII
from attn.shared_eval.data.shapesworld.phrases import (
    MARGIN,
    RELATIONS,
    Description,
    describe,
    holds,
    name,
    unique_description,
)
from attn.shared_eval.data.shapesworld.scene import Scene, Shape

RATIO = 1.25
"""Least ratio of two radii that ``largest`` and ``smallest`` may rest on."""


class Referring(NamedTuple):
    """A phrase such as ``the ring left of the blue square``.

    Attributes:
        text: lower-case words.
        kind: one of `REFERRING`.
        target: index of the one object that it fits; None for a false premise.
        admitted: indices of the objects that a partial reading would admit, in order; the target is among them.
        nearest: the target, or the object that is meant by a false premise and of which one of its words is not true.
    """

    text: str
    kind: str
    target: int | None
    admitted: tuple[int, ...]
    nearest: int


def referring(scene: Scene, kinds: Sequence[str] | None = None, *, each: int = 1, variant: int = 0) -> list[Referring]:
    """Referring expressions in the order of their kinds; ambiguous ones are never made.

    - ``attribute``: color, kind, size, pattern: ``the small star``.
    - ``relation``: to an object that is named uniquely: ``the ring left of the blue square``.
    - ``superlative``: in place or size: ``the leftmost star``.
    - ``ordinal``: ``the second shape from the left``.
    - ``location``: ``the star in the top left corner``.
    - ``reasoning``: by a fact of `FACTS`: ``the shape with three corners``.
    - ``false_premise``: one attribute or relation of an object is not true, and nothing fits.

    Where a part of the phrase alone fits several objects it needs the whole phrase; relations and locations are of
    that sort if the scene has such.

    Args:
        scene: what is referred to.
        kinds: of `REFERRING`; None for all.
        each: most expressions of one kind; fewer where the scene has fewer.
        variant: further expressions of the same scene.

    Raises:
        ValueError: if a kind is unknown or each is not positive.
    """
    kinds = REFERRING if kinds is None else kinds
    for kind in kinds:
        if kind not in REFERRING:
            raise ValueError(f"kinds must be some of {', '.join(REFERRING)}, got {kind!r}")
    if each < 1:
        raise ValueError(f"each must be positive, got {each}")
    chosen = []
    for kind in kinds:
        different = {expression.text: expression for expression in _MAKERS[kind](scene)}
        chosen += scene.draw("referring", kind, variant).shuffle(list(different.values()))[:each]
    return chosen


def _expression(text: str, kind: str, target: int, *readings: Sequence[int]) -> Referring:
    return Referring(text, kind, target, tuple(sorted({target, *chain(*readings)})), target)


def _heads(scene: Scene) -> list[Description]:
    """What a phrase can begin with: any object, a kind, a color, both."""
    names = [("kind",), ("color",), ("color", "kind")] if scene.has_color else [("kind",)]
    return list(dict.fromkeys([Description(), *(describe(shape, *n) for shape in scene.objects for n in names)]))


def _anchors(scene: Scene) -> list[tuple[int, Description]]:
    described = ((index, unique_description(scene, index)) for index in range(len(scene.objects)))
    return [(index, description) for index, description in described if description]


def _attribute(scene: Scene) -> Iterator[Referring]:
    for index in range(len(scene.objects)):
        for description in (unique_description(scene, index), name(scene, index)):
            if description and description.matches(scene) == (index,):
                yield _expression(f"the {description.words()}", "attribute", index, description.admits(scene))


def _relation(scene: Scene) -> list[Referring]:
    ambiguous: list[Referring] = []
    plain: list[Referring] = []
    for anchor, other in _anchors(scene):
        for relation in RELATIONS:
            truth = {i: holds(relation, s, scene.objects[anchor]) for i, s in enumerate(scene.objects) if i != anchor}
            there = [i for i, holding in truth.items() if holding]
            for head in _heads(scene):
                among = [i for i in head.matches(scene) if i != anchor]
                if any(truth[i] is None for i in among) or sum(truth[i] is True for i in among) != 1:
                    continue
                (target,) = (i for i in among if truth[i])
                text = f"the {head.words()} {relation} the {other.words()}"
                readings = (head.admits(scene), there, other.admits(scene))
                (ambiguous if len(among) > 1 else plain).append(_expression(text, "relation", target, *readings))
    return ambiguous or plain


def _extreme(shapes: dict[int, Shape], score: Callable[[Shape], float], margin: Callable[[float], float]) -> int | None:
    """The shape of the highest score, if every other one's is lower by the margin."""
    best = max(shapes, key=lambda i: score(shapes[i]))
    limit = score(shapes[best]) - margin(score(shapes[best]))
    return best if all(score(shape) <= limit for i, shape in shapes.items() if i != best) else None


_SUPERLATIVES: dict[str, tuple[Callable[[Shape], float], Callable[[float], float]]] = {
    "leftmost": (lambda shape: -shape.x, lambda _: MARGIN),
    "rightmost": (lambda shape: shape.x, lambda _: MARGIN),
    "highest": (lambda shape: -shape.y, lambda _: MARGIN),
    "lowest": (lambda shape: shape.y, lambda _: MARGIN),
    "largest": (lambda shape: shape.r, lambda r: r * (1 - 1 / RATIO)),
    "smallest": (lambda shape: -shape.r, lambda r: -r * (RATIO - 1)),
}


def _superlative(scene: Scene) -> Iterator[Referring]:
    everything = dict(enumerate(scene.objects))
    for head in _heads(scene):
        group = head.matches(scene)
        for word, (score, margin) in _SUPERLATIVES.items():
            if len(group) < 2:
                continue
            target = _extreme({i: everything[i] for i in group}, score, margin)
            if target is not None:
                first = max(everything, key=lambda i: score(everything[i]))
                yield _expression(f"the {word} {_noun(head)}", "superlative", target, group, (first,))


def _noun(head: Description) -> str:
    return "shape" if head == Description() else head.words()


def _ordinal(scene: Scene) -> Iterator[Referring]:
    for head in _heads(scene):
        group = head.matches(scene)
        for side, (score, _) in zip(("right", "left", "bottom", "top"), _SUPERLATIVES.values(), strict=False):
            order = sorted(group, key=lambda i: score(scene.objects[i]))
            places = [score(scene.objects[i]) for i in order]
            everywhere = sorted(range(len(scene.objects)), key=lambda i: score(scene.objects[i]))
            for n, (target, word) in enumerate(zip(order, ORDINALS, strict=False)):
                gaps = [places[n] - places[n - 1]] * (n > 0) + [b - places[n] for b in places[n + 1 : n + 2]]
                if gaps and min(gaps) >= MARGIN:
                    text = f"the {word} {_noun(head)} from the {side}"
                    yield _expression(text, "ordinal", target, group, everywhere[n : n + 1])


def _location(scene: Scene) -> list[Referring]:
    ambiguous: list[Referring] = []
    plain: list[Referring] = []
    sides = [(shape.x - 0.5, shape.y - 0.5) for shape in scene.objects]
    places = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
    for across, horizontal in ((-1, "left"), (1, "right")):
        for down, vertical in ((-1, "top"), (1, "bottom")):
            places[f"in the {vertical} {horizontal} corner"] = (across, down)
    for words, (across, down) in places.items():
        # How far an object lies within the place; negative outside.
        depths = [min(d * v for d, v in zip((across, down), side, strict=True) if d) for side in sides]
        inside = [i for i, depth in enumerate(depths) if depth > 0]
        for head in _heads(scene):
            group = head.matches(scene)
            if any(abs(depths[i]) < MARGIN / 2 for i in group) or sum(depths[i] > 0 for i in group) != 1:
                continue
            (target,) = (i for i in group if depths[i] > 0)
            expression = _expression(f"the {_noun(head)} {words}", "location", target, head.admits(scene), inside)
            (ambiguous if len(group) > 1 else plain).append(expression)
    return ambiguous or plain


def _reasoning(scene: Scene) -> Iterator[Referring]:
    for fact, kinds in FACTS.items():
        fitting = [i for i, shape in enumerate(scene.objects) if shape.kind in kinds]
        if len(fitting) == 1:
            yield _expression(f"the shape {fact}", "reasoning", fitting[0])
        for target in fitting if scene.has_color and len(fitting) > 1 else ():
            color = scene.objects[target].color
            same = Description(color=color).matches(scene)
            if [i for i in fitting if i in same] == [target]:
                yield _expression(f"the {color} shape {fact}", "reasoning", target, fitting, same)


def _false_premise(scene: Scene) -> Iterator[Referring]:
    for index, truth in _anchors(scene):
        shape = scene.objects[index]
        if Description(shape.kind).matches(scene) == (index,):
            for attribute, words in _false_words(scene, index).items():
                for word in words:
                    false = Description(**{"kind": shape.kind, attribute: word})
                    yield Referring(f"the {false.words()}", "false_premise", None, false.admits(scene), index)
        for anchor, other in _anchors(scene):
            for relation in RELATIONS:
                if anchor != index and holds(relation, shape, scene.objects[anchor]) is False:
                    there = [i for i, s in enumerate(scene.objects) if holds(relation, s, scene.objects[anchor])]
                    admitted = {*truth.admits(scene), *there, *other.admits(scene)}
                    text = f"the {truth.words()} {relation} the {other.words()}"
                    yield Referring(text, "false_premise", None, tuple(sorted(admitted)), index)


def _false_words(scene: Scene, index: int) -> dict[str, list[str]]:
    """Words that are not true of an object: such as are true of others, if there are others."""
    shape = scene.objects[index]
    vocabulary: dict[str, Sequence[str]] = {"size": tuple(RADII)}
    if scene.has_color:
        vocabulary["color"] = tuple(COLORS)
    if shape.size != "small":
        vocabulary["pattern"] = PATTERNS
    others = {
        a: {getattr(s, a) for i, s in enumerate(scene.objects) if i != index and (a != "pattern" or s.size != "small")}
        for a in vocabulary
    }
    return {
        attribute: [
            word
            for word in words
            if word != getattr(shape, attribute) and (len(scene.objects) == 1 or word in others[attribute])
        ]
        for attribute, words in vocabulary.items()
    }


_MAKERS: dict[str, Callable[[Scene], Iterator[Referring] | list[Referring]]] = {
    "attribute": _attribute,
    "relation": _relation,
    "superlative": _superlative,
    "ordinal": _ordinal,
    "location": _location,
    "reasoning": _reasoning,
    "false_premise": _false_premise,
}
REFERRING = tuple(_MAKERS)
"""Kinds of referring expressions, see `referring`."""
