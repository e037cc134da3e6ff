"""Frechet distance between two sets of feature vectors, of any extractor."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, add_sums


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    r"""Squared Frechet distance of two normal distributions (Heusel et al., NeurIPS 2017, equation 6).

    .. math:: \lVert \mu - \mu' \rVert^2 + \mathrm{tr}\,(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    Args:
        mean: of the first, ``[features]``.
        covariance: of the first, ``[features, features]``, symmetric and positive semi-definite.
        other_mean: of the second.
        other_covariance: of the second.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross


class FrechetDistance(Metric):
    """Frechet distance between the features of real and of generated samples (FID where they are Inception's).

    Features come from outside: `torchmetrics.image.fid` has the extractor. Covariances are divided by samples - 1.
    With fewer samples than features the covariances are singular, and the figure is biased upwards; compare only
    figures of equal numbers of samples. NaN with fewer than two samples on either side.

    Args:
        features: length of a feature vector; the states hold its square.

    Raises:
        ValueError: if features is not positive.
    """

    full_state_update = False
    higher_is_better = False
    counts: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__(**options)
        if features < 1:
            raise ValueError(f"features must be positive, got {features}")
        self.features = features
        add_counts(self, "counts", shape=(2,))
        add_sums(self, "sums", shape=(2, features))
        add_sums(self, "products", shape=(2, features, features))

    def update(self, features: Tensor, *, real: bool) -> None:
        """Take in feature vectors ``[samples, features]`` of real or of generated samples.

        Raises:
            ValueError: if they are not of that shape.
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(f"features must be of shape (samples, {self.features}), got {tuple(features.shape)}")
        vectors, side = features.double(), int(real)
        self.counts[side] += len(vectors)
        self.sums[side] += vectors.sum(0)
        self.products[side] += vectors.mT @ vectors

    def compute(self) -> Tensor:
        """The squared distance, at least 0 up to rounding."""
        if (self.counts < 2).any():
            return self.sums.new_full((), torch.nan)
        count = self.counts[:, None].double()
        means = self.sums / count
        scatter = self.products - count[..., None] * means[:, :, None] * means[:, None, :]
        covariances = scatter / (count[..., None] - 1)
        return frechet_distance(means[0], covariances[0], means[1], covariances[1])
