"""Statistics and parts of the softmax map, without storing it."""

from attn.core_kernels.observe.softmax_map.api import (
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
from attn.core_kernels.observe.softmax_map.results import KeyMoments, RowStats, TileStats

__all__ = [
    "KeyMoments",
    "RowStats",
    "TileStats",
    "attention_with_lse",
    "key_mass",
    "key_moments",
    "logit_by_distance",
    "mass_by_distance",
    "mean_map",
    "row_stats",
    "submap",
    "suffix_key_mass",
    "tile_stats",
]
