"""Hedgehog: linear attention whose feature maps are trained to mimic softmax attention weights."""

from attn.hedgehog.adapters import convert, hedgehog_layers, lora_config, revert, set_mode
from attn.hedgehog.interface import HedgehogLayer

__all__ = ["HedgehogLayer", "convert", "hedgehog_layers", "lora_config", "revert", "set_mode"]
