"""Edited images against their sources: scores of a region, and the distance of structure."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, add_sums, ratio


class RegionScore(Metric):
    """Mean over images of an image score whose two images are black outside a region (PIE-Bench's convention).

    PIE-Bench (Ju et al., ICLR 2024) multiplies both images by the mask of the unedited part and scores the **whole**
    image, which inflates PSNR; images whose region is empty are skipped. The score is torchmetrics' or any other::

        RegionScore(partial(peak_signal_noise_ratio, data_range=1.0))

    NaN without images; infinite where PSNR meets two equal images.

    Args:
        score: of two images ``[1, channels, height, width]``, one number.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.score = score
        add_sums(self, "total")
        add_counts(self, "images")

    def update(self, preds: Tensor, target: Tensor, region: Tensor) -> None:
        """Take in images.

        Args:
            preds: edited images, ``[batch, channels, height, width]``.
            target: their sources, or true edits, of the same shape.
            region: where they are compared, bool, ``[batch, height, width]``.

        Raises:
            TypeError: if region is not bool.
            ValueError: if the shapes do not fit.
        """
        if target.shape != preds.shape:
            raise ValueError(f"target must have the shape of preds {tuple(preds.shape)}, got {tuple(target.shape)}")
        if region.dtype != torch.bool:
            raise TypeError(f"region must be bool, got {region.dtype}")
        if preds.ndim != 4 or region.shape != (len(preds), *preds.shape[2:]):
            raise ValueError(
                f"preds and region must be of shapes (batch, channels, height, width) and (batch, height, width), "
                f"got {tuple(preds.shape)} and {tuple(region.shape)}"
            )
        for image, source, kept in zip(preds, target, region, strict=True):
            if kept.any():
                self.total += self.score((image * kept)[None], (source * kept)[None]).double()
                self.images += 1

    def compute(self) -> Tensor:
        """The mean score."""
        return ratio(self.total, self.images)


def structure_distance(keys: Tensor, other_keys: Tensor) -> Tensor:
    """Mean squared difference of the cosine self-similarities of two images' keys (Tumanyan et al., CVPR 2022).

    Args:
        keys: keys of a vision transformer's layer with its heads concatenated, ``[batch, tokens, width]``, the class
            token included.
        other_keys: the same of the other images.

    Returns: ``[batch]``, in [0, 4]; memory grows with batch * tokens ** 2.

    Raises:
        ValueError: if the shapes differ.
    """
    if keys.ndim != 3 or keys.shape != other_keys.shape:
        raise ValueError(
            f"keys and other_keys must have one shape (batch, tokens, width), "
            f"got {tuple(keys.shape)} and {tuple(other_keys.shape)}"
        )
    precision = torch.promote_types(keys.dtype, torch.float32)
    unit, other = (F.normalize(x.to(precision), dim=-1) for x in (keys, other_keys))
    return (unit @ unit.mT - other @ other.mT).square().mean((-2, -1))


class ProjectedKeys:
    """The keys that a vision transformer computes for images, read off one of its key projections.

    Args:
        model: called with the images as ``pixel_values``, without gradients.
        projection: the module of the model whose output is wanted, ``[batch, tokens, width]``; published figures have
            the last layer of DINO's ViT-B/8: ``model.layers[-1].attention.k_proj`` of a transformers ``ViTModel``.

    Raises:
        ValueError: if projection is not a part of the model.
    """

    def __init__(self, model: nn.Module, projection: nn.Module) -> None:
        if not any(module is projection for module in model.modules()):
            raise ValueError(f"projection must be a module of the model, got another {type(projection).__name__}")
        self.model, self.projection = model, projection

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The keys of images, ``[batch, tokens, width]``."""
        seen: list[Tensor] = []
        handle = self.projection.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            self.model(pixel_values=images)
        finally:
            handle.remove()
        return seen[-1]


def dino_pixels(images: Tensor, size: int = 224) -> Tensor:
    """Images as PIE-Bench gives them to DINO: the shorter side resized, normalised **without** division by 255.

    The release subtracts ImageNet's mean of colours in [0, 1] from colours in [0, 255] and divides by their deviation;
    figures of properly scaled images differ.

    Args:
        images: ``[batch, 3, height, width]``, colours from 0 to 255.
        size: of the shorter side, in pixels; bilinear, without antialiasing. The longer side is at most 480.

    Raises:
        ValueError: if there are not three channels.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be of shape (batch, 3, height, width), got {tuple(images.shape)}")
    sides = images.shape[2:]
    scale = min(size / min(sides), 480 / max(sides))
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))
    pixels = F.interpolate(pixels, size=[int(scale * side) for side in sides], mode="bilinear", align_corners=False)
    mean, deviation = (pixels.new_tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / deviation


class StructureDistance(Metric):
    """Mean `structure_distance` of edited images from their sources; NaN without images.

    Args:
        keys: the keys ``[batch, tokens, width]`` of images, such as `ProjectedKeys`; the size and scale of the images
            are its affair (`dino_pixels` for published figures, which are printed times 1000).
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    images: Tensor

    def __init__(self, keys: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.keys = keys
        add_sums(self, "total")
        add_counts(self, "images")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in edited images and their sources, ``[batch, channels, height, width]``.

        Raises:
            ValueError: if their numbers differ.
        """
        if len(preds) != len(target):
            raise ValueError(f"preds and target must be of equal length, got {len(preds)} and {len(target)}")
        for image, source in zip(preds, target, strict=True):
            self.total += structure_distance(self.keys(image[None]), self.keys(source[None])).sum().double()
            self.images += 1

    def compute(self) -> Tensor:
        """The mean distance."""
        return ratio(self.total, self.images)
