"""Masks of videos: region similarity J and contour accuracy F of DAVIS (Perazzi et al., CVPR 2016)."""

from collections.abc import Sequence
from math import ceil, hypot
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.masks import intersection_and_union
from attn.shared_eval.metrics.states import add_counts, add_sums, ratio


def contour_accuracy(preds: Tensor, target: Tensor, *, tolerance: float = 0.008) -> Tensor:
    """F of each mask: the harmonic mean of precision and recall of contour pixels.

    A contour pixel is one that differs from its right, lower or lower right neighbor. It is matched if the other
    contour comes within ceil(tolerance * diagonal) pixels. Two masks without contours score 1, one without scores 0.

    Args:
        preds: bool, ``[..., height, width]``.
        target: bool, of the same shape.
        tolerance: in units of the picture's diagonal; 0.008 in DAVIS.

    Returns: float64 ``[...]``.

    Raises:
        TypeError: if a mask is not bool.
        ValueError: if the shapes differ.
    """
    if preds.dtype != torch.bool or target.dtype != torch.bool:
        raise TypeError(f"preds and target must be bool, got {preds.dtype} and {target.dtype}")
    if preds.shape != target.shape or preds.ndim < 2:
        raise ValueError(
            f"preds and target must have one shape (..., height, width), "
            f"got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    height, width = preds.shape[-2:]
    radius = ceil(tolerance * hypot(height, width))
    found, true = (_contour(masks.reshape(-1, height, width).cpu().numpy()) for masks in (preds, target))
    scores = [_matched(*pair, radius) for pair in zip(found, true, strict=True)]
    return torch.tensor(scores, dtype=torch.float64, device=preds.device).reshape(preds.shape[:-2])


def _contour(masks: np.ndarray) -> np.ndarray:
    # At the last row and column the missing neighbors are taken to be as the pixel itself.
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge")
    neighbors = (padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:])
    return np.logical_or.reduce([masks ^ neighbor for neighbor in neighbors])


def _matched(found: np.ndarray, true: np.ndarray, radius: int) -> float:
    if not (found.any() and true.any()):
        return float(found.any() == true.any())
    near_found, near_true = (ndimage.distance_transform_edt(~contour) <= radius for contour in (found, true))
    precision, recall = near_true[found].mean(), near_found[true].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


class JAndF(Metric):
    """J, F and their mean over the objects of videos, fractions (DAVIS 2017, Pont-Tuset et al., arXiv 1704.00675).

    ``compute`` returns ``j``, the mean over objects of the mean IoU over frames (1 where both masks are empty); ``f``,
    the same of `contour_accuracy`; ``j_and_f``, their mean; and ``objects``. NaN without objects.

    Args:
        ends: whether the first and the last frame count: they do for referring expressions, they do not in DAVIS's
            semi-supervised task, where the first is given.
        tolerance: see `contour_accuracy`.
    """

    full_state_update = False
    higher_is_better = True
    total_j: Tensor
    total_f: Tensor
    objects: Tensor

    def __init__(self, *, ends: bool = True, tolerance: float = 0.008, **options: Any) -> None:
        super().__init__(**options)
        self.ends, self.tolerance = ends, tolerance
        add_sums(self, "total_j", "total_f")
        add_counts(self, "objects")

    def update(self, preds: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        """Take in objects.

        Args:
            preds: the masks of each object through its video, bool, ``[frames, height, width]``.
            target: the true masks, of the same shapes.

        Raises:
            TypeError: if a mask is not bool.
            ValueError: if numbers or shapes differ, or a video has no frame that counts.
        """
        if len(preds) != len(target):
            raise ValueError(f"preds and target must be of equal length, got {len(preds)} and {len(target)}")
        for found, true in zip(preds, target, strict=True):
            frames = slice(None) if self.ends else slice(1, -1)
            f = contour_accuracy(found[frames], true[frames], tolerance=self.tolerance)
            if f.ndim != 1 or not len(f):
                least = 1 if self.ends else 3
                raise ValueError(
                    f"preds must have {least} frames or more (frames, height, width), got {tuple(found.shape)}"
                )
            intersection, union = intersection_and_union(found[frames], true[frames])
            self.total_j += ratio(intersection, union).nan_to_num(1.0).mean()
            self.total_f += f.mean()
            self.objects += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        j, f = ratio(self.total_j, self.objects), ratio(self.total_f, self.objects)
        return {"j": j, "f": f, "j_and_f": (j + f) / 2, "objects": self.objects}
