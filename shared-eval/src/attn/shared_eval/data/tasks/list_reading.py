"""List reading: words with scores, of which the highest are to be named in order."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.reviews import CUE_WORDS, FILLER_WORDS
from attn.shared_eval.data.tasks.prompt import Prompt, PromptWriter, check_range

LIST_WORDS = tuple(sorted({*FILLER_WORDS, *CUE_WORDS}))
"""The words of the lists: those of the reviews; most have several tokens."""


def list_reading(
    index: int,
    *,
    items: int = 6,
    top: int = 3,
    decimals: int = 2,
    ties: bool = False,
    split: str = "train",
    seed: int = 0,
) -> Prompt:
    r"""A line such as `` film (0.42), dull (0.07)``, and below it ``the words film, dull`` with the words to be named.

    The words stand for those of a text and the scores for their saliency: the answers are the words of the highest
    scores, highest first, and of equal scores the one that stands first.

    Args:
        index: which example.
        items: distinct words of the list, 1 .. 160.
        top: words to be named, 1 .. items.
        decimals: of a score, which lies in 0 .. 1 - 10**-decimals, 1 .. 4.
        ties: whether scores may be equal; without ties, items is at most 10**decimals.
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence of an answer is its word and score in the list. Answers have several tokens: no choices.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_range("decimals", decimals, 1, 4)
    check_range("items", items, 1, min(160, len(LIST_WORDS)) if ties else min(160, len(LIST_WORDS), 10**decimals))
    check_range("top", top, 1, items)

    draw = Draw("list_reading", split, seed, index)
    words = draw.sample(LIST_WORDS, items)
    levels = 10**decimals
    scores = [draw.integer(levels) for _ in range(items)] if ties else draw.sample(range(levels), items)

    writer = PromptWriter()
    item_at = []
    for place, (word, score) in enumerate(zip(words, scores, strict=True)):
        if place:
            writer.write(",")
        item_at.append(writer.write(f" {word}", " (", "0", ".", *f"{score:0{decimals}d}", ")"))
    writer.write("\n", "the words")
    for number, place in enumerate(sorted(range(items), key=lambda place: -scores[place])[:top]):
        if number:
            writer.write(",")
        writer.answer(f" {words[place]}", [item_at[place]])
    writer.write("\n")
    return writer.prompt()
