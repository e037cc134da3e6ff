"""Linear attention chunk by chunk: past chunks enter through a state, so memory grows with tokens alone.

The backward makes the states before all chunks again and carries their gradient from the last chunk to the first
(section 3.3 and appendix C of Lightning Attention, Qin et al., 2024), so that nothing but the arguments is kept between
the two. A state of zeros is None and costs nothing: tokens that fit into one chunk are computed without any.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads, sum_groups
from attn.core_kernels.replace.linear_attention.state import (
    LinearState,
    check_rates,
    divided,
    extended,
    precision_of_sums,
    sequence_spans,
)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState | None,
    *,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    normalize: bool,
    eps: float,
    return_state: bool,
    chunk_size: int,
) -> tuple[Tensor, LinearState | None]:
    """The output and, if asked for, the state after the last token.

    Args:
        query: ``[batch, heads, tokens, features]``.
        key: ``[batch, key_heads, tokens, features]``.
        value: ``[batch, key_heads, tokens, value_dim]``.
        state: sums over earlier tokens; None for zeros.
        decay: ``[heads]`` rates, or None.
        age: ``[batch, tokens]``, how many visible tokens there are up to and including each; None if all are.
        offsets: ``[sequences + 1]`` bounds of packed sequences, or None.
        causal: whether a token sees itself and earlier ones only.
        normalize: whether to divide by the sum of the weights.
        eps: added to that sum.
        return_state: whether the state after the last token is asked for.
        chunk_size: tokens whose weights are computed at once.
    """
    dtype, value = value.dtype, extended(value, torch.ones_like(value[..., 0]))
    past = None if state is None else extended(*state)
    total, after = chunked_sums(query, key, value, past, decay, age, offsets, causal, return_state, chunk_size)
    out = divided(total[..., :-1], total[..., -1], normalize, eps)
    return out.to(dtype), LinearState(after[..., :-1], after[..., -1]) if return_state else None


@torch.library.custom_op("attn::linear_attention_chunked", mutates_args=())
def chunked_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor | None,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    return_state: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Sums ``[batch, heads, tokens, value_dim]`` and the state after the last token, empty if not asked for.

    States, before or after, need ``causal``.
    """
    check_rates(decay)
    total, after = _new_sums(query, value, offsets, return_state)
    with torch.autocast(query.device.type, enabled=False):
        for row, (start, stop) in enumerate(sequence_spans(offsets, query.shape[2])):
            chunks = _Chunks(decay, age, start, stop, chunk_size, query.shape[1], total)
            rows = slice(None) if offsets is None else slice(row, row + 1)
            if not causal:
                whole = chunks.outer_sum(key, value)
                for span in chunks.spans:
                    total[:, :, span] = chunks.read(query, span) @ whole
                continue
            states = chunks.states(key, value, None if state is None else state[rows])
            for span, past in zip(chunks.spans, states, strict=False):
                q, k, v = (chunks.read(x, span) for x in (query, key, value))
                within, from_past, _, _ = chunks.fading(span)
                total[:, :, span] = _plus((q @ k.mT).mul_(within) @ v, _times(q, from_past), past)
            if return_state:
                last = next(states)
                after[rows] = 0 if last is None else last
    return total, after


@torch.library.custom_op("attn::linear_attention_chunked_backward", mutates_args=())
def chunked_sums_backward(
    grad_total: Tensor,
    grad_after: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor | None,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    return_state: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and state, the last empty without a state."""
    grad_query, grad_key, grad_value, grad_state = _new_gradients(query, key, value, state, grad_total)
    with torch.autocast(query.device.type, enabled=False):
        for row, (start, stop) in enumerate(sequence_spans(offsets, query.shape[2])):
            chunks = _Chunks(decay, age, start, stop, chunk_size, query.shape[1], grad_total)
            rows = slice(None) if offsets is None else slice(row, row + 1)
            if not causal:
                whole, grad_whole = chunks.outer_sum(key, value), chunks.outer_sum(query, grad_total)
                for span in chunks.spans:
                    k, v, grad = (chunks.read(x, span) for x in (key, value, grad_total))
                    grad_query[:, :, span] = grad @ whole.mT
                    grad_key[:, :, span] = sum_groups(v @ grad_whole.mT, key.shape[1])
                    grad_value[:, :, span] = sum_groups(k @ grad_whole, key.shape[1])
                continue
            future = grad_after[rows] if return_state else None
            states = list(zip(chunks.spans, chunks.states(key, value, None if state is None else state[rows])))  # noqa: B905
            for span, past in reversed(states):
                q, k, v, grad = (chunks.read(x, span) for x in (query, key, value, grad_total))
                within, from_past, to_future, kept = chunks.fading(span)
                weights, grad_weights = (q @ k.mT).mul_(within), (grad @ v.mT).mul_(within)
                dk = _plus(grad_weights.mT @ q, _times(v, to_future), future, transposed=True)
                dv = _plus(weights.mT @ grad, _times(k, to_future), future)
                grad_query[:, :, span] = _plus(grad_weights @ k, _times(grad, from_past), past, transposed=True)
                grad_key[:, :, span] = sum_groups(dk, key.shape[1])
                grad_value[:, :, span] = sum_groups(dv, key.shape[1])
                if span.start > start or state is not None:
                    future = _carried(future, kept, _times(q, from_past).mT @ grad)
            if state is not None:
                grad_state[rows] = 0 if future is None else future
    return grad_query, grad_key, grad_value, grad_state


@chunked_sums.register_fake
def _(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,
    state: Tensor | None,  # noqa: ARG001
    decay: Tensor | None,  # noqa: ARG001
    age: Tensor | None,  # noqa: ARG001
    offsets: Tensor | None,
    causal: bool,  # noqa: ARG001
    return_state: bool,
    chunk_size: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return _new_sums(query, value, offsets, return_state)


@chunked_sums_backward.register_fake
def _(grad_total: Tensor, _: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    query, key, value, state = rows[:4]
    return _new_gradients(query, key, value, state, grad_total)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.causal, ctx.return_state, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_total, grad_after):  # type: ignore[no-untyped-def]
    options = ctx.causal, ctx.return_state, ctx.chunk_size
    saved = ctx.saved_tensors  # activation checkpointing gives them out once
    *grads, grad_state = chunked_sums_backward(grad_total, grad_after, *saved, *options)
    return *grads, None if saved[3] is None else grad_state, *(None,) * 6


chunked_sums.register_autograd(_backward, setup_context=_save)


def _new_sums(query: Tensor, value: Tensor, offsets: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor]:
    """Memory for the sums and the state."""
    (batch, heads, tokens, features), value_dim = query.shape, value.shape[3]
    sequences = batch if offsets is None else offsets.shape[0] - 1
    shape = (sequences, heads, features, value_dim) if return_state else (0,)
    precision = precision_of_sums(query, value)
    return tuple(value.new_empty(x, dtype=precision) for x in ((batch, heads, tokens, value_dim), shape))  # type: ignore[return-value]


def _new_gradients(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor | None, grad_total: Tensor
) -> tuple[Tensor, ...]:
    """Memory for the gradients."""
    rows = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    return *rows, grad_total.new_empty((0,) if state is None else state.shape)


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
        sums: Tensor,
    ) -> None:
        self.rate = None if decay is None else decay.to(sums.dtype)[:, None, None]
        self.age = age
        self.heads = heads
        self.precision, self.device = sums.dtype, sums.device
        self.spans = [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
        self.by_length: dict[int, _Fading] = {}

    def read(self, tensor: Tensor, span: slice) -> Tensor:
        """A chunk in the precision of the sums, grouped heads repeated."""
        return repeat_heads(tensor[:, :, span].to(self.precision), self.heads)

    def states(self, key: Tensor, value: Tensor, past: Tensor | None) -> Iterator[Tensor | None]:
        """The state before each chunk, and at last the one after all, each made when it is asked for."""
        for span in self.spans:
            yield past
            _, _, to_future, kept = self.fading(span)
            past = _carried(past, kept, _times(self.read(key, span), to_future).mT @ self.read(value, span))
        yield past

    def outer_sum(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum of the outer products of all rows."""
        sums = [self.read(left, span).mT @ self.read(right, span) for span in self.spans[:1]]
        for span in self.spans[1:]:
            sums[0] += self.read(left, span).mT @ self.read(right, span)
        return sums[0] if sums else left.new_zeros(left.shape[0], self.heads, left.shape[3], right.shape[3])

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


def _times(rows: Tensor, factor: Tensor | None) -> Tensor:
    return rows if factor is None else rows * factor


def _plus(sums: Tensor, rows: Tensor, state: Tensor | None, *, transposed: bool = False) -> Tensor:
    """``sums`` with the rows' share of a state added in place."""
    return sums if state is None else sums.add_(rows @ (state.mT if transposed else state))


def _carried(state: Tensor | None, kept: Tensor | None, gained: Tensor) -> Tensor:
    """The state across a chunk, in the memory of ``gained``."""
    return gained if state is None else gained.add_(_times(state, kept))
