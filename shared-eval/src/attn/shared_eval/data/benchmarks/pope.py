"""POPE (Li et al., EMNLP 2023): is there such an object in the image?"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.data.benchmarks.files import Fields, Record, checked, read_lines, write_image
from attn.shared_eval.data.shapesworld.grammar import KINDS, article
from attn.shared_eval.data.shapesworld.questions import NEGATIVES
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene

_FIELDS: Fields = {"question_id": (int, str), "image": str, "text": str, "label": str}


class PopeQuestion(NamedTuple):
    """A question of POPE.

    Attributes:
        id: its number in the file.
        image: name of the picture.
        text: as it is asked.
        label: whether the right answer is yes.
        negatives: how the absent objects of the file were chosen, one of `NEGATIVES`.
    """

    id: int
    image: str
    text: str
    label: bool
    negatives: str


def read_pope(folder: str | Path, source: str = "coco", negatives: Sequence[str] = NEGATIVES) -> list[PopeQuestion]:
    """The questions of ``<source>_pope_random.json`` and of its siblings, an object a line, in the order given.

    Args:
        folder: holds the files; endings ``.json`` and ``.jsonl`` are both in use.
        source: ``coco``, ``aokvqa`` or ``gqa``.
        negatives: which files.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    found = []
    for kind in negatives:
        if kind not in NEGATIVES:
            raise ValueError(f"negatives must be some of {', '.join(NEGATIVES)}, got {kind!r}")
        file = Path(folder, f"{source}_pope_{kind}.json")
        file = file if file.exists() else file.with_suffix(".jsonl")
        for place, row in read_lines(file):
            checked(row, _FIELDS, place)
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"{place} must have a 'label' of yes or no, got {row['label']!r}")
            yes = row["label"] == "yes"
            found.append(PopeQuestion(int(row["question_id"]), row["image"], row["text"], yes, kind))
    return found


def write_pope(folder: str | Path, scenes: Sequence[Scene], size: int, *, source: str = "coco", pairs: int = 3) -> None:
    """Writes the three files and the pictures in ``val2014``, the questions last, every file whole.

    Half of the questions are about kinds in the picture. After each comes one about an absent kind that was not asked
    before: random; the most frequent of all scenes; or the one that most often comes with the kind asked before.

    Args:
        folder: made if it is missing.
        scenes: numbered from 1.
        size: pixels along a side.
        source: first word of the files' names.
        pairs: of questions on an image, as far as it has kinds; 3 in the original.
    """
    folder = Path(folder)
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(1, len(scenes) + 1)]
    for name, scene in zip(names, scenes, strict=True):
        write_image(folder / "val2014" / name, render(scene, size).image)
    kinds = [tuple(dict.fromkeys(shape.kind for shape in scene.objects)) for scene in scenes]
    frequency = Counter(kind for present in kinds for kind in present)
    together = Counter((a, b) for present in kinds for a in present for b in present if a != b)
    for negatives in NEGATIVES:
        lines: list[Record] = []
        for name, scene, present in zip(names, scenes, kinds, strict=True):
            draw = scene.draw("pope", negatives)
            absent = draw.shuffle([kind for kind in KINDS if kind not in present])
            for kind in draw.shuffle(list(present))[:pairs]:
                if negatives == "popular":
                    absent.sort(key=lambda other: -frequency[other])
                elif negatives == "adversarial":
                    absent.sort(key=lambda other, kind=kind: -together[kind, other])  # type: ignore[misc]
                for asked, label in ((kind, "yes"), (absent.pop(0), "no")):
                    text = f"Is there {article(asked)} {asked} in the image?"
                    lines.append({"question_id": len(lines) + 1, "image": name, "text": text, "label": label})
        content = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_whole(folder / f"{source}_pope_{negatives}.json", content)
