"""The specification of block-sparse attention: the softmax over the pairs that layout and visibility leave, dense."""

import torch
from torch import Tensor

from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.sparsify.block_layout import BlockLayout
from attn.core_kernels.visibility import Visibility


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float, visibility: Visibility
) -> tuple[Tensor, Tensor]:
    """The output in query's dtype and the log-sum-exp of the rows."""
    precision = torch.promote_types(query.dtype, torch.float32)
    key, value = (repeat_heads(x, query.shape[1]).to(precision) for x in (key, value))
    visible = repeat_heads(layout.to_dense(), query.shape[1]) & visibility.whole_mask(query.device)
    logits = (scale * query.to(precision) @ key.mT).masked_fill(~visible, -torch.inf)
    sees_none = ~visible.any(-1, keepdim=True)
    lse = logits.masked_fill(sees_none, 0).logsumexp(-1, keepdim=True)
    return ((logits - lse).exp() @ value).to(query.dtype), lse.masked_fill(sees_none, -torch.inf)[..., 0]
