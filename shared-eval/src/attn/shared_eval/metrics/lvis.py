"""Average precision on LVIS with a fixed number of detections of each category."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.detection import IOU_THRESHOLDS, SHAPES, coco_annotations, load_pycocotools
from attn.shared_eval.metrics.states import add_counts

FREQUENCIES = ("r", "c", "f")

_RECALLS = np.linspace(0, 1, 101)


class LvisFixedAP(Metric):
    """LVIS's AP on the 10,000 best detections of each category in the whole data set, fractions.

    Dave et al. (2021, arXiv 2102.01066), section 4, instead of the 300 best of each image. ``compute`` returns
    ``ap``, averaged over the IoU thresholds 0.50, 0.55 ... 0.95, 101 recalls, and the categories that have objects;
    ``ap50``, ``ap75``; and ``ap_r``, ``ap_c``, ``ap_f``, over the rare, common and frequent categories. A figure over
    no category is NaN (LVIS has -1). Equal scores are ranked in the order of update.

    A detection of a category that is neither annotated in its image nor known to be absent counts nowhere (but among
    the 10,000), and a wrong one of a category that is not annotated exhaustively neither. Too few detections a category
    lower the figure: that of a model which lists few objects is not that of a detector.

    The states hold 24 bytes of every detection.

    Args:
        frequencies: ``r``, ``c`` or ``f`` of every category, by its number.
        iou_type: whether boxes (``"bbox"``) or masks (``"segm"``) are compared.
        most: detections of a category; 10,000 in the paper.

    Raises:
        ValueError: if iou_type is neither, a frequency is none of the three, or most is not positive.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    categories: list[Tensor]
    outcomes: list[Tensor]
    objects: Tensor

    def __init__(
        self,
        frequencies: Mapping[int, str],
        iou_type: Literal["bbox", "segm"] = "bbox",
        *,
        most: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if iou_type not in SHAPES:
            raise ValueError(f"iou_type must be bbox or segm, got {iou_type!r}")
        if unknown := set(frequencies.values()) - set(FREQUENCIES):
            raise ValueError(f"frequencies must be r, c or f, got {', '.join(sorted(map(repr, unknown)))}")
        if most < 1:
            raise ValueError(f"most must be positive, got {most}")
        self.frequencies, self.iou_type, self.most = dict(frequencies), iou_type, most
        self.places = {number: place for place, number in enumerate(self.frequencies)}
        self.set_dtype(torch.float64)  # the type of what a process without samples contributes
        for name in ("scores", "categories", "outcomes"):
            self.add_state(name, [], dist_reduce_fx="cat")
        add_counts(self, "objects", shape=(len(self.frequencies),))

    def update(self, preds: Sequence[Mapping[str, Tensor]], target: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in the detections and the objects of images.

        Args:
            preds: ``scores`` and ``labels``, numbers of categories, ``[detections]``, with ``boxes``
                ``[detections, 4]`` (x1, y1, x2, y2 in pixels) or bool ``masks`` ``[detections, height, width]``.
            target: ``labels`` with ``boxes`` or ``masks``; ``negative`` and ``not_exhaustive``, numbers of categories.

        Raises:
            ValueError: if the lengths differ, a key is missing, shapes do not fit, or there is no such category.
            ModuleNotFoundError: if pycocotools is not installed (extra ``coco``).
        """
        if len(preds) != len(target):
            raise ValueError(f"preds and target must be of equal length, got {len(preds)} and {len(target)}")
        shapes = SHAPES[self.iou_type]
        for found, truth in zip(preds, target, strict=True):
            for name, given, needed in (
                ("preds", found, [shapes, "scores", "labels"]),
                ("target", truth, [shapes, "labels", "negative", "not_exhaustive"]),
            ):
                if not set(needed) <= given.keys():
                    raise ValueError(f"{name} must have {', '.join(needed)}, got {', '.join(sorted(given))}")
                for key in set(needed) & {"scores", "labels"}:
                    if len(given[key]) != len(given[shapes]):
                        raise ValueError(
                            f"{name} must have {key} for each of {len(given[shapes])} {shapes}, got {len(given[key])}"
                        )
                if unknown := set(given["labels"].tolist()) - self.places.keys():
                    raise ValueError(f"labels of {name} must be categories with a frequency, got {min(unknown)}")
            self.scores.append(found["scores"].double().to(self.device))
            self.categories.append(found["labels"].double().to(self.device))
            self.outcomes.append(self._outcomes(found, truth).to(self.device))
            places = torch.tensor([self.places[label] for label in truth["labels"].tolist()], dtype=torch.int64)
            self.objects += places.bincount(minlength=len(self.places)).to(self.device)

    def _outcomes(self, found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor:
        """Bit t of a detection's number: right at threshold t; bit 10 + t: counted nowhere. ``[detections]``."""
        labels, true_labels = found["labels"].cpu().numpy(), truth["labels"].cpu().numpy()
        judged = {*truth["labels"].tolist(), *truth["negative"].tolist()}
        right = np.zeros((len(labels), len(IOU_THRESHOLDS)), dtype=bool)
        ignored = np.zeros_like(right)
        shapes = SHAPES[self.iou_type]
        key = "bbox" if shapes == "boxes" else "segmentation"
        mine, theirs = (
            [annotation[key] for annotation in coco_annotations(given[shapes], shapes)] for given in (found, truth)
        )
        scores = found["scores"].double().cpu().numpy()
        for category in np.unique(labels):
            rows = np.flatnonzero(labels == category)
            if category not in judged:
                ignored[rows] = True
                continue
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            columns = np.flatnonzero(true_labels == category)
            if len(columns):
                ious = load_pycocotools("mask").iou(
                    [mine[row] for row in rows], [theirs[column] for column in columns], [0] * len(columns)
                )
                right[rows] = _greedy(np.asarray(ious))
            if category in truth["not_exhaustive"].tolist():
                ignored[rows] = ~right[rows]
        bits = 2 ** np.arange(2 * len(IOU_THRESHOLDS), dtype=np.float64)
        return torch.from_numpy(np.concatenate([right, ignored], axis=1) @ bits)

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        none = torch.zeros(0, dtype=torch.float64)
        scores, labels, outcomes = (
            (torch.cat([none, *state]) if isinstance(state, list) else state).cpu().numpy()
            for state in (self.scores, self.categories, self.outcomes)
        )
        thresholds = len(IOU_THRESHOLDS)
        bits = outcomes.astype(np.int64)[:, None] >> np.arange(2 * thresholds) & 1
        precision = np.full((len(self.places), thresholds), np.nan)
        for category, place in self.places.items():
            if count := int(self.objects[place]):
                rows = np.flatnonzero(labels == category)
                rows = rows[np.argsort(-scores[rows], kind="stable")][: self.most]
                right, ignored = bits[rows, :thresholds].T, bits[rows, thresholds:].T
                precision[place] = [_average_precision(*row, count) for row in zip(right, ignored, strict=True)]
        groups = {name: [f == name for f in self.frequencies.values()] for name in FREQUENCIES}
        figures = {
            "ap": precision,
            "ap50": precision[:, IOU_THRESHOLDS.index(0.5)],
            "ap75": precision[:, IOU_THRESHOLDS.index(0.75)],
            **{f"ap_{name}": precision[group] for name, group in groups.items()},
        }
        return {name: _mean(values).to(self.device) for name, values in figures.items()}


def _greedy(ious: np.ndarray) -> np.ndarray:
    """Which detections match an object at each threshold: bool ``[detections, thresholds]``, best scores first."""
    thresholds = np.array([min(threshold, 1 - 1e-10) for threshold in IOU_THRESHOLDS])
    free = np.ones((len(thresholds), ious.shape[1]), dtype=bool)
    right = np.zeros((len(ious), len(thresholds)), dtype=bool)
    every = np.arange(len(thresholds))
    for row, overlaps in enumerate(ious):
        fit = np.where(free & (overlaps >= thresholds[:, None]), overlaps, -1.0)
        best = ious.shape[1] - 1 - fit[:, ::-1].argmax(1)  # of equal ones the last, as COCO has it
        right[row] = fit[every, best] >= 0
        free[every[right[row]], best[right[row]]] = False
    return right


def _average_precision(right: np.ndarray, ignored: np.ndarray, objects: int) -> float:
    """Precision, made monotone, averaged over 101 recalls."""
    kept = right[ignored == 0].astype(np.float64)
    if not len(kept):
        return 0.0
    found = kept.cumsum()
    precision = np.maximum.accumulate((found / np.arange(1, len(kept) + 1))[::-1])[::-1]
    places = np.searchsorted(found / objects, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def _mean(values: np.ndarray) -> Tensor:
    known = values[~np.isnan(values)]
    return torch.tensor(known.mean() if len(known) else torch.nan, dtype=torch.float64)
