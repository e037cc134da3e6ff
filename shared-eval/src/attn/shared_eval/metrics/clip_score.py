"""CLIP score, on embeddings of any model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, add_sums, ratio


class ClipScore(Metric):
    """100 times the mean cosine of images and their texts, not below 0 (Hessel et al., EMNLP 2021).

    The figure of torchmetrics' ``CLIPScore`` and of PIE-Bench, where the embeddings are of CLIP ViT-L/14; the paper
    itself multiplies by 2.5 and cuts at 0 for every pair. Embeddings come from outside: the projected ones of a model
    with two towers, such as ``image_embeds`` and ``text_embeds`` of a transformers ``CLIPModel``. NaN without pairs.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    pairs: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_sums(self, "total")
        add_counts(self, "pairs")

    def update(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Take in pairs of embeddings, ``[pairs, features]`` each, of any length.

        Raises:
            ValueError: if their shapes differ.
        """
        if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
            raise ValueError(
                f"image_embeds and text_embeds must have one shape (pairs, features), "
                f"got {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
            )
        cosines = F.cosine_similarity(image_embeds.double(), text_embeds.double(), dim=-1)
        self.total += 100 * cosines.sum()
        self.pairs += len(cosines)

    def compute(self) -> Tensor:
        """The score, in [0, 100]."""
        return torch.clamp(ratio(self.total, self.pairs), min=0)
