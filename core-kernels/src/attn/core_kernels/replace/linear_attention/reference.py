"""Linear attention as its definition: all weights at once, quadratic in tokens."""

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.replace.linear_attention.state import LinearState, check_rates, divided, extended, sequence_spans


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState,
    *,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, LinearState]:
    """The output and the state after the last token.

    Args:
        query: ``[batch, heads, tokens, features]``.
        key: ``[batch, key_heads, tokens, features]``.
        value: ``[batch, key_heads, tokens, value_dim]``.
        state: sums over earlier tokens.
        decay: ``[heads]`` rates, or None.
        age: ``[batch or 1, tokens]``, how many visible tokens there are up to and including each; None if all are.
        offsets: ``[sequences + 1]`` bounds of packed sequences, or None.
        causal: whether a token sees itself and earlier ones only.
        normalize: whether to divide by the sum of the weights.
        eps: added to that sum.
    """
    check_rates(decay)
    dtype, precision = value.dtype, state.key.dtype
    query = query.to(precision)
    key, value = (repeat_heads(x.to(precision), query.shape[1]) for x in (key, value))
    value = extended(value, torch.ones_like(value[..., 0]))
    if age is None:
        age = torch.arange(1, query.shape[2] + 1, device=query.device)[None]
    sums, states = [], []
    for row, (start, stop) in enumerate(sequence_spans(offsets, query.shape[2])):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        past = extended(*state) if offsets is None else extended(*state)[row : row + 1]
        weights = q @ k.mT
        if causal:
            weights = weights.tril()
        if decay is None or start == stop:
            from_past, to_future, kept = q, k, past
        else:
            before = age[:, start - 1 : start] if start else torch.zeros_like(age[:, :1])
            now, end = age[:, start:stop], age[:, stop - 1 : stop]
            rate = decay.to(precision)[:, None, None]
            weights = weights * torch.exp(-rate * (now[:, None, :, None] - now[:, None, None, :]).clamp(min=0))
            from_past = q * torch.exp(-rate * (now - before)[:, None, :, None])
            to_future = k * torch.exp(-rate * (end - now)[:, None, :, None])
            kept = past * torch.exp(-rate * (end - before)[:, None, :, None])
        sums.append(weights @ v + from_past @ past)
        states.append(kept + to_future.mT @ v)
    total = torch.cat(sums, dim=2)
    after = torch.cat(states, dim=0)
    out = divided(total[..., :-1], total[..., -1], normalize, eps)
    return out.to(dtype), LinearState(after[..., :-1], after[..., -1])
