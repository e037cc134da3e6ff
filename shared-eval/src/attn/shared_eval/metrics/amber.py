"""AMBER (Wang et al., 2023, arXiv 2311.07397): hallucination in descriptions and in yes-or-no answers."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.lemmas import singulars, tokens
from attn.shared_eval.metrics.states import add_counts, ratio, require_equal_lengths

AMBER_KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The kind of a question by its ``type`` in AMBER's annotations, where relations that do not hold have a type apart."""


@dataclass(frozen=True)
class AmberWords:
    """The words that AMBER looks at.

    Attributes:
        associations: the words that stand for each object (``relation.json``).
        safe: words that are never a hallucination (``safe_words.txt``).
    """

    associations: Mapping[str, Sequence[str]]
    safe: Collection[str] = field(default_factory=frozenset)

    @classmethod
    def read(cls, folder: str | Path) -> "AmberWords":
        """Read ``relation.json`` and ``safe_words.txt`` of the release's folder ``data``."""
        associations = json.loads((Path(folder) / "relation.json").read_text(encoding="utf-8"))
        safe = (Path(folder) / "safe_words.txt").read_text(encoding="utf-8").split("\n")
        return cls(associations, frozenset(safe) - {""})

    @cached_property
    def known(self) -> frozenset[str]:
        """Every object and every word associated with one."""
        return frozenset(self.associations) | {word for words in self.associations.values() for word in words}

    @cached_property
    def singular_of(self) -> Mapping[str, str]:
        """The singular of each plural of the known words, by plural."""
        return singulars(self.known)

    def nouns(self, text: str) -> list[str]:
        """Known words of a text in the singular, in its own case, whatever their part of speech."""
        singular = [self.singular_of.get(token, token) for token in tokens(text)]
        return [word for word in singular if word in self.known]


class AmberCounts(NamedTuple):
    """What one description is counted as."""

    nouns: int
    hallucinated: int
    covered: int
    imagined: int


def amber_counts(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallucinated: Sequence[str],
    words: AmberWords,
    similar: Callable[[str, str], bool] | None = None,
) -> AmberCounts:
    """The counts of one description, in the order of the release's checks.

    A safe noun counts as true. A noun that is, or is associated with, an object in the picture covers the first such
    object. Any other marks the annotated hallucination that it is or is associated with, and is itself hallucinated
    unless it is similar to a true word.

    Args:
        nouns: known nouns of the description, repeats kept.
        truth: objects in the picture; a repeated one is never covered twice.
        hallucinated: objects that people would expect, wrongly.
        words: associations and safe words.
        similar: whether two words mean the same; the release asks whether the cosine of their spaCy vectors
            (en_core_web_lg) exceeds 0.8. None counts exact words and associations only.

    Raises:
        ValueError: if an object has no associations.
    """
    true_words, imagined_words = _owned("truth", truth, words), _owned("hallucinated", hallucinated, words)
    covered: set[int] = set()
    imagined: set[int] = set()
    false = 0
    for noun in nouns:
        if noun in words.safe:
            continue
        if (owner := _owner(noun, true_words, str.__eq__)) is not None:
            covered.add(owner)
            continue
        if (owner := _owner(noun, imagined_words, str.__eq__)) is not None:
            imagined.add(owner)
        if similar is not None:
            if (owner := _owner(noun, imagined_words, similar)) is not None:
                imagined.add(owner)
            if (owner := _owner(noun, true_words, similar)) is not None:
                covered.add(owner)
                continue
        false += 1
    return AmberCounts(len(nouns), false, len(covered), len(imagined))


def _owned(name: str, objects: Sequence[str], words: AmberWords) -> list[tuple[str, int]]:
    """Words with the place of their object in the list: the associated words of all objects, then the objects."""
    unknown = [entry for entry in objects if entry not in words.associations]
    if unknown:
        raise ValueError(f"{name} must hold objects with associations, got {', '.join(unknown)}")
    associated = [(word, place) for place, entry in enumerate(objects) for word in words.associations[entry]]
    return associated + [(entry, place) for place, entry in enumerate(objects)]


def _owner(noun: str, owned: Sequence[tuple[str, int]], same: Callable[[str, str], bool]) -> int | None:
    return next((place for word, place in owned if same(noun, word)), None)


class AmberGenerative(Metric):
    """The generative part of AMBER: hallucination in free descriptions, fractions.

    ``compute`` returns ``chair``, hallucinated nouns over known nouns; ``cover``, covered objects over objects in the
    picture; ``hal``, descriptions with a hallucinated noun over descriptions; ``cog``, annotated hallucinations
    named over annotated ones. A figure over nothing is NaN. The release prints per cent, rounded to one decimal.

    Args:
        words: associations and safe words.
        nouns: the nouns of a description, of which unknown ones are dropped; `wordnet_nouns` is the release's. By
            default every known word, whatever its part of speech, needs no data.
        similar: whether two words mean the same, see `amber_counts`.
    """

    full_state_update = False
    higher_is_better = False
    nouns: Tensor
    hallucinated_nouns: Tensor
    covered: Tensor
    present: Tensor
    imagined: Tensor
    annotated: Tensor
    hallucinated_descriptions: Tensor
    descriptions: Tensor

    def __init__(
        self,
        words: AmberWords,
        *,
        nouns: Callable[[str], Sequence[str]] | None = None,
        similar: Callable[[str, str], bool] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.words_read, self.extract, self.similar = words, nouns or words.nouns, similar
        add_counts(self, "nouns", "hallucinated_nouns", "covered", "present", "imagined", "annotated")
        add_counts(self, "hallucinated_descriptions", "descriptions")

    def update(
        self, descriptions: Sequence[str], truth: Sequence[Sequence[str]], hallucinated: Sequence[Sequence[str]]
    ) -> None:
        """Take in descriptions, the objects in the picture of each, and the annotated hallucinations of each.

        Raises:
            ValueError: if the lengths differ, or an object has no associations.
        """
        require_equal_lengths(descriptions=descriptions, truth=truth, hallucinated=hallucinated)
        for text, present, annotated in zip(descriptions, truth, hallucinated, strict=True):
            nouns = [noun for noun in self.extract(text) if noun in self.words_read.known]
            counts = amber_counts(nouns, present, annotated, self.words_read, self.similar)
            self.nouns += counts.nouns
            self.hallucinated_nouns += counts.hallucinated
            self.covered += counts.covered
            self.present += len(present)
            self.imagined += counts.imagined
            self.annotated += len(annotated)
            self.hallucinated_descriptions += counts.hallucinated > 0
            self.descriptions += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        return {
            "chair": ratio(self.hallucinated_nouns, self.nouns),
            "cover": ratio(self.covered, self.present),
            "hal": ratio(self.hallucinated_descriptions, self.descriptions),
            "cog": ratio(self.imagined, self.annotated),
        }


class AmberDiscriminative(Metric):
    """The discriminative part of AMBER: yes-or-no questions whose positive class is **no**, fractions.

    ``compute`` returns ``accuracy``, ``precision``, ``recall`` and ``f1`` over all questions and of each kind, as
    ``existence_f1``; ``attribute`` pools ``state``, ``number`` and ``action``. The answers must be exactly "Yes" or
    "No"; others are wrong. A figure over nothing is NaN. The release computes F1 from rounded precision and recall and
    adds 0.0001 (existence: 0.001) below the line, which lowers it by at most 0.05 points
    besides the rounding.
    """

    full_state_update = False
    higher_is_better = True
    questions: Tensor
    right: Tensor
    said_no: Tensor
    truly_no: Tensor
    rightly_no: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kinds = tuple(dict.fromkeys(AMBER_KINDS.values()))
        add_counts(self, "questions", "right", "said_no", "truly_no", "rightly_no", shape=(len(self.kinds),))

    def update(self, answers: Sequence[str], labels: Sequence[bool], kinds: Sequence[str]) -> None:
        """Take in answers.

        Args:
            answers: the model's texts.
            labels: whether the right answer is yes.
            kinds: of the questions, values of `AMBER_KINDS`.

        Raises:
            ValueError: if the lengths differ, or there is no such kind.
        """
        require_equal_lengths(answers=answers, labels=labels, kinds=kinds)
        for answer, label, kind in zip(answers, labels, kinds, strict=True):
            if kind not in self.kinds:
                raise ValueError(f"kinds must be among {', '.join(self.kinds)}, got {kind!r}")
            place = self.kinds.index(kind)
            self.questions[place] += 1
            self.right[place] += answer == ("Yes" if label else "No")
            self.said_no[place] += answer == "No"
            self.truly_no[place] += not label
            self.rightly_no[place] += answer == "No" and not label

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        groups = {"": self.kinds, **{f"{kind}_": (kind,) for kind in self.kinds}}
        groups["attribute_"] = ("state", "number", "action")
        figures: dict[str, Tensor] = {}
        for name, kinds in groups.items():
            places = [self.kinds.index(kind) for kind in kinds]
            questions, right, said_no, truly_no, rightly_no = (
                state[places].sum()
                for state in (self.questions, self.right, self.said_no, self.truly_no, self.rightly_no)
            )
            figures |= {
                f"{name}accuracy": ratio(right, questions),
                f"{name}precision": ratio(rightly_no, said_no),
                f"{name}recall": ratio(rightly_no, truly_no),
                f"{name}f1": ratio(2 * rightly_no, said_no + truly_no),
            }
        return figures
