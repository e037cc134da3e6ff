"""RefCOCO, RefCOCO+, RefCOCOg (Yu et al., ECCV 2016; Mao et al., CVPR 2016), also with false premises."""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.data.benchmarks.coco import annotation_records, image_record, instances, kind_records
from attn.shared_eval.data.benchmarks.files import (
    Fields,
    Record,
    checked_list,
    linked,
    read_json,
    write_image,
    write_json,
)
from attn.shared_eval.data.benchmarks.segmentation import decode_segmentation
from attn.shared_eval.data.shapesworld.grammar import KINDS
from attn.shared_eval.data.shapesworld.referring import referring
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene

_IMAGES = Path("images", "mscoco", "images", "train2014")
_REF: Fields = {"ref_id": int, "ann_id": (int, list), "image_id": int, "split": str, "sentences": list}
_SENTENCE = {"sent_id": int, "sent": str}


class Reference(NamedTuple):
    """A sentence that refers to an object of an image, or claims to.

    Attributes:
        id: of the sentence.
        ref: number of the referred object; its sentences share it.
        path: of the picture; not looked for.
        height, width: in pixels.
        text: lower-case and without punctuation.
        raw: as it was typed.
        exists: whether there is such an object (FP-RefCOCO, R-RefCOCO; always in the originals).
        true_text: what a sentence with a false premise was made from, or None.
        segmentations: of the target, see `decode_segmentation`; several in the variants with several targets.
    """

    id: int
    ref: int
    path: Path
    height: int
    width: int
    text: str
    raw: str
    exists: bool
    true_text: str | None
    segmentations: tuple[Any, ...]

    def mask(self) -> np.ndarray:
        """The mask of the target, empty for a false premise: bool ``[height, width]``.

        A pixel in several polygons counts once; the common loader gives it the number of polygons.

        Raises:
            ValueError: if a segmentation is malformed.
            ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
        """
        mask = np.zeros((self.height, self.width), dtype=bool)
        for segmentation in self.segmentations if self.exists else ():
            mask |= decode_segmentation(segmentation, self.height, self.width)
        return mask


class _Plain(pickle.Unpickler):
    """Unpickles lists, dictionaries, text and numbers; nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the class {module}.{name}")


def read_refcoco(
    root: str | Path, dataset: str, split: str, *, split_by: str = "unc", images: str | Path | None = None
) -> list[Reference]:
    """The sentences of a split, one entry each, in the order of the file.

    The pickle of the release is read without running anything that it could hold.

    Args:
        root: holds ``<dataset>/refs(<split_by>).p`` and ``<dataset>/instances.json``.
        dataset: ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: ``train``, ``val``, ``testA``, ``testB`` or ``test``, as it stands in the file.
        split_by: ``unc``, ``umd``, ``google``, or another version such as ``unc_exclude_unified``.
        images: folder of COCO's ``train2014``; None for the release's place under the root.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file and the key that is not as it must be, or if there is no such split.
    """
    root = Path(root)
    images = root / _IMAGES if images is None else Path(images)
    file = root / dataset / "instances.json"
    rows, objects, _ = instances(read_json(file), file, {"file_name": str})
    annotations = {entry.id: entry for entries in objects.values() for entry in entries}
    file = root / dataset / f"refs({split_by}).p"
    try:
        content = _Plain(io.BytesIO(file.read_bytes()), encoding="latin1").load()  # Python 2 wrote the release
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} must be a pickle of lists, dictionaries, text and numbers, got {error}") from error
    references = []
    refs = checked_list(content, _REF, f"{file}: refs")
    for number, ref in enumerate(refs):
        place = f"{file}: refs[{number}]"
        image = linked(rows, ref, "image_id", place)
        targets = [t for t in (ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]) if t != -1]
        found = [linked(annotations, {"ann_id": target}, "ann_id", place).segmentation for target in targets]
        if ref["split"] != split:
            continue
        for sentence in checked_list(ref["sentences"], _SENTENCE, f"{place}: sentences"):
            exists = bool(found) and not sentence.get("is_false_premise", False) and sentence.get("exist", True)
            path = images / image["file_name"]
            text = sentence["sent"]
            size = image["height"], image["width"]
            raw, true_text = str(sentence.get("raw", text)), sentence.get("gt_sent")
            references.append(
                Reference(
                    sentence["sent_id"], ref["ref_id"], path, *size, text, raw, bool(exists), true_text, tuple(found)
                )
            )
    if not references:
        splits = ", ".join(sorted({ref["split"] for ref in refs}))
        raise ValueError(f"split must be one of {splits} in {file}, got {split!r}")
    return references


def write_refcoco(
    root: str | Path,
    splits: Mapping[str, Sequence[Scene]],
    size: int,
    *,
    dataset: str = "refcoco",
    split_by: str = "unc",
    kinds: Sequence[str] = ("attribute", "relation", "superlative", "location"),
) -> None:
    """Writes the referring expressions of scenes as a tree of RefCOCO, every file whole, the expressions last.

    A false premise becomes a sentence of the object that is nearest to it, as in FP-RefCOCO: ``is_false_premise`` and
    ``gt_sent``, a true sentence of the same object or an empty one.

    Args:
        root: made if it is missing.
        splits: scenes by split; images are numbered from 1 through all of them.
        size: pixels along a side.
        dataset: name of the folder.
        split_by: name of the version.
        kinds: of `REFERRING`; with ``false_premise`` the tree is one of FP-RefCOCO.
    """
    root = Path(root)
    images: list[Record] = []
    annotations: list[Record] = []
    refs: list[Record] = []
    sentences = 0
    for split, scenes in splits.items():
        for scene in scenes:
            number = len(images) + 1
            picture = render(scene, size)
            name = f"COCO_train2014_{number:012d}.jpg"
            write_image(root / _IMAGES / name, picture.image)
            images.append(image_record(number, name, size))
            records = annotation_records(picture, number, len(annotations) + 1, lambda kind, _: KINDS.index(kind) + 1)
            visible = [index for index, mask in enumerate(picture.masks()) if mask.any()]
            annotations += records
            said = referring(scene, kinds)
            for index, record in zip(visible, records, strict=True):
                mine = [expression for expression in said if expression.nearest == index]
                true = [expression.text for expression in mine if expression.target is not None]
                entries: list[Record] = []
                for expression in mine:
                    sentences += 1
                    text = expression.text
                    entry: Record = {"sent_id": sentences, "sent": text, "raw": text, "tokens": text.split()}
                    if "false_premise" in kinds:
                        false = expression.target is None
                        entry |= {"is_false_premise": false, "gt_sent": (true or [""])[0] if false else text}
                    entries.append(entry)
                if entries:
                    refs.append(
                        {
                            "ref_id": len(refs) + 1,
                            "ann_id": record["id"],
                            "category_id": record["category_id"],
                            "image_id": number,
                            "file_name": f"{name.removesuffix('.jpg')}_{record['id']}.jpg",
                            "split": split,
                            "sent_ids": [entry["sent_id"] for entry in entries],
                            "sentences": entries,
                        }
                    )
    content = {"info": {"description": "ShapesWorld"}, "licenses": [], "images": images, "annotations": annotations}
    write_json(root / dataset / "instances.json", {**content, "categories": kind_records()})
    write_whole(root / dataset / f"refs({split_by}).p", pickle.dumps(refs, protocol=2))
