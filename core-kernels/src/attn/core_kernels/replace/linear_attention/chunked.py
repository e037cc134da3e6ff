"""Linear attention chunk by chunk: past chunks enter through a state, so memory grows with tokens alone.

The backward recomputes the states in a sweep forward and carries their gradient in a sweep backward (section 3.3 and
appendix C of Lightning Attention, Qin et al., 2024), so that nothing but the arguments is stored.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads, sum_groups
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
    chunk_size: int,
) -> tuple[Tensor, LinearState]:
    """The output and the state after the last token.

    Args:
        query: ``[batch, heads, tokens, features]``.
        key: ``[batch, key_heads, tokens, features]``.
        value: ``[batch, key_heads, tokens, value_dim]``.
        state: sums over earlier tokens.
        decay: ``[heads]`` rates, or None.
        age: ``[batch, tokens]``, how many visible tokens there are up to and including each; None if all are.
        offsets: ``[sequences + 1]`` bounds of packed sequences, or None.
        causal: whether a token sees itself and earlier ones only.
        normalize: whether to divide by the sum of the weights.
        eps: added to that sum.
        chunk_size: tokens whose weights are computed at once.
    """
    dtype, value = value.dtype, extended(value, torch.ones_like(value[..., 0]))
    total, after = chunked_sums(query, key, value, extended(*state), decay, age, offsets, causal, chunk_size)
    out = divided(total[..., :-1], total[..., -1], normalize, eps)
    return out.to(dtype), LinearState(after[..., :-1], after[..., -1])


@torch.library.custom_op("attn::linear_attention_chunked", mutates_args=())
def chunked_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Sums ``[batch, heads, tokens, value_dim]`` and the state after the last token, both in the state's dtype."""
    check_rates(decay)
    total = state.new_empty(*query.shape[:3], value.shape[3])
    after = state.clone()
    with torch.autocast(query.device.type, enabled=False):
        for row, (start, stop) in enumerate(sequence_spans(offsets, query.shape[2])):
            chunks = _Chunks(decay, age, start, stop, chunk_size, query.shape[1], state)
            past = after if offsets is None else after[row : row + 1]
            if causal:
                _causal_forward(chunks, query, key, value, past, total)
            else:
                for span in chunks:
                    past += chunks.read(key, span).mT @ chunks.read(value, span)
                for span in chunks:
                    total[:, :, span] = chunks.read(query, span) @ past
    return total, after


@torch.library.custom_op("attn::linear_attention_chunked_backward", mutates_args=())
def chunked_sums_backward(
    grad_total: Tensor,
    grad_after: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and state."""
    grad_query, grad_key, grad_value = (_contiguous_like(x) for x in (query, key, value))
    grad_state = grad_after.clone(memory_format=torch.contiguous_format)
    with torch.autocast(query.device.type, enabled=False):
        for row, (start, stop) in enumerate(sequence_spans(offsets, query.shape[2])):
            chunks = _Chunks(decay, age, start, stop, chunk_size, query.shape[1], state)
            rows = slice(None) if offsets is None else slice(row, row + 1)
            sweep = _causal_backward if causal else _bidirectional_backward
            past, future = state[rows].clone(), grad_state[rows]
            sweep(chunks, query, key, value, past, grad_total, grad_query, grad_key, grad_value, future)
    return grad_query, grad_key, grad_value, grad_state


@chunked_sums.register_fake
def _(query: Tensor, _: Tensor, value: Tensor, state: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    return state.new_empty(*query.shape[:3], value.shape[3]), torch.empty_like(state)


@chunked_sums_backward.register_fake
def _(_: Tensor, grad_after: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: object) -> tuple[Tensor, ...]:
    return tuple(_contiguous_like(x) for x in (query, key, value, grad_after))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.causal, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_total, grad_after):  # type: ignore[no-untyped-def]
    grads = chunked_sums_backward(grad_total, grad_after, *ctx.saved_tensors, ctx.causal, ctx.chunk_size)
    return *grads, None, None, None, None, None


chunked_sums.register_autograd(_backward, setup_context=_save)


def _causal_forward(chunks: "_Chunks", query: Tensor, key: Tensor, value: Tensor, past: Tensor, total: Tensor) -> None:
    """Fill ``total``; ``past`` becomes the state after the last chunk."""
    for span in chunks:
        q, k, v = (chunks.read(x, span) for x in (query, key, value))
        within, from_past, to_future, kept = chunks.fading(span)
        weights = (q @ k.mT).mul_(within)
        total[:, :, span] = (weights @ v).add_(_times(q, from_past) @ past)
        _keep(past, kept).add_(_times(k, to_future).mT @ v)


def _causal_backward(
    chunks: "_Chunks",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor,
    grad_total: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    future: Tensor,
) -> None:
    """Fill the gradients; ``future``, the gradient of the state after the last chunk, becomes that of the first."""
    for span in chunks:
        k, v, grad = (chunks.read(x, span) for x in (key, value, grad_total))
        within, from_past, to_future, kept = chunks.fading(span)
        grad_weights = (grad @ v.mT).mul_(within)
        grad_query[:, :, span] = (grad_weights @ k).add_(_times(grad, from_past) @ past.mT)
        _keep(past, kept).add_(_times(k, to_future).mT @ v)
    for span in reversed(chunks):
        q, k, v, grad = (chunks.read(x, span) for x in (query, key, value, grad_total))
        within, from_past, to_future, kept = chunks.fading(span)
        weights, grad_weights = (q @ k.mT).mul_(within), (grad @ v.mT).mul_(within)
        grad_key[:, :, span] = sum_groups((grad_weights.mT @ q).add_(_times(v, to_future) @ future.mT), key.shape[1])
        grad_value[:, :, span] = sum_groups((weights.mT @ grad).add_(_times(k, to_future) @ future), key.shape[1])
        _keep(future, kept).add_(_times(q, from_past).mT @ grad)


def _bidirectional_backward(
    chunks: "_Chunks",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor,
    grad_total: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    future: Tensor,
) -> None:
    """Fill the gradients; ``future``, the gradient of the sum over all tokens, gains what came through the rows."""
    for span in chunks:
        past += chunks.read(key, span).mT @ chunks.read(value, span)
        future += chunks.read(query, span).mT @ chunks.read(grad_total, span)
    for span in chunks:
        grad_query[:, :, span] = chunks.read(grad_total, span) @ past.mT
        grad_key[:, :, span] = sum_groups(chunks.read(value, span) @ future.mT, key.shape[1])
        grad_value[:, :, span] = sum_groups(chunks.read(key, span) @ future, key.shape[1])


class _Chunks:
    """The chunks of one sequence, as slices of the tokens, and how weights fade within and across them."""

    def __init__(
        self,
        decay: Tensor | None,
        age: Tensor | None,
        start: int,
        stop: int,
        size: int,
        heads: int,
        state: Tensor,
    ) -> None:
        self.rate = None if decay is None else decay.to(state.dtype)[:, None, None]
        self.age = age
        self.heads = heads
        self.precision, self.device = state.dtype, state.device
        self.spans = [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
        self.by_length: dict[int, _Fading] = {}

    def __iter__(self) -> Iterator[slice]:
        return iter(self.spans)

    def __reversed__(self) -> Iterator[slice]:
        return reversed(self.spans)

    def read(self, tensor: Tensor, span: slice) -> Tensor:
        """A chunk in the precision of the sums, grouped heads repeated."""
        return repeat_heads(tensor[:, :, span].to(self.precision), self.heads)

    def fading(self, span: slice) -> "_Fading":
        """How weights fade in a chunk; without a mask this depends on the chunk's length alone."""
        length = span.stop - span.start
        if self.age is not None and self.rate is not None:
            before = self.age[:, span.start - 1 : span.start] if span.start else torch.zeros_like(self.age[:, :1])
            return _fading(self.rate, self.age[:, span], before)
        if length not in self.by_length:
            if self.rate is None:
                ones = torch.ones(length, length, dtype=self.precision, device=self.device)
                self.by_length[length] = _Fading(ones.tril(), None, None, None)
            else:
                age = torch.arange(1, length + 1, device=self.device)[None]
                self.by_length[length] = _fading(self.rate, age, torch.zeros_like(age[:, :1]))
        return self.by_length[length]


class _Fading(NamedTuple):
    """Factors between the tokens of a chunk and the state; None where nothing fades."""

    within: Tensor  # [batch or 1, heads, tokens, tokens], or [tokens, tokens]: of a row's weight on a key
    from_past: Tensor | None  # [batch or 1, heads, tokens, 1]: of the state before the chunk, seen by a row
    to_future: Tensor | None  # [batch or 1, heads, tokens, 1]: of a key in the state after the chunk
    kept: Tensor | None  # [batch or 1, heads, 1, 1]: of the state before in the state after


def _fading(rate: Tensor, age: Tensor, before: Tensor) -> _Fading:
    within = torch.exp(-rate * (age[:, None, :, None] - age[:, None, None, :]).clamp(min=0)).tril()
    from_past = torch.exp(-rate * (age - before)[:, None, :, None])
    to_future = torch.exp(-rate * (age[:, -1:] - age)[:, None, :, None])
    return _Fading(within, from_past, to_future, from_past[:, :, -1:])


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _times(rows: Tensor, factor: Tensor | None) -> Tensor:
    return rows if factor is None else rows * factor


def _keep(state: Tensor, factor: Tensor | None) -> Tensor:
    return state if factor is None else state.mul_(factor)
