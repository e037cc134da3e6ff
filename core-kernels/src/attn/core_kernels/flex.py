"""FlexAttention under a rule of visibility: compiled on CUDA; on the CPU its dense form, without a gradient."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from attn.core_kernels.visibility import Visibility

Edit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``edit(score, batch, head, query, key)``, as FlexAttention's ``score_mod``."""


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    visibility: Visibility,
    *,
    edit: Edit | None = None,
    block_mask: BlockMask | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the rows; output 0 and -inf for a row that sees no key.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        value: ``[batch, key_heads, keys, value_dim]``.
        scale: factor of the scores.
        visibility: which keys the queries see.
        edit: what becomes of the scores before the softmax; None for what they are.
        block_mask: which pairs are left at all; None for all.
    """
    rule = visibility

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        edited = score if edit is None else edit(score, b, h, i, j)
        position = i + rule.offset if rule.positions is None else rule.positions[b * (rule.positions.shape[0] > 1), i]
        if rule.causal:
            edited = torch.where(j <= position, edited, -torch.inf)
        if rule.window is not None:
            edited = torch.where((j - position).abs() < rule.window, edited, -torch.inf)
        if rule.key_mask is not None:
            edited = torch.where(rule.key_mask[b, j], edited, -torch.inf)
        return edited

    flex = _compiled() if query.device.type == "cuda" and not torch.compiler.is_compiling() else flex_attention
    out, aux = flex(
        query,
        key,
        value,
        score_mod if edit or rule.causal or rule.window is not None or rule.key_mask is not None else None,
        block_mask,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out.masked_fill(aux.lse[..., None] == -torch.inf, 0), aux.lse
