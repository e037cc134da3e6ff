"""Hedgehog: linear attention whose feature maps are trained to mimic softmax attention weights."""

from attn.hedgehog.adapters import convert, lora_config, revert, set_mode
from attn.hedgehog.attention import ConvertedAttention, LinearAttention, hedgehog_layers

__all__ = ["ConvertedAttention", "LinearAttention", "convert", "hedgehog_layers", "lora_config", "revert", "set_mode"]
