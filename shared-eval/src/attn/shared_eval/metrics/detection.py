"""Class-agnostic recall of object proposals, on COCO's own matching."""

import importlib
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, ratio

IOU_THRESHOLDS = tuple(threshold / 100 for threshold in range(50, 100, 5))

SHAPES = {"bbox": "boxes", "segm": "masks"}
"""The key of the shapes that a kind of IoU compares."""


def matched_objects(
    preds: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: Sequence[int] = (1, 10, 100),
) -> tuple[Tensor, int]:
    """How many objects of one image are found, whatever their class, by COCOeval's greedy matching (``useCats=0``).

    Args:
        preds: ``scores`` ``[detections]`` with ``boxes`` ``[detections, 4]`` (x1, y1, x2, y2 in pixels) or ``masks``
            ``[detections, height, width]``, bool.
        target: ``boxes`` or ``masks`` of the objects, and optionally ``iscrowd`` ``[objects]``, whose ones are neither
            counted nor held against a detection.
        iou_type: whether boxes (``"bbox"``) or masks (``"segm"``) are compared.
        max_detections: how many detections, best scores first, may match.

    Returns: the matches, int64 ``[len(max_detections), 10]`` at the IoU thresholds 0.50, 0.55 ... 0.95, and the number
        of objects.

    Raises:
        ValueError: if a key is missing, or shapes do not fit.
        ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
    """
    kind = SHAPES[iou_type]
    for name, given, keys in (("preds", preds, {kind, "scores"}), ("target", target, {kind})):
        if not keys <= given.keys():
            raise ValueError(f"{name} must have {', '.join(sorted(keys))}, got {', '.join(sorted(given))}")
    if len(preds["scores"]) != len(preds[kind]):
        raise ValueError(f"preds must have a score for each of {len(preds[kind])} {kind}, got {len(preds['scores'])}")
    crowd = target.get("iscrowd", torch.zeros(len(target[kind]), dtype=torch.int64))
    truth = coco_annotations(target[kind], kind, iscrowd=crowd)
    found = coco_annotations(preds[kind], kind, score=preds["scores"])
    counted = sum(not annotation["iscrowd"] for annotation in truth)
    matches = torch.zeros(len(max_detections), len(IOU_THRESHOLDS), dtype=torch.int64)
    if not (truth and found):
        return matches, counted
    size = dict(zip(("height", "width"), target["masks"].shape[-2:], strict=True)) if kind == "masks" else {}
    with redirect_stdout(io.StringIO()):  # COCO's classes say what they do
        evaluation = load_pycocotools("cocoeval").COCOeval(_coco(truth, size), _coco(found, size), iou_type)
        evaluation.params.useCats = 0
        evaluation.params.iouThrs = np.array(IOU_THRESHOLDS)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = sorted(max_detections)
        evaluation.evaluate()
    (image,) = evaluation.evalImgs
    right = torch.from_numpy((image["dtMatches"] > 0) & ~image["dtIgnore"].astype(bool))
    for row, most in enumerate(max_detections):
        matches[row] = right[:, :most].sum(1)
    return matches, counted


def coco_annotations(shapes: Tensor, kind: str, **columns: Tensor) -> list[dict[str, Any]]:
    """Boxes or masks as entries of COCO's files, numbered from 1, with further columns.

    Args:
        shapes: see `matched_objects`.
        kind: ``"boxes"`` or ``"masks"``.
        columns: values of each shape, by key.

    Raises:
        ValueError: if shapes are not of their kind's shape.
    """
    if kind == "boxes":
        if shapes.ndim != 2 or shapes.shape[1] != 4:
            raise ValueError(f"boxes must be of shape (number, 4), got {tuple(shapes.shape)}")
        corners = shapes.double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        fields = [{"bbox": box.tolist(), "area": float(box[2] * box[3])} for box in boxes]
    else:
        if shapes.ndim != 3 or shapes.dtype != torch.bool:
            raise ValueError(
                f"masks must be bool of shape (number, height, width), got {shapes.dtype} {tuple(shapes.shape)}"
            )
        encode = load_pycocotools("mask").encode
        fields = [
            {"segmentation": encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))), "area": int(mask.sum())}
            for mask in shapes
        ]
    rows = zip(*(c.tolist() for c in columns.values()), strict=True) if columns else [()] * len(fields)
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return [  # ids start at 1: COCOeval takes a match with 0 for none
        {"id": number, **common, **field, **value}
        for number, (field, value) in enumerate(zip(fields, values, strict=True), start=1)
    ]


def _coco(annotations: list[dict[str, Any]], size: Mapping[str, int]) -> Any:
    coco = load_pycocotools("coco").COCO()
    coco.dataset = {"images": [{"id": 1, **size}], "categories": [{"id": 1}], "annotations": annotations}
    coco.createIndex()
    return coco


def load_pycocotools(module: str) -> ModuleType:
    """A module of pycocotools.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matching objects needs pycocotools: install attn-shared-eval[coco]") from error


class ClassAgnosticRecall(Metric):
    """Recall of objects whatever their class, as COCOeval with ``useCats=0`` and all areas, fractions.

    ``compute`` returns ``ar_1``, ``ar_10``, ``ar_100``, recall with that many detections an image, averaged over the
    IoU thresholds 0.50, 0.55 ... 0.95, and ``ar50`` and ``ar75``, recall at these thresholds with the most detections.
    NaN without objects (COCOeval has -1). The mAR of VL-SAM is ``ar_100``.

    Args:
        iou_type: whether boxes (``"bbox"``) or masks (``"segm"``) are compared.
        max_detections: how many detections an image, best scores first, may match.

    Raises:
        ValueError: if iou_type is neither, or a number of detections is not positive.
    """

    full_state_update = False
    higher_is_better = True
    matched: Tensor
    objects: Tensor

    def __init__(
        self,
        iou_type: Literal["bbox", "segm"] = "bbox",
        *,
        max_detections: Sequence[int] = (1, 10, 100),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if iou_type not in SHAPES:
            raise ValueError(f"iou_type must be bbox or segm, got {iou_type!r}")
        if not max_detections or min(max_detections) < 1:
            raise ValueError(f"max_detections must hold positive numbers, got {tuple(max_detections)}")
        self.iou_type, self.max_detections = iou_type, tuple(max_detections)
        add_counts(self, "matched", shape=(len(self.max_detections), len(IOU_THRESHOLDS)))
        add_counts(self, "objects")

    def update(self, preds: Sequence[Mapping[str, Tensor]], target: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in the detections and the objects of images, see `matched_objects`.

        Raises:
            ValueError: if the lengths differ, a key is missing, or shapes do not fit.
            ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
        """
        if len(preds) != len(target):
            raise ValueError(f"preds and target must be of equal length, got {len(preds)} and {len(target)}")
        for found, truth in zip(preds, target, strict=True):
            matches, objects = matched_objects(found, truth, iou_type=self.iou_type, max_detections=self.max_detections)
            self.matched += matches.to(self.matched.device)
            self.objects += objects

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        recall = ratio(self.matched, self.objects)
        most = recall[self.max_detections.index(max(self.max_detections))]
        return {
            **{f"ar_{number}": row.mean() for number, row in zip(self.max_detections, recall, strict=True)},
            "ar50": most[IOU_THRESHOLDS.index(0.5)],
            "ar75": most[IOU_THRESHOLDS.index(0.75)],
        }
