"""The specification of the observe operators: the softmax map, dense, and what is read off it.

Every function works in float32, float64 for float64, can be differentiated, and needs queries times keys of memory.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.observe.softmax_map.results import RowStats, TileStats
from attn.core_kernels.visibility import Visibility


def softmax_map(query: Tensor, key: Tensor, scale: float, visibility: Visibility) -> tuple[Tensor, Tensor, Tensor]:
    """The map ``softmax(scale * query @ key.T)`` over visible keys, the logits with -inf elsewhere, the log-sum-exp."""
    precision = torch.promote_types(query.dtype, torch.float32)
    key = repeat_heads(key, query.shape[1])
    visible = visibility.whole_mask(query.device)
    logits = (scale * query.to(precision) @ key.to(precision).mT).masked_fill(~visible, -torch.inf)
    sees_none = ~visible.any(-1, keepdim=True)
    lse = logits.masked_fill(sees_none, 0).logsumexp(-1, keepdim=True)
    return (logits - lse).exp(), logits, lse.masked_fill(sees_none, -torch.inf)[..., 0]


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, visibility: Visibility
) -> tuple[Tensor, Tensor]:
    """The attention output and the log-sum-exp of the rows."""
    probability, _, lse = softmax_map(query, key, scale, visibility)
    value = repeat_heads(value, query.shape[1])
    return (probability @ value.to(probability.dtype)).to(query.dtype), lse


def key_moments(
    query: Tensor, key: Tensor, row_weights: Tensor, scale: float, visibility: Visibility
) -> tuple[Tensor, Tensor]:
    """Weighted column sums of the map and of its squares; weights are ``[batch or 1, heads or 1, sets, queries]``."""
    probability = softmax_map(query, key, scale, visibility)[0]
    row_weights = row_weights.to(probability.dtype)
    return row_weights @ probability, row_weights @ probability.square()


def suffix_key_mass(query: Tensor, key: Tensor, block_size: int, scale: float, visibility: Visibility) -> Tensor:
    """Column sums over the rows from every ``block_size``-th one on."""
    probability = softmax_map(query, key, scale, visibility)[0]
    return probability.flip(2).cumsum(2).flip(2)[:, :, ::block_size]


def row_stats(query: Tensor, key: Tensor, scale: float, visibility: Visibility) -> RowStats:
    """Log-sum-exp, largest logit and its key, and entropy of every row."""
    probability, logits, lse = softmax_map(query, key, scale, visibility)
    highest, argmax = logits.max(-1)
    surprise = torch.where(logits == -torch.inf, 0, lse[..., None] - logits)
    return RowStats(lse, highest, argmax.masked_fill(highest == -torch.inf, -1), (probability * surprise).sum(-1))


def submap(
    query: Tensor, key: Tensor, columns: Tensor | None, mean_heads: bool, scale: float, visibility: Visibility
) -> Tensor:
    """The map at chosen columns, int64 ``[batch or 1, columns]``."""
    probability = softmax_map(query, key, scale, visibility)[0]
    if columns is not None:
        probability = probability.gather(-1, columns[:, None, None].expand(*probability.shape[:3], -1))
    return probability.mean(1) if mean_heads else probability


def tile_stats(
    query: Tensor, key: Tensor, block_size: tuple[int, int], eps: float, scale: float, visibility: Visibility
) -> TileStats:
    """Sum, maximum, visible entries below ``eps`` and visible entries of every tile."""
    probability = softmax_map(query, key, scale, visibility)[0]
    visible = visibility.whole_mask(query.device).expand_as(probability)

    def tiles(entries: Tensor) -> Tensor:
        (rows, columns), (height, width) = entries.shape[2:], block_size
        entries = F.pad(entries, (0, -columns % width, 0, -rows % height))
        return entries.unflatten(3, (-(-columns // width), width)).unflatten(2, (-(-rows // height), height))

    below = tiles((probability < eps) & visible).sum((3, 5))
    return TileStats(tiles(probability).sum((3, 5)), tiles(probability).amax((3, 5)), below, tiles(visible).sum((3, 5)))


def mass_by_distance(
    query: Tensor, key: Tensor, places: tuple[Tensor, Tensor], edges: list[int], scale: float, visibility: Visibility
) -> Tensor:
    """Attention mass of every row in every distance band."""
    probability = softmax_map(query, key, scale, visibility)[0]
    return torch.stack([probability.where(band, 0).sum(-1) for band in _bands(*places, edges)], -1)


def logit_by_distance(
    query: Tensor, key: Tensor, places: tuple[Tensor, Tensor], edges: list[int], scale: float, visibility: Visibility
) -> Tensor:
    """Mean visible logit of every distance band; NaN for a band without visible pairs."""
    logits = softmax_map(query, key, scale, visibility)[1]
    bands = [band & visibility.whole_mask(query.device) for band in _bands(*places, edges)]
    return torch.stack([logits.where(band, 0).sum((2, 3)) / band.sum((2, 3)) for band in bands], -1)


def _bands(of_query: Tensor, of_key: Tensor, edges: list[int]) -> list[Tensor]:
    """Whether the distance of each query and key is in each band; a negative place is in none."""
    distance = (of_query[:, None] - of_key).abs()
    known = (of_query[:, None] >= 0) & (of_key >= 0)
    reached = [known & (distance >= edge) for edge in edges]
    return [here & ~beyond for here, beyond in pairwise([*reached, torch.zeros_like(known)])]
