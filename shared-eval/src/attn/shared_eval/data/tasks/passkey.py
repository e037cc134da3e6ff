"""Passkey retrieval: one word to remember somewhere in a long text."""

from typing import Any, Literal

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.tasks.prompt import ASK, NOISE, VALUES, Prompt, PromptWriter, check_range, docs_tokens


def passkey(
    index: int,
    *,
    length: int = 256,
    depth: float | None = None,
    block: int | None = None,
    filler: Literal["noise", "docs"] = "noise",
    split: Any = "train",
    seed: int = 0,
) -> Prompt:
    """A text of ``length`` tokens that holds ``<q> v`` once and ends with ``<q>``; ``v`` is the answer, behind it.

    Args:
        index: which example.
        length: tokens of the prompt, ``<bos>`` and the last ``<q>`` included, 5 .. 65,536.
        depth: place of the passkey, as a share of the text: 0 is right behind ``<bos>``, 1 right before the last
            ``<q>``; None draws it.
        block: if given, 3 or more: the passkey moves forward to the start of its block of so many tokens, so that both
            words lie in one block (in the first, to the token behind ``<bos>``).
        filler: noise words, or prose of the docs corpus (extra ``text``).
        split: name of a seed space; different splits are independent. With prose, a split of ``docs_corpus`` too.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence is the passkey and the word before it. Choices are all values.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_range("length", length, 5, 65_536)
    if depth is not None:
        check_range("depth", depth, 0, 1)
    if block is not None:
        check_range("block", block, 3, length)
    if filler not in ("noise", "docs"):
        raise ValueError(f"filler must be 'noise' or 'docs', got {filler!r}")

    draw = Draw("passkey", split, seed, index)
    value, share = draw.choice(VALUES), draw.random()
    last = length - 3
    start = 1 + round((share if depth is None else depth) * (last - 1))
    if block is not None:
        start = max(1, start // block * block)

    writer = PromptWriter()
    if filler == "noise":
        writer.write(*(draw.choice(NOISE) for _ in range(start - 1)))
        evidence = writer.write(ASK, value)
        writer.write(*(draw.choice(NOISE) for _ in range(last - start)))
    else:
        tokens = docs_tokens(split)
        first = draw.integer(len(tokens) - length)
        text = tokens[first : first + length].tolist()
        writer.write_ids(text[: start - 1])
        evidence = writer.write(ASK, value)
        writer.write_ids(text[start - 1 : last - 1])
    writer.write(ASK)
    writer.answer(value, [evidence])
    return writer.prompt(VALUES)
