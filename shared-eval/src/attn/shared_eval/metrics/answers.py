"""Yes-or-no answers of a model: POPE (Li et al., EMNLP 2023) and MME (Fu et al., 2023)."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, ratio, require_equal_lengths

Parser = Literal["original", "negation", "substring", "exact"]

_NEGATIONS = {"No", "not", "no"}
_ALONE = {"yes": True, "no": False}


def parse_yes_no(answer: str, *, label: bool, parser: Parser = "original") -> bool | None:
    """What a free answer to a POPE question says: True for yes, False for no, None for neither.

    Args:
        answer: the model's text.
        label: the right answer; only ``"substring"`` looks at it.
        parser: whose reading. They disagree, so figures of different parsers must not be compared:

            - ``"original"``: POPE's release; no if the words before the first full stop hold No, no or not, else yes;
            - ``"negation"``: PAI and OPERA; the same over the whole answer, and NO or a word ending in n't;
            - ``"substring"``: VCD; where the label is yes, yes if "yes" occurs; where it is no, no if "no" occurs,
              even within a word such as "snowboard";
            - ``"exact"``: lmms-eval; "yes" or "no" alone, in any case; "yes." is neither.

    Raises:
        ValueError: if there is no such parser.
    """
    match parser:
        case "original":
            return not _NEGATIONS & set(answer.split(".")[0].replace(",", "").split(" "))
        case "negation":
            words = answer.replace(".", "").replace(",", "").split(" ")
            return not any(word in _NEGATIONS | {"NO"} or word.endswith("n't") for word in words)
        case "substring":
            return "yes" in answer.lower() if label else "no" not in answer.lower()
        case "exact":
            return _ALONE.get(answer.lower().strip())
    raise ValueError(f"parser must be one of {', '.join(get_args(Parser))}, got {parser!r}")


class Pope(Metric):
    """POPE: accuracy, precision, recall and F1 of answers to "is there a ... in the image?", fractions.

    ``compute`` returns ``accuracy``, ``precision``, ``recall``, ``f1`` (positive class: yes) and ``yes_share``, the
    share of answers that say yes, pooled over all questions, then the same of each split, as ``popular_f1``. An answer
    that is neither yes nor no (``"exact"`` only) is wrong, and counts in neither precision nor recall. A figure without
    questions is NaN.

    Args:
        parser: how answers are read, see `parse_yes_no`; POPE's own by default.
        splits: names of the kinds of negatives to report beside the pooled figures; POPE's own by default.

    Raises:
        ValueError: if there is no such parser.
    """

    full_state_update = False
    higher_is_better = True
    true_yes: Tensor
    false_yes: Tensor
    true_no: Tensor
    false_no: Tensor
    neither: Tensor

    def __init__(
        self,
        parser: Parser = "original",
        *,
        splits: Sequence[str] = ("random", "popular", "adversarial"),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        parse_yes_no("", label=True, parser=parser)
        self.parser, self.splits = parser, tuple(splits)
        add_counts(self, "true_yes", "false_yes", "true_no", "false_no", "neither", shape=(1 + len(self.splits),))

    def update(self, answers: Sequence[str], labels: Sequence[bool], splits: Sequence[str] | None = None) -> None:
        """Take in answers.

        Args:
            answers: the model's texts.
            labels: whether the right answer is yes.
            splits: the kind of each question; None counts them in the pooled figures alone.

        Raises:
            ValueError: if the lengths differ, or a split is none of the metric's.
        """
        kinds = [None] * len(answers) if splits is None else list(splits)
        require_equal_lengths(answers=answers, labels=labels, splits=kinds)
        for answer, label, kind in zip(answers, labels, kinds, strict=True):
            if kind is not None and kind not in self.splits:
                raise ValueError(f"splits must be among {', '.join(self.splits)}, got {kind!r}")
            said = parse_yes_no(answer, label=bool(label), parser=self.parser)
            if said is None:
                count = self.neither
            elif said:
                count = self.true_yes if label else self.false_yes
            else:
                count = self.false_no if label else self.true_no
            count[0] += 1
            if kind is not None:
                count[1 + self.splits.index(kind)] += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        right = self.true_yes + self.true_no
        yes = self.true_yes + self.false_yes
        total = right + self.false_yes + self.false_no + self.neither
        figures = {
            "accuracy": ratio(right, total),
            "precision": ratio(self.true_yes, yes),
            "recall": ratio(self.true_yes, self.true_yes + self.false_no),
            "f1": ratio(2 * self.true_yes, 2 * self.true_yes + self.false_yes + self.false_no),
            "yes_share": ratio(yes, total),
        }
        names = ["", *(f"{split}_" for split in self.splits)]
        return {f"{name}{figure}": values[i] for i, name in enumerate(names) for figure, values in figures.items()}


MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def parse_mme(answer: str) -> bool | None:
    """What an answer to an MME question says: yes or no, whichever its first four characters hold.

    Case and full stops are ignored; "the answer is yes" is neither.
    """
    beginning = answer.lower().strip().replace(".", "")[:4]
    return next((said for word, said in _ALONE.items() if word in beginning), None)


class Mme(Metric):
    """MME: per subtask the accuracy over questions plus the accuracy over images, both in per cent (0 to 200).

    An image has two questions, and is right if both are. ``compute`` returns the score of each subtask, and the sums
    ``perception`` (of ten, up to 2000), ``cognition`` (of four, up to 800) and ``hallucination`` (existence, count,
    position and color, up to 800); NaN where a subtask has no image.
    """

    full_state_update = False
    higher_is_better = True
    images: Tensor
    right_answers: Tensor
    right_images: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_counts(self, "images", "right_answers", "right_images", shape=(len(MME_PERCEPTION + MME_COGNITION),))

    def update(
        self, answers: Sequence[tuple[str, str]], labels: Sequence[tuple[bool, bool]], subtasks: Sequence[str]
    ) -> None:
        """Take in images.

        Args:
            answers: the model's texts to the two questions of each image.
            labels: whether the right answer to each of them is yes.
            subtasks: the subtask of each image.

        Raises:
            ValueError: if the lengths differ, an image has not two questions, or there is no such subtask.
        """
        require_equal_lengths(answers=answers, labels=labels, subtasks=subtasks)
        names = MME_PERCEPTION + MME_COGNITION
        for texts, rights, subtask in zip(answers, labels, subtasks, strict=True):
            if subtask not in names:
                raise ValueError(f"subtasks must be among {', '.join(names)}, got {subtask!r}")
            if len(texts) != 2 or len(rights) != 2:
                raise ValueError(f"answers and labels must come in pairs, got {len(texts)} and {len(rights)}")
            right = sum(parse_mme(text) is bool(label) for text, label in zip(texts, rights, strict=True))
            i = names.index(subtask)
            self.images[i] += 1
            self.right_answers[i] += right
            self.right_images[i] += right == 2

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        scores = 100 * (ratio(self.right_answers, 2 * self.images) + ratio(self.right_images, self.images))
        figures = dict(zip(MME_PERCEPTION + MME_COGNITION, scores.unbind(), strict=True))

        def total(names: Sequence[str]) -> Tensor:
            return torch.stack([figures[name] for name in names]).sum()

        return figures | {
            "perception": total(MME_PERCEPTION),
            "cognition": total(MME_COGNITION),
            "hallucination": total(("existence", "count", "position", "color")),
        }
