"""Edits after the softmax: the map changed for chosen heads, rows or keys."""

from attn.core_kernels.edit.probabilities.api import edit_map, mix_values, remap_columns, scale_keys, swap_map

__all__ = ["edit_map", "mix_values", "remap_columns", "scale_keys", "swap_map"]
