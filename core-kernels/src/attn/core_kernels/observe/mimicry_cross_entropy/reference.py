"""The mimicry cross-entropy as its definition, with both maps stored."""

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads


def row_entropies(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    key_mask: Tensor | None,
    scale: float,
    causal: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and the teacher's entropy, each ``[batch, heads, tokens]``."""
    precision = torch.promote_types(torch.promote_types(query.dtype, query_features.dtype), torch.float32)
    scores, products = (
        left.to(precision) @ repeat_heads(right.to(precision), left.shape[1]).mT
        for left, right in ((query, key), (query_features, key_features))
    )
    visible = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device)
    if causal:
        visible = visible.tril()
    if key_mask is not None:
        visible = visible & key_mask[:, None, :, None] & key_mask[:, None, None, :]
    teacher = torch.softmax((scale * scores).masked_fill(~visible, -torch.inf), dim=-1).masked_fill(~visible, 0)
    products = products.masked_fill(~visible, 0)
    total = products.sum(-1, keepdim=True)
    student = torch.where(total == 0, 0, products / torch.where(total == 0, 1, total)).clamp(min=eps)
    return -(teacher * student.log()).sum(-1), torch.special.entr(teacher).sum(-1)
