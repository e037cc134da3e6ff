"""Key-value recall: pairs of words, then keys whose value is asked for."""

from typing import Literal

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.tasks.prompt import KEYS, NOISE, OPTIONS, VALUES, Prompt, PromptWriter, check_range

Separator = Literal[";", ".", "\n"]


def kv_recall(
    index: int,
    *,
    pairs: int = 8,
    queries: int = 1,
    distractors: int = 0,
    gap: int = 0,
    answer: Literal["value", "letter"] = "value",
    separator: Separator = ";",
    split: str = "train",
    seed: int = 0,
) -> Prompt:
    r"""Pairs ``k v ;`` in any order, noise, and on a new line ``k`` with its ``v`` to be named.

    The asked key is the last token before the answer. With letters, four options ``A v B v C v D v \n`` stand before
    each asked key, and its value's letter is the answer; the wrong options are values of other keys.

    Args:
        index: which example.
        pairs: 1 .. 48, with letters 4 .. 48; their keys are distinct, and so are their values.
        queries: 1 .. pairs distinct keys are asked for.
        distractors: entries among the pairs with a noise word in the place of the key, 0 .. 1024.
        gap: noise words between the pairs and the first query, 0 .. 65,536.
        answer: the value, or the letter of the option that names it.
        separator: ends each entry and each answer.
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence is the pair, and with letters the pair and the option. Choices are the prompt's values, or
        the letters.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if answer not in ("value", "letter"):
        raise ValueError(f"answer must be 'value' or 'letter', got {answer!r}")
    if separator not in (";", ".", "\n"):
        raise ValueError(f"separator must be ';', '.' or a newline, got {separator!r}")
    check_range("pairs", pairs, len(OPTIONS) if answer == "letter" else 1, len(KEYS))
    check_range("queries", queries, 1, pairs)
    check_range("distractors", distractors, 0, 1024)
    check_range("gap", gap, 0, 65_536)

    draw = Draw("kv_recall", split, seed, index)
    known = dict(zip(draw.sample(KEYS, pairs), draw.sample(VALUES, pairs), strict=True))
    values = list(known.values())
    entries = list(known.items()) + [(draw.choice(NOISE), draw.choice(VALUES)) for _ in range(distractors)]

    writer = PromptWriter()
    pair_at = {}
    for word, value in draw.shuffle(entries):
        pair_at[word] = writer.write(word, value)
        writer.write(separator)
    writer.write(*(draw.choice(NOISE) for _ in range(gap)), "\n")
    for key in draw.sample(list(known), queries):
        if answer == "value":
            writer.write(key)
            writer.answer(known[key], [pair_at[key]])
        else:
            wrong = draw.sample([value for value in values if value != known[key]], len(OPTIONS) - 1)
            options = draw.shuffle([known[key], *wrong])
            option_at = [writer.write(letter, value) for letter, value in zip(OPTIONS, options, strict=True)]
            writer.write("\n", key)
            right = options.index(known[key])
            writer.answer(OPTIONS[right], [pair_at[key], option_at[right]])
        writer.write(separator)
    return writer.prompt(OPTIONS if answer == "letter" else values)
