"""What both sets of registered operators, in PyTorch and in Triton, have in common: fakes, and what autograd saves."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(function: Callable[..., Any], *, suffix: str = "") -> Any:
    """Register ``attn::observe_<name><suffix>`` with the fake that is named like the function or its forward.

    Autocast is off inside, for it would round the logits.
    """

    @functools.wraps(function)
    def without_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False):
            return function(*args, **kwargs)

    name = function.__name__
    operator = torch.library.custom_op(f"attn::observe_{name}{suffix}", without_autocast, mutates_args=())
    operator.register_fake(_FAKES[name])
    return operator


def precision(query: Tensor) -> torch.dtype:
    """Format of statistics: float32, float64 for float64."""
    return torch.promote_types(query.dtype, torch.float32)


def differentiate_attention(operator: Any, backward: Callable[..., Any]) -> None:
    """Make ``attention_with_lse`` differentiable by its registered backward."""

    def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
        query, key, value, ctx.scale, ctx.offset, ctx.causal, ctx.window, key_mask, positions = inputs
        ctx.save_for_backward(query, key, value, *output, key_mask, positions)

    def differentiate(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
        *saved, key_mask, positions = ctx.saved_tensors
        rule = ctx.scale, ctx.offset, ctx.causal, ctx.window, key_mask, positions
        return *backward(grad_out, grad_lse, *saved, *rule), *[None] * 6

    operator.register_autograd(differentiate, setup_context=setup)


def differentiate_submap(operator: Any, backward: Callable[..., Any]) -> None:
    """Make ``submap`` differentiable by its registered backward."""

    def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
        query, key, columns, ctx.mean_heads, ctx.scale, ctx.offset, ctx.causal, ctx.window, key_mask, positions = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, key, columns, output[1], key_mask, positions)

    def differentiate(ctx, grad, _grad_lse):  # type: ignore[no-untyped-def]
        *saved, key_mask, positions = ctx.saved_tensors
        rule = ctx.scale, ctx.offset, ctx.causal, ctx.window, key_mask, positions
        return *backward(grad, *saved, ctx.mean_heads, *rule), *[None] * 8

    operator.register_autograd(differentiate, setup_context=setup)


def _attention_with_lse(query, _key, value, *_rest):  # type: ignore[no-untyped-def]
    return query.new_empty(*query.shape[:3], value.shape[-1]), query.new_empty(query.shape[:3], dtype=precision(query))


def _attention_with_lse_backward(_grad_out, _grad_lse, query, key, value, *_rest):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _key_moments(query, key, row_weights, _lse, squares, *_rest):  # type: ignore[no-untyped-def]
    mass = query.new_empty(*query.shape[:2], row_weights.shape[2], key.shape[2], dtype=precision(query))
    return mass, mass.new_empty(query.shape[0] if squares else 0, *mass.shape[1:])


def _suffix_key_mass(query, key, block_size, mean_heads, *_rest):  # type: ignore[no-untyped-def]
    lead = query.shape[:1] if mean_heads else query.shape[:2]
    return query.new_empty(*lead, -(-query.shape[2] // block_size), key.shape[2], dtype=precision(query))


def _row_stats(query, _key, *_rest):  # type: ignore[no-untyped-def]
    row = query.new_empty(query.shape[:3], dtype=precision(query))
    return row, torch.empty_like(row), torch.empty_like(row, dtype=torch.int64), torch.empty_like(row)


def _tile_stats(query, key, tile_rows, tile_keys, *_rest):  # type: ignore[no-untyped-def]
    shape = *query.shape[:2], -(-query.shape[2] // tile_rows), -(-key.shape[2] // tile_keys)
    total = query.new_empty(shape, dtype=precision(query))
    counts = (torch.empty_like(total, dtype=torch.int64) for _ in range(2))
    return total, torch.empty_like(total), *counts


def _mass_by_distance(query, _key, _query_places, _key_places, edges, *_rest):  # type: ignore[no-untyped-def]
    return query.new_empty(*query.shape[:3], len(edges), dtype=precision(query))


def _logit_by_distance(query, _key, _query_places, _key_places, edges, *_rest):  # type: ignore[no-untyped-def]
    return query.new_empty(*query.shape[:2], len(edges), dtype=precision(query))


def _submap(query, key, columns, mean_heads, *_rest):  # type: ignore[no-untyped-def]
    lead = query.shape[:1] if mean_heads else query.shape[:2]
    width = key.shape[2] if columns is None else columns.shape[1]
    lse = query.new_empty(query.shape[:3], dtype=precision(query))
    return lse.new_empty(*lead, query.shape[2], width), lse


def _submap_backward(_grad, query, key, *_rest):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape)


_FAKES = {
    fake.__name__.removeprefix("_"): fake
    for fake in (
        _attention_with_lse, _attention_with_lse_backward, _key_moments, _suffix_key_mass, _row_stats, _tile_stats,
        _mass_by_distance, _logit_by_distance, _submap, _submap_backward,
    )
}  # fmt: skip
