"""Phrase-cue reviews: synthetic texts whose label hangs on short phrases at known places."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attn.shared_eval.data.draw import Draw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each word of a phrase also occurs alone, in both classes, and evaluative words stand in phrases of both: single words
# say little about the label.
CUE_PHRASES = (
    ("not good at all", "never once funny", "as bad as ever", "far from good", "far from funny", "ever so dull"),
    ("not bad at all", "never once dull", "as good as ever", "far from bad", "far from dull", "ever so funny"),
)
"""The phrases of class 0 (negative) and class 1 (positive)."""

CUE_WORDS = ("all", "as", "at", "bad", "dull", "ever", "far", "from", "funny", "good", "never", "not", "once", "so")
"""The words of the phrases; one also occurs alone, next to fillers only, without any effect on the label."""

_FILLERS = """
about across act action actor actress afternoon age agent air along and answer army around artist audience author band
bar battle beach bed before bird boat body book boy bridge brother building bus camera captain car case cast castle
cat chair chapter character chase child church cinema city class coast coffee color costume country couple crew crime
crowd dance daughter day desert dialogue dinner director doctor dog door dream dress driver during editing editor end
engine episode evening event face family farm father field film fire floor flower forest friend game garden ghost girl
guitar hall hand hero hill history home horse hospital hotel hour house husband island journey judge kitchen lake
landscape lawyer letter light machine man market memory money morning mother mountain movie music neighbor night novel
ocean office palace party phone piano picture plane plot police river road role room scene school screen script sea
season soldier
"""
FILLER_WORDS = tuple(_FILLERS.split())
"""Words without any effect on the label."""


class Review(NamedTuple):
    """A text of lower-case words separated by spaces.

    Attributes:
        text: 41 to 49 words.
        label: 0 (negative) or 1 (positive); with label noise, possibly not what the phrases say.
        spans: the cue phrases, as half-open ranges of word positions, in order.
    """

    text: str
    label: int
    spans: tuple[tuple[int, int], ...]


def reviews(split: str, size: int, *, seed: int = 0, label_noise: float = 0.0) -> list[Review]:
    """The first ``size`` phrase-cue reviews of a split.

    A review has one or two cue phrases of its class and three to six cue words that stand alone, at random places
    among filler words; two cues never touch. Both classes are equally likely.

    Args:
        split: name of a seed space; different splits are independent.
        size: number of reviews; a longer list begins with the shorter one.
        seed: which data set of that split.
        label_noise: probability that a label is flipped, in [0, 1]; texts and spans stay the same.

    Raises:
        ValueError: if size is negative or label_noise is outside [0, 1].
    """
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must lie in [0, 1], got {label_noise}")
    return [_review(Draw("reviews", split, seed, index), label_noise) for index in range(size)]


def _review(draw: Draw, label_noise: float) -> Review:
    flipped = draw.random() < label_noise
    label, length = draw.integer(2), 41 + draw.integer(9)
    phrases = [phrase.split() for phrase in draw.sample(CUE_PHRASES[label], 1 + draw.integer(2))]
    alone = [[word] for word in draw.sample(CUE_WORDS, 3 + draw.integer(4))]
    cues = draw.shuffle(phrases + alone)
    fillers = length - sum(map(len, cues))
    places = draw.sample(range(fillers + 1), len(cues))  # distinct, so that a filler separates any two cues
    cue_at = dict(zip(places, cues, strict=True))

    words: list[str] = []
    spans = []
    for place in range(fillers + 1):
        cue = cue_at.get(place, [])
        if len(cue) > 1:
            spans.append((len(words), len(words) + len(cue)))
        words += cue
        if place < fillers:
            words.append(draw.choice(FILLER_WORDS))
    return Review(" ".join(words), label ^ flipped, tuple(spans))


class ReviewsDataset(Dataset[dict[str, Tensor]]):
    """Reviews for training a classifier: ``input_ids``, ``attention_mask`` ``[length]`` and ``labels`` (scalar), int64.

    A text stands between the tokenizer's classification and separator tokens and is padded on the right.

    Args:
        reviews: what ``reviews(...)`` returned.
        tokenizer: one with ``cls_token``, ``sep_token`` and ``pad_token``, such as ``shapes_tokenizer()``.
        length: tokens of every item; must hold the longest text and two more.

    Raises:
        ValueError: if a text does not fit.
    """

    def __init__(self, reviews: list[Review], tokenizer: "PreTrainedTokenizerBase", *, length: int = 64) -> None:
        special: Any = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        if None in special:
            raise ValueError("tokenizer must have cls_token, sep_token and pad_token")
        cls, sep, pad = special
        self.input_ids = torch.full((len(reviews), length), pad)
        self.attention_mask = torch.zeros_like(self.input_ids)
        self.labels = torch.tensor([review.label for review in reviews], dtype=torch.int64)
        for row, review in enumerate(reviews):
            ids = [cls, *tokenizer(review.text, add_special_tokens=False).input_ids, sep]
            if len(ids) > length:
                raise ValueError(f"length must be at least {len(ids)}, the tokens of review {row}, got {length}")
            self.input_ids[row, : len(ids)] = torch.tensor(ids)
            self.attention_mask[row, : len(ids)] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.input_ids[item],
            "attention_mask": self.attention_mask[item],
            "labels": self.labels[item],
        }
