"""Captions, lists and paragraphs about a scene, with the place of every word that matters and its truth.

A word is a token of `shapes_tokenizer`, so that word positions are token positions.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.grammar import PARTNERS, article
from attn.shared_eval.data.shapesworld.phrases import RELATIONS, Description, describe, holds, name, number_word
from attn.shared_eval.data.shapesworld.scene import Scene

NEAR = 0.35
"""Greatest distance of the centers of two shapes that are called near each other."""


class Span(NamedTuple):
    """A word that states an attribute.

    Attributes:
        position: of the word in the text, counted from 0.
        attribute: ``kind``, ``color``, ``size``, ``pattern``, ``style`` or ``count``.
        word: the word itself.
        object: index of the object that it is said of; None for style and count.
    """

    position: int
    attribute: str
    word: str
    object: int | None


class Caption(NamedTuple):
    """A caption of lower-case words separated by spaces.

    Attributes:
        text: the words.
        spans: where attributes are stated, in order.
        objects: indices of the objects that are mentioned, in order.
        template: index of the template, see `TEMPLATES`.
    """

    text: str
    spans: tuple[Span, ...]
    objects: tuple[int, ...]
    template: int


# {a0} is an object with its article, {the0} with the definite one, {relation} holds between 0 and 1, {count} and {many}
# belong together. The list is kept in order: a caption names its template by index.
TEMPLATES = (
    "{a0}",
    "{a0} .",
    "there is {a0} .",
    "this is {a0} on a background",
    "a picture of {a0} .",
    "an image with {a0} in it .",
    "one can see {the0} here .",
    "it has {a0} and that is all i can say .",
    "{a0} and {a1}",
    "{a0} with {a1} .",
    "{a0} with {the1} on a scene .",
    "there are {a0} and {a1} in the picture .",
    "a drawing of {a0} and of {a1} .",
    "in this image there is {a0} , and there is also {a1} .",
    "{the0} is {relation} {the1} .",
    "{a0} {relation} {a1}",
    "a scene where {the0} is {relation} {the1} .",
    "{a0} , {a1} and {a2}",
    "{a0} , {a1} and {a2} in one picture .",
    "there is {a0} and {a1} and {a2} .",
    "the image has {a0} , then {a1} , and then {a2} .",
    "{count} {many}",
    "there are {count} {many} .",
    "a photo with {count} {many} on it .",
)
"""The sentences of captions."""

_STYLED = ("{style} , {body}", "{body} in a {style} style", "a {style} scene : {body}", "{style} {body}")


def caption(scene: Scene, *, template: int | None = None, variant: int = 0, detail: float = 0.3) -> Caption:
    """A true caption of the scene, with its style word if it has a style.

    Args:
        scene: with at least one object.
        template: index into `TEMPLATES`; None for one of those that fit.
        variant: further captions of the same scene.
        detail: probability that size, and that a pattern, is named; in [0, 1].

    Raises:
        ValueError: if the scene is empty, detail is out of range, or the template does not fit the scene.
    """
    if not scene.objects:
        raise ValueError("scene must have at least one object, got none")
    if not 0 <= detail <= 1:
        raise ValueError(f"detail must lie in [0, 1], got {detail}")
    draw = scene.draw("caption", variant)
    order = draw.shuffle(range(len(scene.objects)))
    fitting = [i for i in range(len(TEMPLATES)) if _fits(TEMPLATES[i], scene, order)]
    if template is None:
        template = draw.choice(fitting)
    elif template not in fitting:
        raise ValueError(f"template must be one of {fitting} for this scene, got {template}")
    line = _Line(scene)
    body = TEMPLATES[template]
    if scene.style is not None:
        body = draw.choice(_STYLED).format(style="{style}", body=body)
    for slot in body.split():
        if slot == "{style}":
            line.say(str(scene.style), "style", None)
        elif slot == "{relation}":
            first, second = scene.objects[order[0]], scene.objects[order[1]]
            line.add(draw.choice([relation for relation in RELATIONS if holds(relation, first, second)]))
        elif slot == "{count}":
            continue
        elif slot == "{many}":
            line.count(*_group(scene, order[0]))
        elif slot.startswith("{"):
            index = order[int(slot[-2])]
            names = [name for name in ("size", "pattern") if draw.random() < detail]
            line.object(index, *names, definite=slot.startswith("{the"))
        else:
            line.add(slot)
    return Caption(" ".join(line.words), tuple(line.spans), tuple(line.objects), template)


def _fits(template: str, scene: Scene, order: list[int]) -> bool:
    needed = 1 + max((int(digit) for digit in "012" if f"{digit}}}" in template), default=0)
    if len(order) < needed:
        return False
    if "{relation}" in template:
        first, second = scene.objects[order[0]], scene.objects[order[1]]
        return any(holds(relation, first, second) for relation in RELATIONS)
    if "{many}" in template:
        return 2 <= len(_group(scene, order[0])[1]) <= 6
    return True


def _group(scene: Scene, index: int) -> tuple[Description, tuple[int, ...]]:
    """The objects of the color and kind of one, or of its kind alone if there is only one of these."""
    exact = name(scene, index)
    matches = exact.matches(scene)
    if len(matches) > 1:
        return exact, matches
    kind = describe(scene.objects[index], "kind")
    return kind, kind.matches(scene)


class _Line:
    """Words as they are said, and the spans among them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.words: list[str] = []
        self.spans: list[Span] = []
        self.objects: list[int] = []

    def add(self, text: str) -> None:
        self.words += text.split()

    def say(self, word: str, attribute: str, index: int | None) -> None:
        self.spans.append(Span(len(self.words), attribute, word, index))
        self.words.append(word)

    def object(self, index: int, *names: str, definite: bool = False) -> None:
        shape = self.scene.objects[index]
        said = [*names, *(("color",) if self.scene.has_color else ()), "kind"]
        self.words.append("the" if definite else article(getattr(shape, said[0])))
        for attribute in said:
            self.say(getattr(shape, attribute), attribute, index)
        self.objects.append(index)

    def count(self, description: Description, matches: tuple[int, ...]) -> None:
        self.say(number_word(len(matches)), "count", None)
        for word in description.words(many=True).split():
            attribute = "color" if word == description.color else "kind"
            self.say(word, attribute, matches[0])
        self.objects += matches


class Listing(NamedTuple):
    """All objects of a scene: ``red circle ; blue square ; <eos>``.

    Attributes:
        text: ends in ``<eos>``.
        spans: one per color and kind.
        objects: indices in the order of the text.
    """

    text: str
    spans: tuple[Span, ...]
    objects: tuple[int, ...]


def listing(scene: Scene, order: str = "random", *, variant: int = 0) -> Listing:
    """The list of all objects.

    Args:
        scene: may be empty; its list is ``<eos>``.
        order: ``"random"`` or ``"left_to_right"``.
        variant: further random orders.

    Raises:
        ValueError: if the order is unknown.
    """
    if order not in ("random", "left_to_right"):
        raise ValueError(f"order must be one of random, left_to_right, got {order!r}")
    indices = scene.draw("listing", variant).shuffle(range(len(scene.objects)))
    if order == "left_to_right":
        indices.sort(key=lambda i: scene.objects[i].x)
    line = _Line(scene)
    for index in indices:
        for attribute in ("color", "kind") if scene.has_color else ("kind",):
            line.say(getattr(scene.objects[index], attribute), attribute, index)
        line.add(";")
    line.add("<eos>")
    return Listing(" ".join(line.words), tuple(line.spans), tuple(indices))


class Mention(NamedTuple):
    """A kind that a paragraph names.

    Attributes:
        position: of the word for the kind.
        kind: the word.
        sentence: index of the sentence, from 0.
        object: index of the object; None for a false mention, of a kind that is nowhere in the scene.
    """

    position: int
    kind: str
    sentence: int
    object: int | None

    @property
    def true(self) -> bool:
        """Whether the scene has it."""
        return self.object is not None


class Paragraph(NamedTuple):
    """Sentences such as ``there is a red circle near a star .``.

    Attributes:
        text: the sentences.
        mentions: every kind named, in order.
        sentences: half-open ranges of word positions.
    """

    text: str
    mentions: tuple[Mention, ...]
    sentences: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CaptionNoise:
    """False mentions that grow with the sentence: the habit that makes a model hallucinate.

    At the end of sentence s, counted from 0, the partner (`PARTNERS`) of the kind named last is named too, with
    probability ``per_sentence * s``, if the scene does not have it.

    Args:
        per_sentence: in [0, 0.2], so that the sixth sentence has a probability.

    Raises:
        ValueError: if per_sentence is out of range.
    """

    per_sentence: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.per_sentence <= 0.2:
            raise ValueError(f"per_sentence must lie in [0, 0.2], got {self.per_sentence}")


HALVES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


def paragraph(
    scene: Scene,
    *,
    noise: CaptionNoise | None = None,
    half: str | None = None,
    color: str | None = None,
    variant: int = 0,
) -> Paragraph:
    """Up to six sentences that mention every object once, in random order.

    Three to six sentences of one to three objects where there are enough objects, else a sentence for each. The first
    object of a sentence has a color, the others a kind only; ``near`` is said of near ones alone.

    Args:
        scene: of at most 18 objects.
        noise: false mentions; None for none.
        half: ``"left"``, ``"right"``, ``"top"``, ``"bottom"``: only objects whose center lies in that half.
        color: only objects of that color.
        variant: further paragraphs of the same scene.

    Raises:
        ValueError: if there are more than 18 objects, or half is unknown.
    """
    if half is not None and half not in HALVES:
        raise ValueError(f"half must be one of {', '.join(HALVES)}, got {half!r}")
    chosen = [
        i
        for i, shape in enumerate(scene.objects)
        if (color is None or shape.color == color)
        and (half is None or ((shape.x, shape.y)[HALVES[half][0]] - 0.5) * HALVES[half][1] > 0)
    ]
    if len(chosen) > 18:
        raise ValueError(f"scene must have at most 18 objects to mention, got {len(chosen)}")
    draw = scene.draw("paragraph", variant)
    line = _Line(scene)
    mentions: list[Mention] = []
    sentences: list[tuple[int, int]] = []
    if not chosen:
        line.add("there is no object .")
        sentences.append((0, len(line.words)))
    for number, group in enumerate(_groups(draw.shuffle(chosen), draw)):
        start = len(line.words)
        line.add(draw.choice(("there is", "this picture has", "i see")))
        for place, index in enumerate(group):
            shape = scene.objects[index]
            if place:
                before = scene.objects[group[place - 1]]
                near = (shape.x - before.x) ** 2 + (shape.y - before.y) ** 2 <= NEAR**2
                line.add(draw.choice(("near", "and", "with") if near and place == 1 else ("and", "with")))
                line.add(article(shape.kind))
                line.say(shape.kind, "kind", index)
            else:
                line.object(index)
            mentions.append(Mention(len(line.words) - 1, shape.kind, number, index))
        # Both are drawn in any case, so that noise changes nothing else.
        chance, link = draw.random(), draw.choice(("near", "and", "with"))
        partner = PARTNERS[scene.objects[group[-1]].kind]
        absent = all(shape.kind != partner for shape in scene.objects)
        if noise is not None and absent and chance < noise.per_sentence * number:
            line.add(f"{link} {article(partner)} {partner}")
            mentions.append(Mention(len(line.words) - 1, partner, number, None))
        line.add(".")
        sentences.append((start, len(line.words)))
    return Paragraph(" ".join(line.words), tuple(mentions), tuple(sentences))


def _groups(indices: list[int], draw: Draw) -> list[list[int]]:
    """The objects in three to six groups of one to three, or a group each of fewer than three."""
    count = len(indices)
    low, high = max(min(3, count), -(-count // 3)), min(6, count)
    if not count:
        return []
    sizes = [1] * (low + draw.integer(high - low + 1))
    for _ in range(count - len(sizes)):
        sizes[draw.choice([i for i, size in enumerate(sizes) if size < 3])] += 1
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [indices[start:stop] for start, stop in pairwise(ends)]
