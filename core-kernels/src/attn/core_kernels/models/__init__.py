"""Reads and edits of attention on unmodified models of transformers and diffusers."""

from attn.core_kernels.models.edits import (
    BoostKeys,
    DecayOutsideWindow,
    EditMap,
    MixValues,
    RemapColumns,
    ScaleKeys,
    SwapMap,
)
from attn.core_kernels.models.probe import attention_layers, edit, probe
from attn.core_kernels.models.reads import (
    KeyMass,
    KeyMoments,
    LogitByDistance,
    MassByDistance,
    MeanMap,
    Read,
    RowEntropy,
    RowLse,
    RowStats,
    Submap,
    SuffixKeyMass,
    TileStats,
)
from attn.core_kernels.models.records import Records, Seen

__all__ = [
    "BoostKeys",
    "DecayOutsideWindow",
    "EditMap",
    "KeyMass",
    "KeyMoments",
    "LogitByDistance",
    "MassByDistance",
    "MeanMap",
    "MixValues",
    "Read",
    "Records",
    "RemapColumns",
    "RowEntropy",
    "RowLse",
    "RowStats",
    "ScaleKeys",
    "Seen",
    "Submap",
    "SuffixKeyMass",
    "SwapMap",
    "TileStats",
    "attention_layers",
    "edit",
    "probe",
]
