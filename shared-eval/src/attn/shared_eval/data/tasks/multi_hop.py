"""Multi-hop reading: a paragraph's key has a value, or that of an earlier paragraph's key."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.tasks.prompt import KEYS, NOISE, VALUES, Prompt, PromptWriter, Span, check_range


def multi_hop(
    index: int,
    *,
    paragraphs: int = 8,
    hops: int = 2,
    queries: int = 1,
    filler: tuple[int, int] = (2, 8),
    split: str = "train",
    seed: int = 0,
) -> Prompt:
    r"""Paragraphs ``k : n n k v n .`` on lines of their own, and below them keys whose final value is asked for.

    A paragraph opens with its key and a colon and states once, between noise words ``n``, what its key stands for: a
    value, or the key of an earlier paragraph ("the value of A is the value of B"), whose value it then has. So the
    value of a key that is ``hops`` statements away can be carried forward paragraph by paragraph.

    Args:
        index: which example.
        paragraphs: 1 .. 48.
        hops: statements from an asked key to its value, 1 .. 4 and at most paragraphs.
        queries: keys that are asked for, each at the end of a chain of its own, 1 .. paragraphs // hops.
        filler: fewest and most noise words of a paragraph, 0 .. 4096; how many is drawn for each.
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence is the statements from the asked key to the value. Choices are the prompt's values.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_range("paragraphs", paragraphs, 1, len(KEYS))
    check_range("hops", hops, 1, min(4, paragraphs))
    check_range("queries", queries, 1, paragraphs // hops)
    shortest, longest = filler
    check_range("filler[0]", shortest, 0, 4096)
    check_range("filler[1]", longest, shortest, 4096)

    draw = Draw("multi_hop", split, seed, index)
    keys = draw.sample(KEYS, paragraphs)
    order = draw.shuffle(range(paragraphs))
    chains = [sorted(order[first : first + hops]) for first in range(0, paragraphs, hops)]
    values = draw.sample(VALUES, len(chains))
    stated: dict[int, str] = {}
    for chain, value in zip(chains, values, strict=True):
        stated |= dict(zip(chain, [value, *(keys[place] for place in chain)], strict=False))

    writer = PromptWriter()
    statement_at: list[Span] = []
    for place, key in enumerate(keys):
        noise = [draw.choice(NOISE) for _ in range(shortest + draw.integer(longest - shortest + 1))]
        before = draw.integer(len(noise) + 1)
        writer.write(key, ":", *noise[:before])
        statement_at.append(writer.write(key, stated[place]))
        writer.write(*noise[before:], ".", "\n")
    whole = [number for number, chain in enumerate(chains) if len(chain) == hops]
    for number in draw.sample(whole, queries):
        writer.write(keys[chains[number][-1]])
        writer.answer(values[number], [statement_at[place] for place in reversed(chains[number])])
        writer.write("\n")
    return writer.prompt(values)
