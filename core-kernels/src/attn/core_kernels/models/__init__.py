"""Reads and edits of attention on unmodified models of transformers and diffusers."""

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
    "KeyMass",
    "KeyMoments",
    "LogitByDistance",
    "MassByDistance",
    "MeanMap",
    "Read",
    "Records",
    "RowEntropy",
    "RowLse",
    "RowStats",
    "Seen",
    "Submap",
    "SuffixKeyMass",
    "TileStats",
    "attention_layers",
    "edit",
    "probe",
]
