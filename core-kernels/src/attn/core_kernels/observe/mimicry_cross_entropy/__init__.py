"""How far a student's product weights are from softmax weights, row by row."""

from attn.core_kernels.observe.mimicry_cross_entropy.api import MimicryRows, mimicry_cross_entropy

__all__ = ["MimicryRows", "mimicry_cross_entropy"]
