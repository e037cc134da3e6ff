"""Softmax attention over chosen blocks of the map, and over a sliding window."""

from attn.core_kernels.sparsify.block_sparse.api import block_sparse_attention, windowed_attention

__all__ = ["block_sparse_attention", "windowed_attention"]
