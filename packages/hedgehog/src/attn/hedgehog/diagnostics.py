"""What makes attention weights good (section 3.2 of the paper: spiky and monotone), and what makes training fail."""

from typing import cast

import torch
from torch import Tensor

from attn.core_kernels import linear_attention
from attn.hedgehog.feature_maps import FeatureMap


def spikiness(weights: Tensor) -> Tensor:
    """Entropy of each row of attention weights, in nats: 0 for one key, ``log(keys)`` for uniform weights.

    Args:
        weights: ``[..., rows, keys]``, rows summing to one; keys that are not visible have weight zero.

    Returns:
        ``[..., rows]``; the lower, the spikier.
    """
    return torch.special.entr(weights).sum(dim=-1)


def monotonicity(scores: Tensor, weights: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Order agreement: the share of key pairs of a row that weights order as scores do.

    A pair (j, m) agrees if ``sign(score_j - score_m) = sign(weight_j - weight_m)``. Softmax attention agrees on every
    pair that its rounding can tell apart. Memory grows with the square of keys, row by row.

    Args:
        scores: the dot products of queries and keys, ``[..., rows, keys]``.
        weights: attention weights, of the same shape.
        mask: True where a key is visible, broadcast to that shape; None is everywhere.

    Returns:
        ``[..., rows]`` in [0, 1]; NaN for a row with fewer than two visible keys, which has no pair.

    Raises:
        ValueError: if the shapes differ.
    """
    if scores.shape != weights.shape:
        raise ValueError(f"weights must have scores' shape {tuple(scores.shape)}, got {tuple(weights.shape)}")
    visible = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
    agreement = []
    for score, weight, seen in zip(scores.unbind(-2), weights.unbind(-2), visible.unbind(-2), strict=True):
        same = _pair_signs(score) == _pair_signs(weight)
        pairs = (seen.unsqueeze(-1) & seen.unsqueeze(-2)).triu(1)
        agreement.append((same & pairs).sum((-2, -1)) / pairs.sum((-2, -1)))
    return torch.stack(agreement, dim=-1)


def largest_projection(feature_map: FeatureMap, x: Tensor) -> Tensor:
    """The largest ``|u|`` per head, ``[heads]``, of the pre-activations of queries or keys x.

    Beyond 88 the exponential of float32 overflows; large values foretell divergence in the second stage.
    """
    return feature_map.projection(x).detach().abs().amax(dim=(0, 2, 3))


def smallest_normalizer(
    query_features: Tensor, key_features: Tensor, *, causal: bool = True, key_mask: Tensor | None = None
) -> Tensor:
    """The smallest ``Z_i = sum_j phi_q(q_i).phi_k(k_j)`` per head, ``[heads]``; at 1e-12 outputs begin to vanish.

    Args:
        query_features: ``[batch, heads, tokens, num_features]``.
        key_features: ``[batch, heads, tokens, num_features]``.
        causal: sums run over ``j <= i``; otherwise over all keys.
        key_mask: ``[batch, tokens]``, False at padding, whose keys and rows count for nothing.
    """
    ones = torch.ones_like(key_features[..., :1])
    products = linear_attention(
        query_features.detach(), key_features.detach(), ones, causal=causal, normalize=False, key_mask=key_mask
    )
    normalizers = cast(Tensor, products).squeeze(-1)
    if key_mask is not None:
        normalizers = normalizers.masked_fill(~key_mask.unsqueeze(1), torch.inf)
    return normalizers.amin(dim=(0, 2))


def _pair_signs(x: Tensor) -> Tensor:
    """``sign(x_j - x_m)`` for all pairs of the last axis."""
    return (x.unsqueeze(-1) - x.unsqueeze(-2)).sign()
