"""ReasonSeg (Lai et al., CVPR 2024): pictures with a mask that a question asks for, and SESAME's false premises."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from attn.shared_eval.data.benchmarks.files import checked, checked_list, read_json, write_image, write_json
from attn.shared_eval.data.benchmarks.segmentation import polygons
from attn.shared_eval.data.shapesworld.referring import referring
from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene

IGNORED = 255
"""The value of pixels that count nowhere."""


class FalsePremise(NamedTuple):
    """A question about something that the picture does not show, and what to answer."""

    question: str
    is_sentence: bool
    answer: str


class ReasonSegItem(NamedTuple):
    """An item of ReasonSeg.

    Attributes:
        name: of its files.
        path: of the picture.
        texts: questions or phrases that mean the same; evaluation takes the first.
        is_sentence: whether they are sentences (long queries) rather than phrases (short queries).
        shapes: label and points ``[points, 2]`` of the polygons that are not deprecated, in the order of the file.
        false_premises: empty but in SESAME's version.
    """

    name: str
    path: Path
    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[tuple[str, np.ndarray], ...]
    false_premises: tuple[FalsePremise, ...]

    def target(self) -> np.ndarray:
        """1 in the target, 255 in what is ignored, 0 elsewhere: uint8 of the picture's ``[height, width]``.

        Polygons are painted from the largest to the smallest, their outlines included, on coordinates without their
        fractions. The release paints with OpenCV, whose slanting outlines can differ by a pixel.

        Raises:
            FileNotFoundError: if the picture is missing.
        """
        with Image.open(self.path) as picture:
            canvas = Image.new("L", picture.size)
        painted = []
        for label, points in self.shapes:
            corners = [(int(x), int(y)) for x, y in points.tolist()]
            alone = Image.new("L", canvas.size)
            ImageDraw.Draw(alone).polygon(corners, fill=1, outline=1)
            painted.append((int(np.asarray(alone).sum()), corners, IGNORED if "ignore" in label.lower() else 1))
        pen = ImageDraw.Draw(canvas)
        for _, corners, value in sorted(painted, key=lambda shape: -shape[0]):
            pen.polygon(corners, fill=value, outline=value)
        return np.asarray(canvas).copy()


def read_reasonseg(folder: str | Path, split: str) -> list[ReasonSegItem]:
    """The items of a split, in the order of their names.

    Args:
        folder: holds ``<split>/<name>.jpg`` and ``<split>/<name>.json`` (``ReasonSeg`` in the release).
        split: ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: if the split or a picture is missing.
        ValueError: naming the file and the key that is not as it must be.
    """
    files = sorted(Path(folder, split).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{Path(folder, split)} must hold pairs of .jpg and .json files, got none")
    return [_item(file) for file in files]


def _item(file: Path) -> ReasonSegItem:
    path = file.with_suffix(".jpg")
    if not path.exists():
        raise FileNotFoundError(f"{file} must have a picture {path.name} beside it, got none")
    fields = {"shapes": list, "text": list, "is_sentence": bool}
    content = checked(read_json(file, encodings=("utf-8", "cp1252")), fields, str(file))
    texts = content["text"]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{file} must have a 'text' of one string or more, got {texts}")
    shapes = []
    for number, shape in enumerate(checked_list(content["shapes"], {"label": str, "points": list}, f"{file}: shapes")):
        if shape["label"].lower() == "flag":  # deprecated in the release
            continue
        try:
            points = np.asarray(shape["points"], dtype=np.float64)
        except (ValueError, TypeError):
            points = np.zeros(0)
        if points.ndim != 2 or len(points) < 2 or points.shape[1] != 2:
            raise ValueError(f"{file}: shapes[{number}] must have 'points' of two numbers each, got {shape['points']}")
        shapes.append((shape["label"], points))
    false = []
    for entry in content.get("false_premise_QA", ()):
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, bool, str]:
            raise ValueError(f"{file} must have a 'false_premise_QA' of question, is_sentence, answer, got {entry}")
        false.append(FalsePremise(*entry))
    return ReasonSegItem(file.stem, path, tuple(texts), content["is_sentence"], tuple(shapes), tuple(false))


def write_reasonseg(folder: str | Path, scenes: Sequence[Scene], size: int, split: str = "val") -> None:
    """Writes a reasoning expression of each scene that admits one, as a long query, each annotation last and whole.

    The others have an expression by attributes, a short query. The entries of SESAME's ``false_premise_QA`` are the
    expressions that nothing fits.

    Args:
        folder: made if it is missing.
        scenes: those without any expression are left out.
        size: pixels along a side.
        split: its name.
    """
    for scene in scenes:
        said = referring(scene, ["reasoning", "attribute"])
        if not said:
            continue
        picture = render(scene, size)
        name = f"{scene.family}_{scene.split}_{scene.seed}_{scene.index}"
        write_image(Path(folder, split, f"{name}.jpg"), picture.image)
        target = said[0].target or 0
        outlines = polygons(picture.masks()[target], through_centers=True)
        content = {
            "text": [said[0].text],
            "is_sentence": said[0].kind == "reasoning",
            "shapes": [
                {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": outline.tolist()}
                for outline in outlines
            ],
            "false_premise_QA": [
                [false.text, False, f"there is no {false.text.removeprefix('the ')}"]
                for false in referring(scene, ["false_premise"], each=2)
            ],
        }
        write_json(Path(folder, split, f"{name}.json"), content)
