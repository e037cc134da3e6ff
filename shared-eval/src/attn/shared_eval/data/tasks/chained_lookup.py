"""Chained lookup: a function is given as records on pages, and its orbit is to be written down."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.tasks.prompt import KEYS, NOISE, Prompt, PromptWriter, check_range


def chained_lookup(
    index: int,
    *,
    records: int = 16,
    page: int = 4,
    hops: int = 4,
    lookups: int = 1,
    split: str = "train",
    seed: int = 0,
) -> Prompt:
    """Pages that begin with ``a f(a)``, then a start and its successors: each answer is the input of the next lookup.

    ``f`` is a permutation of the records' words with a single cycle. Pages have ``page`` tokens each, filled up with
    noise words: the first is ``<bos>`` and noise, then come the records in any order, and the start ``a`` begins the
    page behind them. An answer is ``f`` applied ``lookups`` times to the word before it.

    Args:
        index: which example.
        records: 2 .. 48.
        page: tokens of a page, 3 .. 4096; at least one is noise, which tells a record's key from its value.
        hops: answers, 1 .. (records - 1) // lookups, so that none comes twice.
        lookups: dependent lookups for each answer, 1 .. min(3, records - 1).
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence of an answer is its ``lookups`` records, in order. Choices are the records' words.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_range("records", records, 2, len(KEYS))
    check_range("page", page, 3, 4096)
    check_range("lookups", lookups, 1, min(3, records - 1))
    check_range("hops", hops, 1, (records - 1) // lookups)

    draw = Draw("chained_lookup", split, seed, index)
    orbit = draw.sample(KEYS, records)
    writer = PromptWriter()
    writer.write(*(draw.choice(NOISE) for _ in range(page - 1)))
    record_at = {}
    for place in draw.shuffle(range(records)):
        record_at[place] = writer.write(orbit[place], orbit[(place + 1) % records])
        writer.write(*(draw.choice(NOISE) for _ in range(page - 2)))
    writer.write(orbit[0])
    for first in range(0, hops * lookups, lookups):
        writer.answer(orbit[first + lookups], [record_at[place] for place in range(first, first + lookups)])
    return writer.prompt(orbit)
