"""Attention primitives that observe, edit, sparsify and replace the softmax map."""

from attn.core_kernels.implementations import IMPLEMENTATIONS, Serves, capability_table

__all__ = ["IMPLEMENTATIONS", "Serves", "capability_table"]
