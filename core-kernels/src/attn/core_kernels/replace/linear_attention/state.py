"""What linear attention remembers of past tokens, and where packed sequences begin and end."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class LinearState(NamedTuple):
    """Sums over the past tokens of each head, in float32 (float64 for float64).

    Args:
        key_value: ``[batch, heads, features, value_dim]``, the sum of the outer products of key features and values.
        key: ``[batch, heads, features]``, the sum of the key features.
    """

    key_value: Tensor
    key: Tensor


def precision_of_sums(*tensors: Tensor) -> torch.dtype:
    """float32, float64 if any argument is."""
    precision = torch.float32
    for tensor in tensors:
        precision = torch.promote_types(precision, tensor.dtype)
    return precision


def zero_state(query: Tensor, value: Tensor, sequences: int) -> LinearState:
    """The state before the first token."""
    lead, precision = (sequences, query.shape[1], query.shape[3]), precision_of_sums(query, value)
    return LinearState(query.new_zeros(*lead, value.shape[3], dtype=precision), query.new_zeros(lead, dtype=precision))


def extended(values: Tensor, ones: Tensor) -> Tensor:
    """Values with ``ones`` as one more column, which sums what the values' weights sum to."""
    return torch.cat([values, ones.unsqueeze(-1)], dim=-1)


def sequence_spans(offsets: Tensor | None, tokens: int) -> list[tuple[int, int]]:
    """First and last-plus-one token of each packed sequence; the whole length for None.

    Raises:
        ValueError: if the offsets do not run from zero to ``tokens`` without decreasing.
    """
    if offsets is None:
        return [(0, tokens)]
    offsets = offsets.cpu()
    check_offsets(offsets, tokens)
    return list(itertools.pairwise(offsets.tolist()))


def check_offsets(offsets: Tensor | None, tokens: int) -> None:
    """Require bounds from zero to ``tokens`` that do not decrease; on an accelerator the check does not wait for it.

    Raises:
        ValueError: if bounds on the CPU are not so.
    """
    if offsets is None:
        return
    valid = (offsets[0] == 0) & (offsets[-1] == tokens) & (offsets.diff() >= 0).all()
    _require(valid, f"offsets must run from 0 to {tokens} without decreasing", offsets)


def check_rates(decay: Tensor | None) -> None:
    """Require finite rates of zero or more; on an accelerator the check does not wait for the device.

    Raises:
        ValueError: if a rate on the CPU is negative, infinite or NaN.
    """
    if decay is None:
        return
    _require(((decay >= 0) & (decay < torch.inf)).all(), "decay must be finite and at least 0", decay)


def _require(valid: Tensor, rule: str, given: Tensor) -> None:
    if valid.device.type != "cpu":
        torch._assert_async(valid, rule)
    elif not valid:
        raise ValueError(f"{rule}, got {given.tolist()}")


def divided(sums: Tensor, weights: Tensor, normalize: bool, eps: float) -> Tensor:
    """Weighted sums over the sums of their weights, if they are to be normalised."""
    return sums / (weights + eps).unsqueeze(-1) if normalize else sums
