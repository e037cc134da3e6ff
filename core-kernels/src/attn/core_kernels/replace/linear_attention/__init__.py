"""Linear attention: softmax weights replaced by products of features, so that past tokens fit into a state."""

from attn.core_kernels.replace.linear_attention.api import linear_attention, linear_attention_step
from attn.core_kernels.replace.linear_attention.state import LinearState

__all__ = ["LinearState", "linear_attention", "linear_attention_step"]
