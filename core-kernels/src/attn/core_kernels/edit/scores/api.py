"""The public edits before the softmax: scores changed by sign, distance or key, then normalised as usual.

A row that sees no key has output 0. Results are in query's dtype, computed in float32 (float64 for float64), under
autocast too, and can be differentiated by query, key and value; a changed score's derivative is the factor by which it
changed. The arguments that all share are described in `attn.core_kernels.mix_values`. Bad arguments raise TypeError or
ValueError that names the argument, the rule and what came; NotImplementedError if the implementation named does not
serve the call, as `capability_table` says. `impl` may also be ``"flex"``, FlexAttention, which CUDA devices take by
themselves; elsewhere its dense form can be asked for, without a gradient.
"""
# ruff: noqa: D417 (arguments that all operators share are described once)

import dataclasses
import math

import torch
from torch import Tensor

from attn.core_kernels.checks import check_indices, check_number, check_places, check_positive
from attn.core_kernels.edit.arguments import (
    Attention,
    check_attention,
    check_between,
    check_entries,
    check_keys,
    check_tensor,
    values_known,
)
from attn.core_kernels.edit.scores import blockwise, reference
from attn.core_kernels.edit.scores.decay import Decay
from attn.core_kernels.implementations import Impl, choose_implementation


def decay_outside_window(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    half_window: int,
    alpha: float = 0.9,
    *,
    period: float | None = None,
    risk_half_width: float = 0,
    beta: float = 0.6,
    places: Tensor | None = None,
    query_places: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Attention whose positive scores are multiplied by a constant beyond a distance.

    .. math:: S'_{ij} = \lambda_{ij} S_{ij}, \quad \lambda_{ij} = 1 \text{ if } |p_i - p_j| \le W \text{ or } S_{ij} < 0

    and else alpha, or beta if the distance is within a half width of a positive multiple of the period: equations 5 and
    6 of UltraViCo (Zhao et al., 2026). The rule is not invariant to a constant added to a row: subtract the mean of the
    keys beforehand to follow the released kernels, which do so.

    Args:
        half_window: W, the largest distance that keeps its scores, in places; the paper's is half the length of
            training, counted in tokens.
        alpha: factor beyond the window, 0 or more; 0.9 is the paper's.
        period: distance between risk zones; None for none (equation 5).
        risk_half_width: half the width of a risk zone, 0 or more, gamma in the paper.
        beta: factor within a risk zone, 0 or more; 0.6 is the paper's. Without effect if there is no period.
        places: int64 ``[keys]``: where each key stands on the axis on which distance is measured; scores from or to a
            negative place stay as they are, e.g. those of text. None for the token's index.
        query_places: int64 ``[queries]``: where each query stands, for queries or keys that are a part of a sequence,
            as in context parallelism. None for where the last keys stand.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    if not isinstance(half_window, int) or isinstance(half_window, bool):
        raise TypeError(f"half_window must be an integer, got {type(half_window).__name__}")
    if half_window < 0:
        raise ValueError(f"half_window must be at least 0, got {half_window}")
    alpha = check_between("alpha", alpha, 0, math.inf)
    if period is not None:
        check_positive("period", period)
    risk_half_width = check_between("risk_half_width", risk_half_width, 0, math.inf)
    beta = check_between("beta", beta, 0, math.inf)
    both = check_places(places, query, key, query_places)
    decay = Decay(half_window, alpha, None if period is None else float(period), risk_half_width, beta)
    chosen = choose_implementation("decay_outside_window", impl, query, key, value)
    if chosen == "reference":
        with torch.autocast(query.device.type, enabled=False):
            return reference.decay_outside_window(attention, both, decay)
    if decay.is_neutral:
        return attention.attend()[0]
    if chosen == "flex":
        from attn.core_kernels.edit.scores import flex

        return flex.decay_outside_window(attention, both, decay)
    rule = attention.visibility.as_arguments()
    arguments = attention.query, attention.key, attention.value, *both, *decay, attention.scale, *rule
    return blockwise.decay_outside_window(*arguments)[0]


def boost_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    gain: float | Tensor,
    *,
    rows: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention whose scores at chosen keys grow by a share of their magnitude: ``a + gain * |a|``.

    The amplification of image tokens of PAI (Liu et al., 2024) and PAINT (Arif et al., "Fixing Imbalanced Attention",
    2025), which edit the last query's row, with gains of about 0.5. Positive scores grow, negative ones shrink towards
    zero. Without a chosen key of non-zero gain the result is plain attention's, bit for bit.

    Args:
        keys: bool ``[batch or 1, heads or 1, keys]``, the chosen keys.
        gain: a number, or a tensor ``[heads]`` or ``[batch or 1, heads or 1, keys or 1]``, e.g. one gain for local and
            one for summary tokens; the reference alone is differentiable in it.
        rows: int64 indices of the queries that are edited, ``[rows]`` or ``[batch, rows]``; the others cost and give
            plain attention. None for all.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    keys = check_keys(keys, attention)
    gain = _checked_gain(gain, query, key)
    rows = check_indices("rows", rows, query)
    chosen = choose_implementation("boost_keys", impl, query, key, value)
    if chosen != "reference" and gain.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"impl={chosen!r} of boost_keys has no gradient of gain, which requires one; impl='reference' serves it"
        )
    coefficients = torch.where(keys, gain, 0)
    if chosen != "reference" and values_known() and not bool(coefficients.any()):
        return attention.attend()[0]
    if rows is None:
        return _boost(attention, coefficients, chosen)
    index = rows[:, None, :, None].expand(*query.shape[:2], -1, 1)
    some = dataclasses.replace(
        attention,
        query=query.gather(2, index.expand(-1, -1, -1, query.shape[3])),
        visibility=attention.visibility.select_rows(rows),
    )
    edited = _boost(some, coefficients, chosen)
    plain = (
        _boost(attention, torch.zeros_like(coefficients), chosen) if chosen == "reference" else attention.attend()[0]
    )
    return plain.scatter(2, index.expand(-1, -1, -1, value.shape[3]), edited)


def _boost(attention: Attention, coefficients: Tensor, chosen: str) -> Tensor:
    if chosen == "reference":
        with torch.autocast(attention.query.device.type, enabled=False):
            return reference.boost_keys(attention, coefficients)
    if chosen == "flex":
        from attn.core_kernels.edit.scores import flex

        return flex.boost_keys(attention, coefficients)
    rule = attention.visibility.as_arguments()
    arguments = attention.query, attention.key, attention.value, coefficients.detach(), attention.scale, *rule
    return blockwise.boost_keys(*arguments)[0]


def _checked_gain(gain: float | Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The gain as ``[batch or 1, heads or 1, keys or 1]``."""
    if not isinstance(gain, Tensor):
        check_number("gain", gain)
        gain = torch.full((1, 1, 1), gain, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    check_tensor("gain", gain, query)
    batch, heads, keys = *query.shape[:2], key.shape[2]
    shape = list(gain.shape)
    if shape == [heads]:
        gain = gain[None, :, None]
    elif len(shape) != 3 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2] not in (1, keys):
        raise ValueError(
            f"gain must be a number or have shape [{heads}] or [{batch} or 1, {heads} or 1, {keys} or 1], got {shape}"
        )
    check_entries("gain", gain)
    return gain
