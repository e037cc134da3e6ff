"""COCO (Lin et al., ECCV 2014): instances and captions."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attn.shared_eval.data.benchmarks.files import (
    Fields,
    Record,
    checked,
    checked_list,
    linked,
    read_json,
    write_image,
    write_json,
)
from attn.shared_eval.data.benchmarks.segmentation import decode_segmentation, polygons
from attn.shared_eval.data.shapesworld.captions import caption
from attn.shared_eval.data.shapesworld.grammar import KINDS
from attn.shared_eval.data.shapesworld.renderer import Picture, render
from attn.shared_eval.data.shapesworld.scene import Scene

_IMAGE = {"id": int, "height": int, "width": int}
_ANNOTATION: Fields = {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": (int, float)}
_CATEGORY = {"id": int, "name": str}


class CocoObject(NamedTuple):
    """An annotated object.

    Attributes:
        id: of the annotation.
        category: its name.
        box: left, top, width, height in pixels.
        area: in pixels.
        crowd: whether it stands for a group that is not told apart.
        segmentation: polygons or run lengths, see `decode_segmentation`; None in files of boxes.
    """

    id: int
    category: str
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Any


class CocoImage(NamedTuple):
    """An image of COCO with what is known of it.

    Attributes:
        id: its number.
        path: of the picture; not looked for.
        height, width: in pixels.
        objects: in the order of the file.
        captions: none unless asked for.
    """

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[CocoObject, ...]
    captions: tuple[str, ...] = ()

    def masks(self) -> np.ndarray:
        """The masks of the objects: bool ``[objects, height, width]``.

        Raises:
            ValueError: if an object has no segmentation, or a bad one.
            ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
        """
        masks = np.zeros((len(self.objects), self.height, self.width), dtype=bool)
        for mask, entry in zip(masks, self.objects, strict=True):
            mask[:] = decode_segmentation(entry.segmentation, self.height, self.width)
        return masks


def read_coco(folder: str | Path, split: str, *, captions: bool = False) -> list[CocoImage]:
    """The images of a split with their objects, in the order of the file.

    Args:
        folder: holds ``annotations/instances_<split>.json``, ``annotations/captions_<split>.json`` and the pictures
            in ``<split>``.
        split: ``val2014`` and the like.
        captions: whether the captions are read too.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    folder = Path(folder)
    file = folder / "annotations" / f"instances_{split}.json"
    content = read_json(file)
    said: dict[int, list[str]] = defaultdict(list)
    if captions:
        captions_file = file.with_name(f"captions_{split}.json")
        place = f"{captions_file}: annotations"
        rows = checked(read_json(captions_file), {"annotations": list}, str(captions_file))["annotations"]
        for row in checked_list(rows, {"image_id": int, "caption": str}, place):
            said[row["image_id"]].append(row["caption"])
    images, objects, _ = instances(content, file, {"file_name": str})
    return [
        CocoImage(
            number,
            folder / split / image["file_name"],
            image["height"],
            image["width"],
            tuple(objects[number]),
            tuple(said[number]),
        )
        for number, image in images.items()
    ]


def instances(
    content: Any, file: Path, image_fields: Mapping[str, type]
) -> tuple[dict[int, Record], dict[int, list[CocoObject]], dict[int, Record]]:
    """Images by id, objects by image, categories by id, of a file like COCO's ``instances``.

    Args:
        content: of the file.
        file: its name, for errors.
        image_fields: keys that an image must have beside its number and size.

    Raises:
        ValueError: naming the file and the key that is not as it must be.
    """
    tables = checked(content, {"images": list, "annotations": list, "categories": list}, str(file))
    images = {row["id"]: row for row in checked_list(tables["images"], {**_IMAGE, **image_fields}, f"{file}: images")}
    categories = {row["id"]: row for row in checked_list(tables["categories"], _CATEGORY, f"{file}: categories")}
    objects: dict[int, list[CocoObject]] = {number: [] for number in images}
    for number, row in enumerate(checked_list(tables["annotations"], _ANNOTATION, f"{file}: annotations")):
        place = f"{file}: annotations[{number}]"
        linked(images, row, "image_id", place)
        category = linked(categories, row, "category_id", place)["name"]
        if len(row["bbox"]) != 4:
            raise ValueError(f"{place} must have a 'bbox' of left, top, width, height, got {row['bbox']}")
        entry = CocoObject(
            row["id"],
            category,
            tuple(row["bbox"]),
            row["area"],
            bool(row.get("iscrowd", 0)),
            row.get("segmentation"),
        )
        objects[row["image_id"]].append(entry)
    return images, objects, categories


def write_coco(
    folder: str | Path, scenes: Sequence[Scene], size: int, split: str = "val2014", *, captions: int = 5
) -> None:
    """Writes scenes as a split of COCO, their kinds as categories; annotations last, every file whole.

    Args:
        folder: made if it is missing.
        scenes: numbered from 1.
        size: pixels along a side.
        split: its name.
        captions: number of an image; 5 in the original, here with repeats where a scene admits fewer.
    """
    folder = Path(folder)
    images: list[Record] = []
    annotations: list[Record] = []
    texts: list[Record] = []
    for number, scene in enumerate(scenes, start=1):
        picture = render(scene, size)
        name = f"COCO_{split}_{number:012d}.jpg"
        write_image(folder / split / name, picture.image)
        images.append(image_record(number, name, size))
        annotations += annotation_records(picture, number, len(annotations) + 1, lambda kind, _: KINDS.index(kind) + 1)
        said = [caption(scene, variant=variant).text for variant in range(captions)]
        texts += [
            {"id": len(texts) + place, "image_id": number, "caption": text} for place, text in enumerate(said, start=1)
        ]
    head = {"info": {"description": "ShapesWorld"}, "licenses": [], "images": images}
    write_json(folder / "annotations" / f"captions_{split}.json", {**head, "annotations": texts})
    write_json(
        folder / "annotations" / f"instances_{split}.json",
        {**head, "annotations": annotations, "categories": kind_records()},
    )


def image_record(number: int, name: str, size: int) -> Record:
    """The entry of a square image."""
    return {"id": number, "file_name": name, "height": size, "width": size, "license": 0}


def kind_records() -> list[Record]:
    """The kinds of shapes as categories 1 to 12."""
    return [{"id": number, "name": kind, "supercategory": "shape"} for number, kind in enumerate(KINDS, start=1)]


def annotation_records(picture: Picture, image: int, first: int, category: Callable[[str, str], int]) -> list[Record]:
    """The entries of the visible objects of a picture, numbered from ``first``, in order.

    Args:
        picture: what is annotated.
        image: its number.
        first: number of the first annotation.
        category: called with kind and color, gives the number of the category.
    """
    records: list[Record] = []
    for shape, mask, box in zip(picture.scene.objects, picture.masks(), picture.boxes().tolist(), strict=True):
        if mask.any():
            left, top, right, bottom = box
            records.append(
                {
                    "id": first + len(records),
                    "image_id": image,
                    "category_id": category(shape.kind, shape.color),
                    "segmentation": [outline.ravel().tolist() for outline in polygons(mask)],
                    "area": int(mask.sum()),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
    return records
