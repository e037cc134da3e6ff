"""Questions about a scene, each with its answer and the objects that the answer rests on."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.shapesworld.grammar import COLORS, KINDS, PARTNERS, POPULAR, article, plural
from attn.shared_eval.data.shapesworld.phrases import (
    MARGIN,
    RELATIONS,
    Description,
    holds,
    name,
    number_word,
    unique_description,
)
from attn.shared_eval.data.shapesworld.scene import Scene

NEGATIVES = ("random", "popular", "adversarial")
"""How a presence question whose answer is no is made, after POPE."""

_FILLERS = (
    *("please", "now", "i wonder", "my friend asked", "just tell me", "i want to know"),
    *("please look closely", "here is my question", "if you can see it", "look at this picture then"),
    *("because i think it is good", "please say it very briefly", "so that we all know it"),
)


class Question(NamedTuple):
    """A question that the picture answers.

    Attributes:
        text: lower-case words; the word that is asked about comes last (before a ``?`` or a filler at the end).
        answer: one or two words.
        family: one of `QUESTIONS`.
        evidence: indices of the objects that the answer rests on; empty where it rests on an absence.
        negative: one of `NEGATIVES` for a presence question whose answer is no, else None.
        asked: the kind of a presence question, else None.
    """

    text: str
    answer: str
    family: str
    evidence: tuple[int, ...]
    negative: str | None = None
    asked: str | None = None

    @property
    def single_evidence(self) -> bool:
        """Whether the answer rests on one object."""
        return len(self.evidence) == 1


def questions(
    scene: Scene,
    families: Sequence[str] | None = None,
    *,
    each: int = 1,
    filler: tuple[int, int] = (0, 0),
    filler_last: bool = False,
    question_mark: bool = False,
    variant: int = 0,
) -> list[Question]:
    """Questions in the order of the families; ambiguous and unanswerable ones are never made.

    Args:
        scene: what is asked about.
        families: of `QUESTIONS`; None for all.
        each: most questions of one family; fewer where the scene has fewer. Yes and no are equally likely where both
            can be asked, and a presence question of every kind of `NEGATIVES` is.
        filler: least and largest number of words of irrelevant clauses, drawn for each question; a number that no
            clauses add up to becomes the next smaller one that they do.
        filler_last: clauses stand behind the question instead of before it.
        question_mark: questions end in ``?``.
        variant: further questions of the same scene.

    Raises:
        ValueError: if a family is unknown, each is not positive, or filler is no range of numbers up to 20.
    """
    families = tuple(QUESTIONS) if families is None else families
    for family in families:
        if family not in QUESTIONS:
            raise ValueError(f"families must be some of {', '.join(QUESTIONS)}, got {family!r}")
    if each < 1:
        raise ValueError(f"each must be positive, got {each}")
    if not 0 <= filler[0] <= filler[1] <= 20:
        raise ValueError(f"filler must be two numbers 0 <= low <= high <= 20, got {filler}")
    chosen = []
    for family in families:
        draw = scene.draw("questions", family, variant)
        for question in _choose(list(_MAKERS[family](scene)), each, draw):
            words = _fill(draw, filler[0] + draw.integer(filler[1] - filler[0] + 1))
            parts = [question.text + " ?" * question_mark]
            if words:
                parts = [*parts, ",", words] if filler_last else [words, ",", *parts]
            chosen.append(question._replace(text=" ".join(parts)))
    return chosen


def _choose(candidates: list[Question], each: int, draw: Draw) -> list[Question]:
    """Some of the questions at random: yes and no take turns, and so do the kinds of negatives."""
    shuffled = draw.shuffle(candidates)
    negatives = [[q for q in shuffled if q.answer == "no" and q.negative == kind] for kind in (*NEGATIVES, None)]
    by_answer = [
        [q for q in shuffled if q.answer == "yes"],
        _take_turns(draw.shuffle(negatives)),
        [q for q in shuffled if q.answer not in ("yes", "no")],
    ]
    different: dict[str, Question] = {}
    for question in _take_turns(draw.shuffle(by_answer)):
        different.setdefault(question.text, question)
    return list(different.values())[:each]


def _take_turns(queues: list[list[Question]]) -> list[Question]:
    return [question for turn in zip_longest(*queues) for question in turn if question is not None]


def _fill(draw: Draw, count: int) -> str:
    words: list[str] = []
    while fitting := [clause for clause in _FILLERS if len(clause.split()) <= count - len(words)]:
        words += draw.choice(fitting).split()
    return " ".join(words)


def _presence(scene: Scene) -> Iterator[Question]:
    kinds = {shape.kind for shape in scene.objects}
    pairs = {(shape.kind, shape.color) for shape in scene.objects}
    colors = list(COLORS) if scene.has_color else []

    def ask(description: Description, negative: str | None = None) -> Question:
        evidence = description.matches(scene)
        words = description.words()
        text = f"is there {article(words)} {words}"
        return Question(text, "yes" if evidence else "no", "presence", evidence, negative, description.kind)

    for kind in KINDS:
        if kind in kinds:
            yield ask(Description(kind))
        else:
            yield ask(Description(kind), "random")
            if kind in POPULAR:
                yield ask(Description(kind), "popular")
            if PARTNERS[kind] in kinds:
                yield ask(Description(kind), "adversarial")
        for color in colors:
            if (kind, color) in pairs:
                yield ask(Description(kind, color))
            elif kind in kinds and any(color == c for _, c in pairs):
                yield ask(Description(kind, color), "adversarial")
            elif kind not in kinds:
                yield ask(Description(kind, color), "random")
                if kind in POPULAR:
                    yield ask(Description(kind, color), "popular")


def _attribute(attribute: str, opening: str, family: str) -> Callable[[Scene], Iterator[Question]]:
    def make(scene: Scene) -> Iterator[Question]:
        for index, shape in enumerate(scene.objects):
            if attribute == "color" and not scene.has_color:
                continue
            if attribute == "pattern" and shape.size == "small":
                continue  # not legible
            if description := unique_description(scene, index, without=attribute):
                noun = description.words() if attribute != "kind" else " and ".join(description.attributes())
                yield Question(f"{opening} {noun}", getattr(shape, attribute), family, (index,))

    return make


def _count(scene: Scene) -> Iterator[Question]:
    kinds = [Description(kind) for kind in KINDS]
    colors = [Description(color=color) for color in COLORS if scene.has_color]
    pairs = [name(scene, index) for index in range(len(scene.objects))]
    for description in dict.fromkeys([Description(), *kinds, *colors, *pairs]):
        matches = description.matches(scene)
        # Zero is asked for as often as one would ask: of kinds that something else in the scene could be taken for.
        if len(matches) <= 6 and (matches or (description.kind and PARTNERS[description.kind] in _kinds(scene))):
            yield Question(f"how many {description.words(many=True)}", number_word(len(matches)), "count", matches)


def _kinds(scene: Scene) -> set[str]:
    return {shape.kind for shape in scene.objects}


def _named(scene: Scene) -> list[tuple[int, str]]:
    described = ((index, unique_description(scene, index)) for index in range(len(scene.objects)))
    return [(index, description.words()) for index, description in described if description]


def _relation(scene: Scene) -> Iterator[Question]:
    named = _named(scene)
    for first, subject in named:
        for second, other in named:
            for relation in RELATIONS:
                truth = first != second and holds(relation, scene.objects[first], scene.objects[second])
                if first != second and truth is not None:
                    text = f"is the {subject} {relation} the {other}"
                    yield Question(text, "yes" if truth else "no", "relation", (first, second))


def _compare(scene: Scene) -> Iterator[Question]:
    named = _named(scene)
    for first, subject in named:
        for second, other in named:
            a, b = scene.objects[first], scene.objects[second]
            if first != second and not 0.8 < a.r / b.r < 1.25:
                text = f"is the {subject} larger than the {other}"
                yield Question(text, "yes" if a.r > b.r else "no", "compare", (first, second))
    kinds = sorted(_kinds(scene), key=KINDS.index)
    for kind in kinds:
        for other in kinds:
            more, fewer = Description(kind).matches(scene), Description(other).matches(scene)
            if kind != other and len(more) != len(fewer):
                text = f"are there more {plural(kind)} than {plural(other)}"
                yield Question(text, "yes" if len(more) > len(fewer) else "no", "compare", (*more, *fewer))


def _quadrant(scene: Scene) -> Iterator[Question]:
    for index, words in _named(scene):
        shape = scene.objects[index]
        if min(abs(shape.x - 0.5), abs(shape.y - 0.5)) >= MARGIN / 2:
            place = f"{'top' if shape.y < 0.5 else 'bottom'} {'left' if shape.x < 0.5 else 'right'}"
            yield Question(f"which corner has the {words}", place, "quadrant", (index,))


def _mark(scene: Scene) -> Iterator[Question]:
    for index, words in _named(scene):
        kind, _, number = (scene.objects[index].mark or "").partition(" ")
        if kind == "digit":
            yield Question(f"which digit is in the {words}", f"digit {number_word(int(number))}", "mark", (index,))
        elif kind == "dots":
            answer = f"{number_word(int(number))} {'dot' if number == '1' else 'dots'}"
            yield Question(f"which mark is in the {words}", answer, "mark", (index,))


_MAKERS: dict[str, Callable[[Scene], Iterator[Question]]] = {
    "presence": _presence,
    "color_of": _attribute("color", "what colour is the", "color_of"),
    "kind_of": _attribute("kind", "which shape is", "kind_of"),
    "size_of": _attribute("size", "what size is the", "size_of"),
    "pattern_of": _attribute("pattern", "which pattern has the", "pattern_of"),
    "count": _count,
    "relation": _relation,
    "compare": _compare,
    "quadrant": _quadrant,
    "mark": _mark,
}
QUESTIONS = tuple(_MAKERS)
"""Families of questions."""
