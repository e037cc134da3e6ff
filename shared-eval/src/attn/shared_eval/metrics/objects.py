"""Objects that captions name, and those that are not in the picture: CHAIR and Object HalBench."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.lemmas import singulars, tokens
from attn.shared_eval.metrics.states import add_counts, add_sums, ratio, require_equal_lengths


@dataclass(frozen=True)
class ObjectVocabulary:
    """Which words name which class of objects. Words outside it are invisible to the metrics.

    Attributes:
        classes: the words of each class, in the singular and lower case; the class's own name too if it is a word.
        phrases: two-word terms that count as one word, and which word that is.
        absorbed: words that do not count where another word occurs, and which word that is.
    """

    classes: Mapping[str, Collection[str]]
    phrases: Mapping[str, str] = field(default_factory=dict)
    absorbed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def chair(cls, synonyms: str | Path) -> "ObjectVocabulary":
        """The vocabulary of CHAIR (Rohrbach et al., EMNLP 2018).

        Args:
            synonyms: the release's ``synonyms.txt``: a line a class, its name and then its synonyms, separated by
                ", ". An entry after two blanks keeps one and never matches, as in the release.

        Raises:
            ValueError: if the file has no class.
        """
        rules = _coco_rules()
        return cls(_read_synonyms(synonyms), _phrases(rules, rules["phrases"]), rules["absorbed"])

    @classmethod
    def object_halbench(cls, synonyms: str | Path) -> "ObjectVocabulary":
        """The vocabulary of Object HalBench (Yu et al., RLHF-V, CVPR 2024): two-word terms are those of its own list.

        Args:
            synonyms: the release's ``synonyms_refine.txt``, in the format of CHAIR's; blanks around entries are cut.

        Raises:
            ValueError: if the file has no class.
        """
        rules = _coco_rules()
        classes = {
            name.strip(): tuple(word.strip() for word in words) for name, words in _read_synonyms(synonyms).items()
        }
        terms = [word for words in classes.values() for word in words if " " in word]
        return cls(classes, _phrases(rules, [*terms, *rules["beyond_the_list"]]), rules["absorbed"])

    @cached_property
    def class_of(self) -> Mapping[str, str]:
        """The class that each word names."""
        return {word: name for name, words in self.classes.items() for word in words}

    @cached_property
    def singular_of(self) -> Mapping[str, str]:
        """The singular of each plural of the vocabulary's words, see `attn.shared_eval.metrics.lemmas.singulars`."""
        parts = {part for term in (*self.class_of, *self.phrases) for part in term.split()}
        return singulars(parts | set(self.class_of))


def _coco_rules() -> dict[str, Any]:
    text = files("attn.shared_eval.metrics").joinpath("coco_phrases.json").read_text(encoding="utf-8")
    rules: dict[str, Any] = json.loads(text)
    return rules


def _phrases(rules: Mapping[str, Any], terms: Iterable[str]) -> dict[str, str]:
    qualified = {f"{first} {word}": word for first, words in rules["qualifiers"].items() for word in words}
    return {term: term for term in terms} | qualified | rules["renamed"]


def _read_synonyms(path: str | Path) -> dict[str, tuple[str, ...]]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    entries = [tuple(line.strip().split(", ")) for line in lines if line.strip()]
    if not entries:
        raise ValueError(f"{path} must hold a line of synonyms for each class, got none")
    return {words[0]: words for words in entries}


class ObjectMatcher:
    """Finds the objects that a text names.

    Args:
        vocabulary: which words name which class.
        lemmas: the lower-case words of a text in the singular. By default tokens, in the singular where they are a
            plural of a word of the vocabulary: no data are needed. ``wordnet_noun_lemmas`` and ``wordnet_lemmas`` are
            those of published scorers; on real captions CHAIR_i moves by about 0.2 points between the three.
    """

    def __init__(self, vocabulary: ObjectVocabulary, lemmas: Callable[[str], list[str]] | None = None) -> None:
        self.vocabulary, self.lemmas = vocabulary, lemmas

    def words(self, text: str) -> list[str]:
        """The words of a text, two-word terms merged from left to right and absorbed words dropped."""
        vocabulary = self.vocabulary
        if self.lemmas is None:
            single = [vocabulary.singular_of.get(token, token) for token in tokens(text.lower())]
        else:
            single = self.lemmas(text)
        merged, start = [], 0
        while start < len(single):
            term = " ".join(single[start : start + 2])
            merged.append(vocabulary.phrases.get(term, single[start]))
            start += 2 if term in vocabulary.phrases else 1
        present = set(merged)
        return [word for word in merged if vocabulary.absorbed.get(word) not in present]

    def mentions(self, words: Iterable[str]) -> list[str]:
        """The class that each of the words names, repeats kept, in their order; other words are left out."""
        return [self.vocabulary.class_of[word] for word in words if word in self.vocabulary.class_of]


def coco_objects(
    matcher: ObjectMatcher, instances: Iterable[str | Path], captions: Iterable[str | Path] = ()
) -> dict[int, frozenset[str]]:
    """The classes in each COCO image: those of its instances, and those that its reference captions name.

    Args:
        matcher: finds classes in captions, and gives those of COCO's category names.
        instances: annotation files in COCO's format, such as ``instances_val2014.json``; CHAIR and Object HalBench
            read train and val.
        captions: the same of reference captions, ``captions_val2014.json``. An image in neither is left out.

    Raises:
        ValueError: if a category is no word of the vocabulary.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for path in instances:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        unknown = sorted(set(names.values()) - matcher.vocabulary.class_of.keys())
        if unknown:
            raise ValueError(f"categories of {path} must be words of the vocabulary, got {', '.join(unknown)}")
        for annotation in content["annotations"]:
            found[annotation["image_id"]].add(matcher.vocabulary.class_of[names[annotation["category_id"]]])
    for path in captions:
        for annotation in json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]:
            found[annotation["image_id"]].update(matcher.mentions(matcher.words(annotation["caption"])))
    return {image: frozenset(classes) for image, classes in found.items()}


def repeated_ngrams(words: Sequence[str], n: int = 4) -> float:
    """Share of the n-grams that occurred before in the same text; 0 for a text of fewer than n words."""
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class _ObjectMentions(Metric):
    """Counts of true and hallucinated mentions of objects in captions (abstract)."""

    full_state_update = False
    higher_is_better = False
    captions: Tensor
    captions_with_objects: Tensor
    hallucinated_captions: Tensor
    mentions: Tensor
    hallucinated_mentions: Tensor
    distinct: Tensor
    recalled: Tensor
    present: Tensor
    words: Tensor

    def __init__(self, matcher: ObjectMatcher, **options: Any) -> None:
        super().__init__(**options)
        self.matcher = matcher
        add_counts(self, "captions", "captions_with_objects", "hallucinated_captions")
        add_counts(self, "mentions", "hallucinated_mentions", "distinct", "recalled", "present", "words")

    def _count(self, mentions: Sequence[str], truth: Collection[str], words: int) -> None:
        present = set(truth)
        unknown = sorted(present - self.matcher.vocabulary.classes.keys())
        if unknown:
            raise ValueError(f"truth must hold classes of the vocabulary, got {', '.join(unknown)}")
        hallucinated = sum(name not in present for name in mentions)
        self.captions += 1
        self.captions_with_objects += bool(mentions)
        self.hallucinated_captions += hallucinated > 0
        self.mentions += len(mentions)
        self.hallucinated_mentions += hallucinated
        self.distinct += len(set(mentions))
        self.recalled += len(present & set(mentions))
        self.present += len(present)
        self.words += words


class Chair(_ObjectMentions):
    """CHAIR (Rohrbach et al., EMNLP 2018): hallucinated objects in captions, fractions.

    ``compute`` returns ``chair_i``, hallucinated mentions over mentions, and ``chair_s``, captions with at least one
    over captions; and what must be looked at beside them, as short or repetitive captions lower both: ``recall``,
    ``precision`` and ``f1`` of the distinct classes, ``length`` in tokens after merging, and ``repetition``, the mean
    share of 4-grams that occurred before. A figure without captions, or without mentions, is NaN.

    Args:
        matcher: finds the objects in a caption.
    """

    repetition: Tensor

    def __init__(self, matcher: ObjectMatcher, **options: Any) -> None:
        super().__init__(matcher, **options)
        add_sums(self, "repetition")

    def update(self, captions: Sequence[str], truth: Sequence[Collection[str]]) -> None:
        """Take in captions and the classes present in the picture of each.

        Raises:
            ValueError: if the lengths differ, or a class is not of the vocabulary.
        """
        require_equal_lengths(captions=captions, truth=truth)
        for caption, present in zip(captions, truth, strict=True):
            words = self.matcher.words(caption)
            self._count(self.matcher.mentions(words), present, len(words))
            self.repetition += repeated_ngrams(words)

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        return {
            "chair_s": ratio(self.hallucinated_captions, self.captions),
            "chair_i": ratio(self.hallucinated_mentions, self.mentions),
            "recall": ratio(self.recalled, self.present),
            "precision": ratio(self.recalled, self.distinct),
            "f1": ratio(2 * self.recalled, self.distinct + self.present),
            "length": ratio(self.words, self.captions),
            "repetition": ratio(self.repetition, self.captions),
        }


class ObjectHalBench(_ObjectMentions):
    """Object HalBench (Yu et al., RLHF-V, CVPR 2024): hallucinated objects in detailed answers, fractions.

    ``compute`` returns ``response``, answers with a hallucinated mention over answers **with any object of the
    vocabulary**; ``mention``, hallucinated mentions over mentions; ``recall`` of the classes present; ``length``, mean
    number of blank-separated words. A figure over nothing is NaN.

    Args:
        matcher: finds the objects in an answer; published figures have the vocabulary
            `ObjectVocabulary.object_halbench` and `wordnet_noun_lemmas`.
        extract: the objects that an answer names, in the singular, such as those that a judge lists (GPT-3.5 in the
            benchmark). They count once each, and answers of three words or fewer have none. Without it the matcher
            reads the answers, and repeats count.
    """

    def __init__(
        self, matcher: ObjectMatcher, extract: Callable[[str], Sequence[str]] | None = None, **options: Any
    ) -> None:
        super().__init__(matcher, **options)
        self.extract = extract

    def update(self, answers: Sequence[str], truth: Sequence[Collection[str]]) -> None:
        """Take in answers and the classes present in the picture of each.

        Raises:
            ValueError: if the lengths differ, or a class is not of the vocabulary.
        """
        require_equal_lengths(answers=answers, truth=truth)
        for answer, present in zip(answers, truth, strict=True):
            length = len(answer.split())
            if self.extract is None:
                words = self.matcher.words(answer)
            else:
                listed = list(dict.fromkeys(self.extract(answer))) if length > 3 else []
                absorbed = self.matcher.vocabulary.absorbed
                words = [word for word in listed if absorbed.get(word) not in listed]
            self._count(self.matcher.mentions(words), present, length)

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        return {
            "response": ratio(self.hallucinated_captions, self.captions_with_objects),
            "mention": ratio(self.hallucinated_mentions, self.mentions),
            "recall": ratio(self.recalled, self.present),
            "length": ratio(self.words, self.captions),
        }
