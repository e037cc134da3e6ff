"""The public functions of linear attention: check, choose, call."""

from typing import Any

import torch
from torch import Tensor

from attn.core_kernels import checks
from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.implementations import Impl, choose_implementation
from attn.core_kernels.replace.linear_attention.state import LinearState, check_rates, precision_of_sums, zero_state


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    decay: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
    key_mask: Tensor | None = None,
    offsets: Tensor | None = None,
    state: LinearState | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, LinearState]:
    r"""Attention whose weights are products of features, with the past in a state of fixed size.

    .. math:: y_i = \frac{\sum_{j \le i} w_{ij} v_j}{\sum_{j \le i} w_{ij} + \epsilon}, \quad
              w_{ij} = e^{-s\,(i - j)}\, \phi(q_i)^\top \phi(k_j)

    This is linear attention as in section 3 of The Hedgehog & the Porcupine (Zhang et al., 2024); with decay and
    without the denominator it is the operator of Lightning Attention (section 3.1; Qin et al., 2024). The features are
    taken as they come: no scale is applied. With ``causal=False`` the sums run over all tokens.

    A masked token does not exist: it adds nothing, weights do not fade across it, and its own row is zero. So padding
    on either side changes neither the other rows nor the state.

    Args:
        query: features of the queries, ``[batch, heads, tokens, features]``.
        key: features of the keys, ``[batch, key_heads, tokens, features]``, ``heads`` a multiple of ``key_heads``.
        value: ``[batch, key_heads, tokens, value_dim]``; its dtype may differ from the features'.
        causal: whether a token sees itself and earlier ones only, rather than all.
        decay: ``[heads]`` rates ``s >= 0`` in nats per token, so that a weight falls by ``exp(-s)`` per token of
            distance; None or zero is no decay. A constant: it gets no gradient. Needs ``causal``.
        normalize: whether to divide by the sum of the weights.
        eps: added to that sum; 1e-12 as in Hedgehog.
        key_mask: boolean ``[batch, tokens]``, True where a token is visible.
        offsets: integer ``[sequences + 1]`` from 0 to ``tokens``: where packed sequences begin and end along the token
            axis of a batch of one. States then have one row per sequence.
        state: sums over the tokens before, from an earlier call. Needs ``causal``.
        return_state: whether to return the sums after the last token too. Needs ``causal``.
        chunk_size: tokens computed at once; changes time and rounding only. Memory grows with tokens.
        impl: ``"auto"``, ``"reference"`` (quadratic), ``"torch"`` or ``"triton"``.

    Returns:
        ``[batch, heads, tokens, value_dim]`` in value's dtype, and a `LinearState` if asked for. Sums are float32,
        float64 if any argument is. Differentiable once in query, key, value and state.

    Raises:
        TypeError: if an argument has another type or dtype than stated.
        ValueError: if shapes or devices disagree or a number is out of its range.
        NotImplementedError: if the implementation that ``impl`` names does not serve the call.
    """
    checks.check_query_key(query, key, same_tokens=True)
    checks.check_value(value, key, any_dtype=True)
    if not causal:
        for name, given in (("decay", decay), ("state", state), ("return_state", return_state or None)):
            if given is not None:
                raise ValueError(f"causal must be True with {name}, got {causal}")
    _check_decay(decay, query)
    checks.check_positive("eps", eps)
    checks.check_key_mask(key_mask, key)
    _check_offsets(offsets, query)
    sequences = query.shape[0] if offsets is None else offsets.shape[0] - 1
    _check_state(state, query, value, sequences)
    checks.check_size("chunk_size", chunk_size)
    chosen = choose_implementation("linear_attention", impl, query, key, value)

    age = None
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        query, key, value = (x.masked_fill(hidden, 0) for x in (query, key, value))
        age = key_mask.cumsum(dim=1) if decay is not None else None
    with torch.autocast(query.device.type, enabled=False):
        arguments: dict[str, Any] = {
            "decay": decay, "age": age, "offsets": offsets, "causal": causal, "normalize": normalize, "eps": eps,
        }  # fmt: skip
        if chosen == "torch":
            from attn.core_kernels.replace.linear_attention import chunked

            arguments |= {"return_state": return_state, "chunk_size": chunk_size}
            out, after = chunked.attend(query, key, value, state, **arguments)
        else:
            before = zero_state(query, value, sequences) if state is None else state
            if chosen == "reference":
                from attn.core_kernels.replace.linear_attention import reference

                out, after = reference.attend(query, key, value, before, **arguments)
            else:
                from attn.core_kernels.replace.linear_attention import launch

                out, after = launch.attend(query, key, value, before, chunk_size=chunk_size, **arguments)
    return (out, after) if after is not None and return_state else out


def linear_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState | None,
    *,
    decay: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
) -> tuple[Tensor, LinearState]:
    """One token of `linear_attention`: the recurrent form, for decoding.

    Args:
        query: features of the query, ``[batch, heads, 1, features]``.
        key: features of the key, ``[batch, key_heads, 1, features]``.
        value: ``[batch, key_heads, 1, value_dim]``.
        state: the sums over the tokens before; None at the first token.
        decay: as in `linear_attention`.
        normalize: as in `linear_attention`.
        eps: as in `linear_attention`.

    Returns:
        ``[batch, heads, 1, value_dim]`` in value's dtype and the new state; the given one is left as it was.

    Raises:
        TypeError: if an argument has another type or dtype than stated.
        ValueError: if shapes or devices disagree, there is more than one token, or a number is out of its range.
    """
    checks.check_query_key(query, key, same_tokens=True)
    if query.shape[2] != 1:
        raise ValueError(f"query must have 1 token, got {query.shape[2]}")
    checks.check_value(value, key, any_dtype=True)
    _check_decay(decay, query)
    checks.check_positive("eps", eps)
    _check_state(state, query, value, query.shape[0])
    state = zero_state(query, value, query.shape[0]) if state is None else state
    if not torch.compiler.is_compiling():  # a compiled step cannot branch on values
        check_rates(decay)

    precision = state.key.dtype
    with torch.autocast(query.device.type, enabled=False):
        q = query.to(precision)
        k, v = (repeat_heads(x.to(precision), query.shape[1]) for x in (key, value))
        key_value, key_sum = state
        if decay is not None:
            kept = torch.exp(-decay.to(precision))[:, None]
            key_value, key_sum = kept[..., None] * key_value, kept * key_sum
        key_value, key_sum = key_value + k.mT @ v, key_sum + k[:, :, 0]
        out = q @ key_value
        if normalize:
            out = out / (q @ key_sum.unsqueeze(-1) + eps)
    return out.to(value.dtype), LinearState(key_value, key_sum)


def _check_decay(decay: Tensor | None, query: Tensor) -> None:
    if decay is None:
        return
    if not isinstance(decay, Tensor) or not decay.is_floating_point():
        got = decay.dtype if isinstance(decay, Tensor) else type(decay).__name__
        raise TypeError(f"decay must be a floating-point tensor, got {got}")
    if tuple(decay.shape) != (query.shape[1],):
        raise ValueError(f"decay must have shape [heads] = [{query.shape[1]}], got {list(decay.shape)}")
    if decay.device != query.device:
        raise ValueError(f"decay must be on query's device {query.device}, got {decay.device}")
    if decay.requires_grad and torch.is_grad_enabled():
        raise ValueError("decay must be a constant, got a tensor that requires a gradient")


def _check_offsets(offsets: Tensor | None, query: Tensor) -> None:
    if offsets is None:
        return
    if not isinstance(offsets, Tensor) or offsets.dtype not in (torch.int32, torch.int64):
        got = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        raise TypeError(f"offsets must be an int32 or int64 tensor, got {got}")
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise ValueError(f"offsets must have shape [sequences + 1], got {list(offsets.shape)}")
    if query.shape[0] != 1:
        raise ValueError(f"query must have batch size 1 with offsets, got {query.shape[0]}")


def _check_state(state: LinearState | None, query: Tensor, value: Tensor, sequences: int) -> None:
    if state is None:
        return
    precision = precision_of_sums(query, value)
    lead = (sequences, query.shape[1], query.shape[3])
    if not isinstance(state, LinearState):
        raise TypeError(f"state must be a LinearState, got {type(state).__name__}")
    for name, tensor, shape in (
        ("state.key_value", state.key_value, (*lead, value.shape[3])),
        ("state.key", state.key, lead),
    ):
        if tensor.dtype != precision:
            raise TypeError(f"{name} must have dtype {precision}, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.device != query.device:
            raise ValueError(f"{name} must be on query's device {query.device}, got {tensor.device}")
