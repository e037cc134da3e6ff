"""The transformers attention classes that can be converted, and where their projections are."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Where a transformer block keeps its self-attention.

    Args:
        attention: path of the attention module within the block.
        projections: paths of the query, key, value and output projections within the block.
    """

    attention: str
    projections: tuple[str, ...]


BERT = Architecture(
    "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
)
GPT2 = Architecture("attn", ("attn.c_attn", "attn.c_proj"))
LLAMA = Architecture("self_attn", tuple(f"self_attn.{name}_proj" for name in "qkvo"))
VIT = Architecture("attention", tuple(f"attention.{name}_proj" for name in "qkvo"))

ARCHITECTURES: dict[str, Architecture] = {
    "BertSelfAttention": BERT,
    "RobertaSelfAttention": BERT,
    "GPT2Attention": GPT2,
    "LlamaAttention": LLAMA,
    "MistralAttention": LLAMA,
    "Qwen2Attention": LLAMA,
    "Qwen3Attention": LLAMA,
    "GemmaAttention": LLAMA,
    "ViTAttention": VIT,
    "DeiTAttention": VIT,
}


def self_attentions(model: nn.Module) -> dict[int, tuple[str, Any]]:
    """Name and module of every self-attention of a known class, by layer; cross-attention is left out."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ARCHITECTURES and not getattr(module, "is_cross_attention", False):
            index = getattr(module, "layer_idx", None)
            found[len(found) if index is None else index] = (name, module)
    return found


def projection_names(name: str, attention: nn.Module) -> list[str]:
    """Names, in the model, of the projections that belong to the attention module called `name`."""
    architecture = ARCHITECTURES[type(attention).__name__]
    block = name.removesuffix(architecture.attention)
    return [block + projection for projection in architecture.projections]
