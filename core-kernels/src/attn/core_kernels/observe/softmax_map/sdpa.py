"""Output and log-sum-exp by the kernels behind scaled_dot_product_attention, where they compute the same function."""

import functools

import torch
from torch import Tensor


def serves(
    query: Tensor,
    value: Tensor,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> bool:
    """Whether a kernel that PyTorch has for the device computes this call.

    All want one width, no window and, if causal, as many queries as keys: their first query is level with the first
    key. That for CUDA wants half precision, rows of 8, 16, 24 and so on up to 256 numbers, and no key mask.
    """
    if window is not None or positions is not None or (causal and offset) or value.shape[-1] != query.shape[-1]:
        return False
    if not query.numel():
        return False
    if query.device.type == "cpu":
        return True
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and key_mask is None
        and query.dtype in (torch.bfloat16, torch.float16)
        and width % 8 == 0
        and width <= 256
        and _has_flash_attention(query.device.index)
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, value_dim]`` in query's dtype and lse ``[batch, heads, queries]``."""
    # The kernels read rows as if they were dense, whatever their last stride.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if query.device.type == "cuda":
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, *_ = flash(query, key, value, is_causal=causal, scale=scale)
        return out.contiguous(), lse.contiguous()
    bias = None
    if key_mask is not None:
        bias = torch.zeros(key_mask.shape, dtype=query.dtype).masked_fill_(~key_mask, -torch.inf)[:, None, None]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=causal, attn_mask=bias, scale=scale
    )
    if key_mask is not None:  # the kernel gives 0 where no key is visible
        seen = key_mask.cumsum(-1)[:, None, -query.shape[2] :] if causal else key_mask.sum(-1)[:, None, None]
        lse = lse.masked_fill(seen == 0, -torch.inf)
    return out.contiguous(), lse.contiguous()


@torch.compiler.assume_constant_result
@functools.cache
def _has_flash_attention(index: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (8, 0)
