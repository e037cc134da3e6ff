"""What every language-model task returns, the words that it is written in, and how it is written."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attn.shared_eval.data.text import Split, docs_corpus
from attn.shared_eval.data.tokenizers import LETTERS, SYMBOLS, text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KEYS = SYMBOLS[:48]
"""Words that are looked up."""

VALUES = SYMBOLS[48:96]
"""Words that are answers."""

NOISE = SYMBOLS[96:]
"""Words that fill a text and are never asked for."""

OPTIONS = LETTERS[:4]
"""Letters of a multiple choice."""

ASK = "<q>"
"""The word in front of a passkey, and at the end of the prompt that asks for it."""

Span = tuple[int, int]
"""A half-open range of token positions."""


class Answer(NamedTuple):
    """An answer in a prompt.

    Attributes:
        span: where its tokens stand.
        evidence: what a reader needs for it, in the order in which a reader goes: one span for each hop.
    """

    span: Span
    evidence: tuple[Span, ...]


class Prompt(NamedTuple):
    """A text with questions and their answers in the tokens of ``text_tokenizer()``.

    Attributes:
        ids: int64 ``[tokens]``; begins with ``<bos>``. ``ids[:answer.span[0]]`` asks for an answer.
        labels: int64 ``[tokens]``; an answer's tokens at their own positions, -100 elsewhere: Hugging Face models shift
            labels themselves.
        answers: in order of position.
        choices: ids of the one-token answers between which a classification of this prompt decides; empty if answers
            have several tokens.
    """

    ids: Tensor
    labels: Tensor
    answers: tuple[Answer, ...]
    choices: tuple[int, ...]


class PromptWriter:
    """Writes a prompt piece by piece; the ends of a piece are ends of tokens."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._answers: list[Answer] = []
        self.write("<bos>")

    @property
    def position(self) -> int:
        """Number of tokens written."""
        return len(self._ids)

    def write(self, *pieces: str) -> Span:
        """Append pieces of text; where they stand."""
        start = len(self._ids)
        for piece in pieces:
            self._ids += encoded(piece)
        return start, len(self._ids)

    def write_ids(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        self._ids += ids

    def answer(self, piece: str, evidence: Sequence[Span]) -> None:
        """Append an answer."""
        self._answers.append(Answer(self.write(piece), tuple(evidence)))

    def prompt(self, choices: Sequence[str] = ()) -> Prompt:
        """What has been written."""
        ids = torch.tensor(self._ids)
        labels = torch.full_like(ids, -100)
        for start, stop in (answer.span for answer in self._answers):
            labels[start:stop] = ids[start:stop]
        return Prompt(ids, labels, tuple(self._answers), tuple(encoded(choice)[0] for choice in choices))


def pad_prompts(prompts: Sequence[Prompt], *, length: int | None = None) -> dict[str, Tensor]:
    """A batch of prompts, padded on the right with ``<pad>``.

    Args:
        prompts: at least one.
        length: tokens of a row; None is the longest prompt's.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[batch, length]``; labels are -100 in the padding.

    Raises:
        ValueError: if there are no prompts, or one is longer than ``length``.
    """
    if not prompts:
        raise ValueError("prompts must not be empty")
    longest = max(len(prompt.ids) for prompt in prompts)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"length must be at least {longest}, the tokens of the longest prompt, got {length}")
    input_ids = torch.full((len(prompts), length), encoded("<pad>")[0])
    labels = torch.full_like(input_ids, -100)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        tokens = len(prompt.ids)
        input_ids[row, :tokens], labels[row, :tokens], attention_mask[row, :tokens] = prompt.ids, prompt.labels, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside low .. high.

    Raises:
        ValueError: naming the argument, its range and the value.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} .. {high}, got {value}")


@cache
def encoded(piece: str) -> tuple[int, ...]:
    """Ids of a piece of text, without special tokens of the tokenizer's own."""
    return tuple(_tokenizer()(piece, add_special_tokens=False).input_ids)


@cache
def docs_tokens(split: Split) -> Tensor:
    """A split of the docs corpus in the tokens of ``text_tokenizer()``, int32 ``[tokens]``.

    A newline ends each paragraph, and ``<eos>`` follows each fourth. Tokenizing takes some seconds, once in a process.

    Raises:
        ValueError: if there is no such split.
        ModuleNotFoundError: if the docs corpus cannot be made (extra ``text``).
    """
    newline, end = encoded("\n")[0], encoded("<eos>")[0]
    paragraphs = _tokenizer()(docs_corpus(split), add_special_tokens=False).input_ids
    tokens = [ids + ([newline] if i % 4 else [newline, end]) for i, ids in enumerate(paragraphs, 1)]
    return torch.tensor([token for ids in tokens for token in ids], dtype=torch.int32)


@cache
def _tokenizer() -> "PreTrainedTokenizerFast":
    return text_tokenizer()
