"""PIE-Bench (Ju et al., ICLR 2024): edits with their prompts and masks."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from attn.shared_eval.data.benchmarks.files import checked, read_json, write_image, write_json
from attn.shared_eval.data.shapesworld.edits import Edit
from attn.shared_eval.data.shapesworld.renderer import render, run_lengths

TYPE_IDS = {
    "change_object": "1",
    "add": "2",
    "delete": "3",
    "change_color": "6",
    "change_pattern": "7",
    "change_background": "8",
    "change_style": "9",
}
"""PIE-Bench's numbers of edit types; a pattern counts as a material. It also has 0, 4 (content) and 5 (pose)."""

_FIELDS = {
    "image_path": str,
    "original_prompt": str,
    "editing_prompt": str,
    "editing_instruction": str,
    "editing_type_id": str,
    "blended_word": str,
    "mask": list,
}


class PieItem(NamedTuple):
    """An item of PIE-Bench.

    Attributes:
        name: its key.
        image: the source, uint8 ``[height, width, 3]``.
        target: the right result, likewise; None where the folder has none, as in the original.
        original_prompt, editing_prompt: with brackets around the words that differ.
        editing_instruction: in words.
        editing_type_id: see `TYPE_IDS`.
        blended_word: two words with a space between them, or empty.
        mask: of the edited region, bool ``[height, width]``.
    """

    name: str
    image: np.ndarray
    target: np.ndarray | None
    original_prompt: str
    editing_prompt: str
    editing_instruction: str
    editing_type_id: str
    blended_word: str
    mask: np.ndarray


def write_pie(folder: str | Path, edits: Sequence[Edit], size: int) -> None:
    """Writes edits as ``mapping_file.json`` and PNG pictures in ``annotation_images`` and ``target_images``.

    The last folder, with the right results, is not part of the original format. The mapping is written last and
    replaced as a whole, so that a folder that has one is complete.

    Args:
        folder: made if it is missing.
        edits: numbered from 0.
        size: pixels along a side; 512 in the original.
    """
    folder = Path(folder)
    mapping = {}
    for number, edit in enumerate(edits):
        key = f"{number:012d}"
        path = f"{TYPE_IDS[edit.kind]}_{edit.kind}/{key}.png"
        for name, scene in (("annotation_images", edit.source), ("target_images", edit.target)):
            write_image(folder / name / path, render(scene, size).image)
        mapping[key] = {
            "image_path": path,
            "original_prompt": edit.marked_source,
            "editing_prompt": edit.marked_target,
            "editing_instruction": edit.instruction,
            "editing_type_id": TYPE_IDS[edit.kind],
            "blended_word": " ".join(edit.blended),
            "mask": _encoded(edit.mask(size)),
        }
    write_json(folder / "mapping_file.json", mapping)


def read_pie(folder: str | Path, *, edited_border: bool = False) -> list[PieItem]:
    """The items of a folder in PIE-Bench's format, in the order of their keys.

    Args:
        folder: holds ``mapping_file.json`` and ``annotation_images``.
        edited_border: whether the outermost pixels belong to every mask, as the release's evaluation has it.

    Raises:
        FileNotFoundError: if the mapping or a picture is missing.
        ValueError: naming the file and the key that is not as it must be, or if a mask does not fit its picture.
    """
    folder = Path(folder)
    file = folder / "mapping_file.json"
    items = []
    for key, entry in sorted(checked(read_json(file), {}, str(file)).items()):
        row = checked(entry, _FIELDS, f"{file}: {key}")
        image = np.asarray(Image.open(folder / "annotation_images" / row["image_path"]).convert("RGB"))
        result = folder / "target_images" / row["image_path"]
        target = np.asarray(Image.open(result).convert("RGB")) if result.exists() else None
        mask = _decoded(f"{file}: {key}", row["mask"], image.shape[:2])
        if edited_border:
            mask[[0, -1]] = mask[:, [0, -1]] = True
        fields = {name: row[name] for name in PieItem._fields if name in _FIELDS and name != "mask"}
        items.append(PieItem(name=key, image=image, target=target, mask=mask, **fields))
    return items


def bracketed_words(prompt: str) -> tuple[list[str], list[int]]:
    """The words of a prompt, and the positions of those within brackets."""
    found: list[str] = []
    marked: list[int] = []
    inside = False
    for part in re.findall(r"[\[\]]|[^\s\[\]]+", prompt):
        if part in "[]":
            inside = part == "["
        else:
            if inside:
                marked.append(len(found))
            found.append(part)
    return found, marked


def _encoded(mask: np.ndarray) -> list[int]:
    """Pairs of start and length of the runs of True, row by row."""
    counts = run_lengths(mask)
    starts = np.cumsum([0, *counts])
    return [int(n) for i in range(1, len(counts), 2) for n in (starts[i], counts[i])]


def _decoded(place: str, pairs: list[int], shape: tuple[int, ...]) -> np.ndarray:
    flat = np.zeros(int(np.prod(shape)), dtype=bool)
    if len(pairs) % 2 or any(start < 0 or start >= flat.size for start in pairs[::2]):
        raise ValueError(f"{place} must have a 'mask' of starts below {flat.size} and lengths, got {pairs[:6]} ...")
    for start, length in zip(pairs[::2], pairs[1::2], strict=True):
        flat[start : start + length] = True
    return flat.reshape(shape)
