"""Hedgehog: linear attention whose feature maps are trained to mimic softmax attention weights (Zhang et al., 2024)."""

from attn.hedgehog.adapters import convert, lora_config, revert, set_mode
from attn.hedgehog.attention import ConvertedAttention, LinearAttention, hedgehog_layers
from attn.hedgehog.diagnostics import largest_projection, monotonicity, smallest_normalizer, spikiness
from attn.hedgehog.distillation import distill
from attn.hedgehog.feature_maps import (
    FEATURE_MAPS,
    CosformerFeatureMap,
    EluFeatureMap,
    ExpFeatureMap,
    FeatureMap,
    HedgehogFeatureMap,
    PerformerFeatureMap,
    ReluFeatureMap,
    T2RFeatureMap,
    TaylorFeatureMap,
    feature_map,
    query_key_maps,
)
from attn.hedgehog.losses import AttentionCrossEntropy, attention_cross_entropy, output_mse
from attn.hedgehog.persistence import from_pretrained

__all__ = [
    "FEATURE_MAPS",
    "AttentionCrossEntropy",
    "ConvertedAttention",
    "CosformerFeatureMap",
    "EluFeatureMap",
    "ExpFeatureMap",
    "FeatureMap",
    "HedgehogFeatureMap",
    "LinearAttention",
    "PerformerFeatureMap",
    "ReluFeatureMap",
    "T2RFeatureMap",
    "TaylorFeatureMap",
    "attention_cross_entropy",
    "convert",
    "distill",
    "feature_map",
    "from_pretrained",
    "hedgehog_layers",
    "largest_projection",
    "lora_config",
    "monotonicity",
    "output_mse",
    "query_key_maps",
    "revert",
    "set_mode",
    "smallest_normalizer",
    "spikiness",
]
