"""What the registered operators of block-sparse attention have in common: their fakes, and what autograd saves."""

from typing import Any

import torch
from torch import Tensor


def complete(forward: Any, backward: Any) -> None:
    """Give a registered operator and its registered backward their fakes, and make the former differentiable.

    Args:
        forward: of query, key, value, key_mask, tables and further arguments without a gradient; gives out and lse.
        backward: of the gradients of out and lse, query, key, value, out, lse and the other arguments of ``forward``.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, key_mask, tables, *ctx.rest = inputs
        ctx.save_for_backward(query, key, value, *output, key_mask, *tables)

    def differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse, key_mask, *tables = ctx.saved_tensors
        grads = backward(grad_out, grad_lse, query, key, value, out, lse, key_mask, tables, *ctx.rest)
        return *grads, None, [None] * len(tables), *[None] * len(ctx.rest)

    forward.register_fake(_attended)
    forward.register_autograd(differentiate, setup_context=save)
    backward.register_fake(_gradients)


def _attended(query: Tensor, _key: Tensor, value: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


def _gradients(_grad_out: Tensor, _grad_lse: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in rest[:3])
