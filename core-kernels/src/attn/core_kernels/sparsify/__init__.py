"""Attention over chosen blocks or tokens only."""

from attn.core_kernels.sparsify import mask_rules
from attn.core_kernels.sparsify.block_layout import BlockLayout, BlockTable, Density
from attn.core_kernels.sparsify.block_sparse import block_sparse_attention, windowed_attention
from attn.core_kernels.sparsify.mask_rules import MaskRule

__all__ = [
    "BlockLayout",
    "BlockTable",
    "Density",
    "MaskRule",
    "block_sparse_attention",
    "mask_rules",
    "windowed_attention",
]
