"""A small causal Transformer for packed associative recall, with softmax or linear attention (tables 2 and 3)."""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from attn.hedgehog.attention import ConvertedAttention, softmax_attention
from attn.hedgehog.feature_maps import query_key_maps

SOFTMAX = "softmax"


class RecallAttention(nn.Module):
    """Causal multi-head self-attention with rotary positions, softmax until a `mixer` is attached.

    Args:
        dim: width of the tokens, a multiple of heads.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.mixer: ConvertedAttention | None = None

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys ``[batch, heads, tokens, head_dim]`` of x ``[batch, tokens, dim]``."""
        return rotate(self._split(self.query(x))), rotate(self._split(self.key(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within x ``[batch, tokens, dim]``."""
        query, key = self.queries_and_keys(x)
        value = self._split(self.value(x))
        if self.mixer is None:
            out = softmax_attention(query, key, value, causal=True)
        else:
            out, _ = self.mixer(query, key, value, causal=True)
        return self.out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class RecallBlock(nn.Module):
    """A pre-norm Transformer block: attention, then a two-layer perceptron of four times the width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = RecallAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """One block over ``[batch, tokens, dim]``."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class RecallModel(nn.Module):
    """Reads tokens that carry a key and a value, and names the value of a key that comes back alone.

    The embeddings of a token's key and value are added, so that one attention layer suffices for recall.

    Args:
        keys: size of the key vocabulary; id `keys` is "no key".
        values: size of the value vocabulary; id `values` is "no value".
        dim: width.
        heads: attention heads; head_dim is ``dim / heads``, even.
        layers: number of blocks.
        feature_map: a name in `FEATURE_MAPS`, or ``"softmax"``.
        map_options: options of the feature map.

    Raises:
        ValueError: if dim does not divide into heads of even width, or the feature map is unknown.
    """

    def __init__(
        self,
        *,
        keys: int = 20,
        values: int = 20,
        dim: int = 32,
        heads: int = 2,
        layers: int = 1,
        feature_map: str = SOFTMAX,
        map_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"dim must be a multiple of twice the {heads} heads, got {dim}")
        self.key_embedding = nn.Embedding(keys + 1, dim)
        self.value_embedding = nn.Embedding(values + 1, dim)
        self.blocks = nn.Sequential(*(RecallBlock(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        if feature_map != SOFTMAX:
            self.convert(feature_map, **(map_options or {}))

    def convert(self, feature_map: str = "hedgehog", **map_options: Any) -> Self:
        """Replace every softmax attention by linear attention with new maps, in place; weights stay."""
        for block in self.blocks:
            attention = cast(RecallBlock, block).attention
            heads, head_dim = attention.heads, attention.query.out_features // attention.heads
            maps = query_key_maps(feature_map, heads, head_dim, **map_options)
            attention.mixer = ConvertedAttention(*maps).to(attention.query.weight)
        return self

    def forward(self, key_ids: Tensor, value_ids: Tensor, labels: Tensor | None = None) -> TokenClassifierOutput:
        """Logits ``[batch, tokens, values]``, and the mean cross-entropy in nats where labels are given.

        Args:
            key_ids: ``[batch, tokens]``, 0 to keys.
            value_ids: ``[batch, tokens]``, 0 to values.
            labels: ``[batch, tokens]``, the value asked for, -100 where none is.
        """
        x = self.key_embedding(key_ids) + self.value_embedding(value_ids)
        logits = self.head(self.norm(self.blocks(x)))
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding of ``[batch, heads, tokens, head_dim]``, from position 0, halves paired as in Llama."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float64).unsqueeze(-1) * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
