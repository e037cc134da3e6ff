"""AMBER (Wang et al., 2023, arXiv 2311.07397): descriptions and yes-or-no questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.data.benchmarks.files import (
    Record,
    checked,
    checked_list,
    linked,
    read_json,
    write_image,
    write_json,
)
from attn.shared_eval.data.shapesworld.grammar import COLORS, KINDS, PARTNERS, article, plural
from attn.shared_eval.data.shapesworld.phrases import number_word
from attn.shared_eval.data.shapesworld.questions import questions
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene
from attn.shared_eval.metrics.amber import AMBER_KINDS

_KINDS = tuple(dict.fromkeys(AMBER_KINDS.values()))
_QUERIES = {
    "all": ("generative", *_KINDS),
    "generative": ("generative",),
    "discriminative": _KINDS,
    "discriminative-existence": ("existence",),
    "discriminative-attribute": ("state", "number", "action"),
    "discriminative-relation": ("relation",),
}


class AmberDescription(NamedTuple):
    """A picture to be described.

    Attributes:
        id: its number.
        image: name of the picture.
        text: the request.
        truth: objects in the picture.
        hallucinated: objects that people would expect, wrongly.
    """

    id: int
    image: str
    text: str
    truth: tuple[str, ...]
    hallucinated: tuple[str, ...]


class AmberQuestion(NamedTuple):
    """A yes-or-no question.

    Attributes:
        id: its number.
        image: name of the picture.
        text: as it is asked.
        kind: a value of `AMBER_KINDS`.
        label: whether the right answer is yes.
    """

    id: int
    image: str
    text: str
    kind: str
    label: bool


def read_amber(folder: str | Path, queries: str = "all") -> list[AmberDescription | AmberQuestion]:
    """The requests and questions of one file, with what is true, in the order of the file.

    Args:
        folder: the release's ``data``, which holds ``annotations.json`` and ``query``.
        queries: ``all``, ``generative``, ``discriminative``, or ``discriminative-existence`` (``-attribute``,
            ``-relation``).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    file = Path(folder, "annotations.json")
    annotations = {}
    for number, row in enumerate(checked_list(read_json(file), {"id": int, "type": str}, str(file))):
        place = f"{file}[{number}]"
        if row["type"] == "generative":
            checked(row, {"truth": list, "hallu": list}, place)
        elif row["type"] not in AMBER_KINDS or row.get("truth") not in ("yes", "no"):
            kinds = ", ".join(("generative", *AMBER_KINDS))
            got = f"{row['type']!r} and {row.get('truth')!r}"
            raise ValueError(f"{place} must have a 'type' of {kinds} and a 'truth' of yes or no, got {got}")
        annotations[row["id"]] = row
    file = Path(folder, "query", f"query_{queries}.json")
    items: list[AmberDescription | AmberQuestion] = []
    fields = {"id": int, "image": str, "query": str}
    for number, row in enumerate(checked_list(read_json(file), fields, str(file))):
        known = linked(annotations, row, "id", f"{file}[{number}]")
        asked = row["id"], row["image"], row["query"]
        if known["type"] == "generative":
            items.append(AmberDescription(*asked, tuple(known["truth"]), tuple(known["hallu"])))
        else:
            items.append(AmberQuestion(*asked, AMBER_KINDS[known["type"]], known["truth"] == "yes"))
    return items


def write_amber(folder: str | Path, scenes: Sequence[Scene], size: int) -> None:
    """Writes scenes as the release's ``data`` and pictures in ``image``, the annotations last, every file whole.

    Descriptions have the partners of what is there, where absent, for expected hallucinations, which are also what is
    asked for by existence; colors and numbers are asked for in pairs of yes and no; relations once. Nothing acts.

    Args:
        folder: made if it is missing.
        scenes: numbered from 1.
        size: pixels along a side.
    """
    folder = Path(folder)
    names = [f"AMBER_{number}.jpg" for number in range(1, len(scenes) + 1)]
    described: list[tuple[str, str, Record]] = []
    asked: dict[str, list[tuple[str, str, Record]]] = {kind: [] for kind in AMBER_KINDS}

    def ask(name: str, text: str, kind: str, truth: bool) -> None:
        asked[kind].append((name, text, {"type": kind, "truth": "yes" if truth else "no"}))

    for name, scene in zip(names, scenes, strict=True):
        write_image(folder / "image" / name, render(scene, size).image)
        kinds = [shape.kind for shape in scene.objects]
        expected = [kind for kind in dict.fromkeys(PARTNERS[kind] for kind in kinds) if kind not in kinds]
        known = {"type": "generative", "truth": list(dict.fromkeys(kinds)), "hallu": expected}
        described.append((name, "Describe this image.", known))
        for kind in expected:
            ask(name, f"Is there {article(kind)} {kind} in this image?", "discriminative-hallucination", False)
        draw = scene.draw("amber")
        for shape in scene.objects:
            number = kinds.count(shape.kind)
            if number == 1 and scene.has_color:
                other = draw.choice([color for color in COLORS if color != shape.color])
                for color in (shape.color, other):
                    text = f"Is the {shape.kind} {color} in this image?"
                    ask(name, text, "discriminative-attribute-state", color == shape.color)
        for kind in dict.fromkeys(kinds):
            for number in (kinds.count(kind), kinds.count(kind) + 1):
                words = f"Is there one {kind}" if number == 1 else f"Are there {number_word(number)} {plural(kind)}"
                text = f"{words} in this image?"
                ask(name, text, "discriminative-attribute-number", number == kinds.count(kind))
        for question in questions(scene, ["relation"], each=2):
            text = f"{question.text[0].upper()}{question.text[1:]} in this image?"
            truth = question.answer == "yes"
            ask(name, text, "discriminative-relation" if truth else "relation", truth)
    rows = described + [row for rows in asked.values() for row in rows]
    for file, chosen in _QUERIES.items():
        content = [
            {"id": number, "image": name, "query": text}
            for number, (name, text, known) in enumerate(rows, start=1)
            if AMBER_KINDS.get(known["type"], known["type"]) in chosen
        ]
        write_json(folder / "query" / f"query_{file}.json", content)
    write_json(folder / "relation.json", {kind: [] for kind in KINDS})
    write_whole(folder / "safe_words.txt", "")
    write_json(folder / "annotations.json", [{"id": number, **row[2]} for number, row in enumerate(rows, start=1)])
