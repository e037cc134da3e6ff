"""Grouped heads: several query heads share a key and value head."""

from torch import Tensor


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat each head of ``[batch, key_heads, ...]`` for its group, to ``[batch, heads, ...]``; no copy if equal."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def sum_groups(tensor: Tensor, key_heads: int) -> Tensor:
    """Sum ``[batch, heads, ...]`` over each group to ``[batch, key_heads, ...]``: the gradient of `repeat_heads`."""
    return tensor if tensor.shape[1] == key_heads else tensor.unflatten(1, (key_heads, -1)).sum(2)
