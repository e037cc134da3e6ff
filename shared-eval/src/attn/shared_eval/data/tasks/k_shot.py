"""Few-shot classification of words, under labels that mean nothing outside the prompt."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.tasks.prompt import KEYS, VALUES, Prompt, PromptWriter, check_range

CATEGORIES = tuple(KEYS[first : first + 6] for first in range(0, len(KEYS), 6))
"""Eight groups of six words that belong together in every prompt."""


def k_shot(
    index: int,
    *,
    shots: int = 4,
    classes: int = 2,
    words: int = 2,
    queries: int = 1,
    split: str = "train",
    seed: int = 0,
) -> Prompt:
    r"""Lines ``w w label``, ``shots`` of each class in any order, then lines whose label is to be named.

    A class is one of the eight categories of words, which are the same in all prompts; its label is a value word drawn
    afresh for each prompt, so that nothing but the examples says which label means which category. A line's words are
    drawn from its category with replacement.

    Args:
        index: which example.
        shots: lines of each class, 1 .. 256.
        classes: 2 .. 8.
        words: of a line, without its label, 1 .. 16.
        queries: lines to be classified, 1 .. 1024; the right label of each stands in the prompt after it.
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.

    Returns:
        Prompt; the evidence is the lines of the right class, in order. Choices are the prompt's labels.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_range("shots", shots, 1, 256)
    check_range("classes", classes, 2, len(CATEGORIES))
    check_range("words", words, 1, 16)
    check_range("queries", queries, 1, 1024)

    draw = Draw("k_shot", split, seed, index)
    categories, labels = draw.sample(CATEGORIES, classes), draw.sample(VALUES, classes)
    writer = PromptWriter()
    lines_of: list[list[tuple[int, int]]] = [[] for _ in range(classes)]
    for kind in draw.shuffle([kind for kind in range(classes) for _ in range(shots)]):
        lines_of[kind].append(writer.write(*(draw.choice(categories[kind]) for _ in range(words)), labels[kind]))
        writer.write("\n")
    for _ in range(queries):
        kind = draw.integer(classes)
        writer.write(*(draw.choice(categories[kind]) for _ in range(words)))
        writer.answer(labels[kind], lines_of[kind])
        writer.write("\n")
    return writer.prompt(labels)
