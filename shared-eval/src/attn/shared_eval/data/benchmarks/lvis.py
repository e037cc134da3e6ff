"""LVIS v1 (Gupta et al., CVPR 2019): many categories, of which each image is searched for a few."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attn.shared_eval.data.benchmarks.coco import CocoImage, annotation_records, image_record, instances
from attn.shared_eval.data.benchmarks.files import Record, checked_list, read_json, write_image, write_json
from attn.shared_eval.data.shapesworld.grammar import COLORS, HELD_OUT, KINDS
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene

_NAMES = [f"{color}_{kind}" for kind in KINDS for color in COLORS]


class LvisCategory(NamedTuple):
    """A category of LVIS.

    Attributes:
        id: its number.
        name: with underscores for spaces.
        synonyms: names, its own among them.
        frequency: ``"r"``, ``"c"`` or ``"f"``: on fewer than 10, on 10 to 100, on more than 100 training images.
    """

    id: int
    name: str
    synonyms: tuple[str, ...]
    frequency: str


class LvisImage(NamedTuple):
    """An image of LVIS.

    Attributes:
        image: its objects, whose categories are names.
        negative: numbers of categories that are known to be absent.
        not_exhaustive: numbers of categories of which not every instance is annotated.
    """

    image: CocoImage
    negative: frozenset[int]
    not_exhaustive: frozenset[int]


def read_lvis(file: str | Path, images: str | Path) -> tuple[list[LvisImage], list[LvisCategory]]:
    """The images and the categories of a file such as ``lvis_v1_val.json``.

    A detection of a category that is neither annotated nor negative in an image counts nowhere.

    Args:
        file: of annotations; some copies of minival hold boxes only.
        images: holds COCO's folders ``train2017`` and ``val2017``.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    file, images = Path(file), Path(images)
    content = read_json(file)
    fields = {"coco_url": str, "neg_category_ids": list, "not_exhaustive_category_ids": list}
    rows, objects, categories = instances(content, file, fields)
    fields = {"frequency": str, "synonyms": list}
    for number, row in enumerate(checked_list(list(categories.values()), fields, f"{file}: categories")):
        if row["frequency"] not in ("r", "c", "f"):
            place = f"{file}: categories[{number}]"
            raise ValueError(f"{place} must have a 'frequency' of r, c or f, got {row['frequency']!r}")
    return (
        [
            LvisImage(
                CocoImage(
                    number,
                    images.joinpath(*row["coco_url"].split("/")[-2:]),
                    row["height"],
                    row["width"],
                    tuple(objects[number]),
                ),
                frozenset(row["neg_category_ids"]),
                frozenset(row["not_exhaustive_category_ids"]),
            )
            for number, row in rows.items()
        ],
        [
            LvisCategory(number, row["name"], tuple(row["synonyms"]), row["frequency"])
            for number, row in categories.items()
        ],
    )


def write_lvis(folder: str | Path, scenes: Sequence[Scene], size: int, *, negatives: int = 10) -> Path:
    """Writes scenes as ``lvis_v1_val.json`` and pictures in ``val2017``, every file whole; returns the file.

    Categories are the 120 pairs of color and kind. The held-out pairs are rare, the others frequent: it is the training
    images that frequency speaks of.

    Args:
        folder: made if it is missing.
        scenes: numbered from 1.
        size: pixels along a side.
        negatives: absent categories listed for an image, drawn from the scene; all objects are annotated.
    """
    folder = Path(folder)
    images: list[Record] = []
    annotations: list[Record] = []
    on_images: Counter[int] = Counter()
    for number, scene in enumerate(scenes, start=1):
        picture = render(scene, size)
        name = f"{number:012d}.jpg"
        write_image(folder / "val2017" / name, picture.image)
        records = annotation_records(
            picture, number, len(annotations) + 1, lambda kind, color: _NAMES.index(f"{color}_{kind}") + 1
        )
        present = {record["category_id"] for record in records}
        absent = [category for category in range(1, len(_NAMES) + 1) if category not in present]
        image = image_record(number, name, size) | {
            "coco_url": f"http://images.cocodataset.org/val2017/{name}",
            "neg_category_ids": sorted(scene.draw("lvis").shuffle(absent)[:negatives]),
            "not_exhaustive_category_ids": [],
        }
        del image["file_name"]  # LVIS has none
        images.append(image)
        annotations += [{key: value for key, value in record.items() if key != "iscrowd"} for record in records]
        on_images.update(present)
    counts = Counter(record["category_id"] for record in annotations)
    categories = []
    for number, name in enumerate(_NAMES, start=1):
        color, kind = name.split("_")
        categories.append(
            {
                "id": number,
                "name": name,
                "synonyms": [name],
                "synset": f"{name}.n.01",
                "def": f"a {kind} that is {color}",
                "frequency": "r" if (kind, color) in HELD_OUT else "f",
                "image_count": on_images[number],
                "instance_count": counts[number],
            }
        )
    head = {"info": {"description": "ShapesWorld"}, "licenses": []}
    file = folder / "lvis_v1_val.json"
    write_json(file, {**head, "images": images, "annotations": annotations, "categories": categories})
    return file
