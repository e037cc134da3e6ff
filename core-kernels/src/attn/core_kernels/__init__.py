"""Attention primitives that observe, edit, sparsify and replace the softmax map."""

from attn.core_kernels.implementations import IMPLEMENTATIONS, Serves, capability_table
from attn.core_kernels.observe.mimicry_cross_entropy import MimicryRows, mimicry_cross_entropy
from attn.core_kernels.replace.linear_attention import LinearState, linear_attention, linear_attention_step

__all__ = [
    "IMPLEMENTATIONS",
    "LinearState",
    "MimicryRows",
    "Serves",
    "capability_table",
    "linear_attention",
    "linear_attention_step",
    "mimicry_cross_entropy",
]
