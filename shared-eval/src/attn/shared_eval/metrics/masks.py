"""Masks against masks, and points against masks: the IoU family of referring and reasoning segmentation."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, add_sums, ratio

Empty = Literal["one", "zero", "skip"]


def intersection_and_union(preds: Tensor, target: Tensor, *, ignore_index: int | None = 255) -> tuple[Tensor, Tensor]:
    """Pixels in both masks and pixels in either, of each sample.

    Args:
        preds: predicted masks, bool, ``[..., height, width]``.
        target: true masks of the same shape, bool or integers: non-zero is foreground, so that pixels which polygons
            of one object cover twice count once.
        ignore_index: the value of target whose pixels count in neither number; None for none.

    Returns: two int64 tensors ``[...]``.

    Raises:
        TypeError: if preds are no bools, or target is floating.
        ValueError: if the shapes differ.
    """
    if preds.dtype != torch.bool:
        raise TypeError(f"preds must be bool, got {preds.dtype}: compare logits with a threshold first")
    if target.is_floating_point():
        raise TypeError(f"target must be bool or integer, got {target.dtype}")
    if preds.shape != target.shape:
        raise ValueError(f"target must have the shape of preds {tuple(preds.shape)}, got {tuple(target.shape)}")
    true = target != 0
    if ignore_index is not None and target.dtype != torch.bool:
        counted = target != ignore_index
        preds, true = preds & counted, true & counted
    return (preds & true).sum((-2, -1)), (preds | true).sum((-2, -1))


class MaskIoU(Metric):
    """Intersection over union of binary masks, cumulative and averaged over samples, fractions.

    ``compute`` returns

    - ``ciou``: sum of intersections over sum of unions (cIoU of LISA and READ; oIoU of LAVT and RefAM);
    - ``miou``: mean IoU of the samples (mIoU of LAVT and RefAM, which set an empty union to 0; **gIoU** of LISA and
      READ, J of DAVIS, which set it to 1). This gIoU is not the Generalized IoU of boxes;
    - ``precision_50`` ...: share of samples whose IoU is at least the threshold;
    - ``samples``, and how many of them have an ``empty_union``.

    A refused false-premise sentence is scored as a prediction without pixels. The papers score at the size of the
    original image; resize before. A figure without samples is NaN, and so is ``ciou`` if all unions are empty.

    Args:
        empty: the IoU of a sample whose union is empty: ``"one"`` (gIoU, J), ``"zero"`` (mIoU of referring
            segmentation), or ``"skip"`` to leave it out of the mean and the shares.
        ignore_index: the value of target whose pixels count nowhere; None for none.
        thresholds: of the shares, multiples of 0.01 in (0, 1].

    Raises:
        ValueError: if empty is none of the three, or a threshold is outside its range.
    """

    full_state_update = False
    higher_is_better = True
    intersection: Tensor
    union: Tensor
    total_iou: Tensor
    above: Tensor
    samples: Tensor
    empty_unions: Tensor

    def __init__(
        self,
        *,
        empty: Empty = "one",
        ignore_index: int | None = 255,
        thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if empty not in ("one", "zero", "skip"):
            raise ValueError(f"empty must be one, zero or skip, got {empty!r}")
        if not all(0 < threshold <= 1 for threshold in thresholds):
            raise ValueError(f"thresholds must lie in (0, 1], got {tuple(thresholds)}")
        self.empty, self.ignore_index, self.thresholds = empty, ignore_index, tuple(thresholds)
        add_counts(self, "intersection", "union", "samples", "empty_unions")
        add_counts(self, "above", shape=(len(self.thresholds),))
        add_sums(self, "total_iou")

    def update(self, preds: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> None:
        """Take in samples.

        Args:
            preds: predicted masks, bool, ``[samples, height, width]``, or a ``[height, width]`` each.
            target: true masks of the same shapes, see `intersection_and_union`.

        Raises:
            TypeError: if preds are no bools, or target is floating.
            ValueError: if numbers or shapes differ.
        """
        if len(preds) != len(target):
            raise ValueError(f"preds and target must be of equal length, got {len(preds)} and {len(target)}")
        for pred, true in zip(preds, target, strict=True):  # sizes may differ
            intersection, union = intersection_and_union(pred, true, ignore_index=self.ignore_index)
            self.intersection += intersection
            self.union += union
            self.samples += 1
            self.empty_unions += union == 0
            if self.empty == "skip" and union == 0:
                continue
            iou = ratio(intersection, union).nan_to_num(1.0 if self.empty == "one" else 0.0)
            self.total_iou += iou
            self.above += iou >= torch.tensor(self.thresholds, dtype=torch.float64, device=iou.device)

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        averaged = self.samples - self.empty_unions if self.empty == "skip" else self.samples
        return {
            "ciou": ratio(self.intersection, self.union),
            "miou": ratio(self.total_iou, averaged),
            **{
                f"precision_{round(100 * threshold)}": ratio(above, averaged)
                for threshold, above in zip(self.thresholds, self.above, strict=True)
            },
            "samples": self.samples,
            "empty_union": self.empty_unions,
        }


class PointAccuracy(Metric):
    """Share of samples whose chosen point lies inside the true mask (PA of RefAM, pointing accuracy); NaN without any.

    A point outside the picture is wrong.
    """

    full_state_update = False
    higher_is_better = True
    inside: Tensor
    samples: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_counts(self, "inside", "samples")

    def update(self, points: Tensor, target: Tensor | Sequence[Tensor]) -> None:
        """Take in samples.

        Args:
            points: ``[samples, 2]``, x (column) and y (row) in pixels; pixel (x, y) covers x to x + 1.
            target: true masks, non-zero inside, ``[samples, height, width]`` or a ``[height, width]`` each.

        Raises:
            ValueError: if points are not of that shape, or there are not as many masks.
        """
        if points.ndim != 2 or points.shape != (len(target), 2):
            raise ValueError(f"points must be of shape ({len(target)}, 2), one a mask, got {tuple(points.shape)}")
        for (x, y), mask in zip(points.floor().long().tolist(), target, strict=True):
            height, width = mask.shape
            self.inside += int(0 <= x < width and 0 <= y < height and bool(mask[y, x]))
            self.samples += 1

    def compute(self) -> Tensor:
        """A fraction."""
        return ratio(self.inside, self.samples)
