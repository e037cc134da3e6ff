"""Attention primitives that observe, edit, sparsify and replace the softmax map."""

from attn.core_kernels.edit.probabilities import edit_map, mix_values, remap_columns, scale_keys, swap_map
from attn.core_kernels.edit.scores import boost_keys, decay_outside_window
from attn.core_kernels.implementations import IMPLEMENTATIONS, Serves, capability_table
from attn.core_kernels.models import KeyMass, RowEntropy, RowLse, probe
from attn.core_kernels.observe.mimicry_cross_entropy import MimicryRows, mimicry_cross_entropy
from attn.core_kernels.observe.softmax_map import (
    KeyMoments,
    RowStats,
    TileStats,
    attention_with_lse,
    key_mass,
    key_moments,
    logit_by_distance,
    mass_by_distance,
    mean_map,
    row_stats,
    submap,
    suffix_key_mass,
    tile_stats,
)
from attn.core_kernels.replace.linear_attention import LinearState, linear_attention, linear_attention_step
from attn.core_kernels.sparsify import BlockLayout, Density, block_sparse_attention, windowed_attention

__all__ = [
    "IMPLEMENTATIONS",
    "BlockLayout",
    "Density",
    "KeyMass",
    "KeyMoments",
    "LinearState",
    "MimicryRows",
    "RowEntropy",
    "RowLse",
    "RowStats",
    "Serves",
    "TileStats",
    "attention_with_lse",
    "block_sparse_attention",
    "boost_keys",
    "capability_table",
    "decay_outside_window",
    "edit_map",
    "key_mass",
    "key_moments",
    "linear_attention",
    "linear_attention_step",
    "logit_by_distance",
    "mass_by_distance",
    "mean_map",
    "mimicry_cross_entropy",
    "mix_values",
    "probe",
    "remap_columns",
    "row_stats",
    "scale_keys",
    "submap",
    "suffix_key_mass",
    "swap_map",
    "tile_stats",
    "windowed_attention",
]
