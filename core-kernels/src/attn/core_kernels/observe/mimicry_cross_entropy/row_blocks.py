"""The mimicry cross-entropy over blocks of rows: one pass for the softmax, one for the student; neither map is kept.

With products ``p`` and their row sum ``Z``, a row's loss has the gradient ``dL/dp_j = A / Z - a_j / p_j``, where the
second term is left out where ``p_j / Z`` was held at eps, and ``A`` is the sum of ``a`` over the others.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads, sum_groups


@torch.library.custom_op("attn::mimicry_cross_entropy", mutates_args=())
def row_entropies(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    eps: float,
    row_chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, the teacher's entropy and its log-sum-exp, each ``[batch, heads, tokens]``."""
    cross_entropy, teacher_entropy, lse = _empty_rows(query, query_features)
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys, hidden in _blocks(query.shape[2], causal, row_chunk, key_mask, query.device):
            scores = _products(query, key, rows, keys, lse.dtype).mul_(scale)
            if hidden is not None:
                scores.masked_fill_(hidden, -torch.inf)
            lse[:, :, rows] = block_lse = torch.logsumexp(scores, dim=-1)
            scores.sub_(_finite(block_lse).unsqueeze(-1))
            teacher = scores.exp()
            teacher_entropy[:, :, rows] = -scores.clamp_(min=torch.finfo(lse.dtype).min).mul_(teacher).sum(-1)
            student, _ = _student(query_features, key_features, rows, keys, hidden, lse.dtype)
            cross_entropy[:, :, rows] = -student.clamp_(min=eps).log_().mul_(teacher).sum(-1)
    return cross_entropy, teacher_entropy, lse


@torch.library.custom_op("attn::mimicry_cross_entropy_backward", mutates_args=())
def row_entropies_backward(
    grad: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    eps: float,
    row_chunk: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the features."""
    batch, heads, tokens, features = query_features.shape
    grad_query = torch.empty_like(query_features, memory_format=torch.contiguous_format)
    grad_key = lse.new_zeros(batch, key_features.shape[1], tokens, features)
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys, hidden in _blocks(tokens, causal, row_chunk, key_mask, query.device):
            teacher = _products(query, key, rows, keys, lse.dtype).mul_(scale)
            teacher.sub_(_finite(lse[:, :, rows]).unsqueeze(-1)).exp_()
            if hidden is not None:
                teacher.masked_fill_(hidden, 0)
            student, total = _student(query_features, key_features, rows, keys, hidden, lse.dtype)
            teacher.masked_fill_(student < eps, 0)
            active = teacher.sum(-1, keepdim=True)
            # a / p = a / (s Z); where a was struck out, s may be zero
            grad_products = active - teacher.div_(student.clamp_(min=eps))
            if hidden is not None:
                grad_products.masked_fill_(hidden, 0)
            grad_products.mul_(grad[:, :, rows].unsqueeze(-1) / total)
            grad_query[:, :, rows] = grad_products @ repeat_heads(key_features[:, :, keys].to(lse.dtype), heads)
            share = grad_products.mT @ query_features[:, :, rows].to(lse.dtype)
            grad_key[:, :, keys] += sum_groups(share, grad_key.shape[1])
    return grad_query, grad_key.to(key_features.dtype)


@row_entropies.register_fake
def _(query: Tensor, _: Tensor, query_features: Tensor, *__: object) -> tuple[Tensor, ...]:
    return _empty_rows(query, query_features)


@row_entropies_backward.register_fake
def _(
    _: Tensor, __: Tensor, ___: Tensor, ____: Tensor, query_features: Tensor, key_features: Tensor, *_____: object
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query_features, key_features))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[2], *inputs[:5])
    ctx.settings = inputs[5:]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
    grads = row_entropies_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return None, None, *grads, None, None, None, None, None


row_entropies.register_autograd(_backward, setup_context=_save)


def _blocks(
    tokens: int, causal: bool, row_chunk: int, key_mask: Tensor | None, device: torch.device
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows, the keys that any of them sees, and which pairs of them are hidden."""
    for start in range(0, tokens, row_chunk):
        rows = slice(start, min(start + row_chunk, tokens))
        keys = slice(0, rows.stop if causal else tokens)
        hidden = None
        if causal:
            hidden = torch.ones(rows.stop - start, rows.stop, dtype=torch.bool, device=device).triu_(start + 1)
        if key_mask is not None:
            unseen = ~(key_mask[:, None, rows, None] & key_mask[:, None, None, keys])
            hidden = unseen if hidden is None else hidden | unseen
        yield rows, keys, hidden


def _products(left: Tensor, right: Tensor, rows: slice, keys: slice, precision: torch.dtype) -> Tensor:
    return left[:, :, rows].to(precision) @ repeat_heads(right[:, :, keys].to(precision), left.shape[1]).mT


def _student(
    query_features: Tensor,
    key_features: Tensor,
    rows: slice,
    keys: slice,
    hidden: Tensor | None,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The student's weights, and their sum before normalisation with one in place of zero."""
    products = _products(query_features, key_features, rows, keys, precision)
    if hidden is not None:
        products.masked_fill_(hidden, 0)
    total = products.sum(-1, keepdim=True)
    empty = total == 0
    return products.div_(total.masked_fill_(empty, 1)).masked_fill_(empty, 0), total


def _empty_rows(query: Tensor, query_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    precision = torch.promote_types(torch.promote_types(query.dtype, query_features.dtype), torch.float32)
    rows = query.new_empty(query.shape[:3], dtype=precision)
    return rows, torch.empty_like(rows), torch.empty_like(rows)


def _finite(lse: Tensor) -> Tensor:
    """Zero where no key is visible, so that its row of scores stays at minus infinity."""
    return lse.masked_fill(lse == -torch.inf, 0)
