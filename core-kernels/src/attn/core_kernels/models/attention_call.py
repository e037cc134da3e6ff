"""One call of softmax attention inside a model, in the terms of the operators."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attn.core_kernels.observe.softmax_map import attention_with_lse


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What a layer's attention is computed from: its queries, keys and values and the keys that each query sees.

    Args:
        query: ``[batch, heads, queries, head_dim]``, after position embeddings.
        key: ``[batch, key_heads, keys, head_dim]``, with what the cache holds.
        value: ``[batch, key_heads, keys, value_dim]``.
        causal: whether the keys after each query are hidden; the last query is level with the last key.
        window: distance from which keys are hidden, the query's own key counted; None for no limit.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; None for all.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool = False
    window: int | None = None
    key_mask: Tensor | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Cast to autocast's dtype where it is on, as scaled_dot_product_attention does."""
        device = self.query.device.type
        if torch.is_autocast_enabled(device) and self.query.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            for name in ("query", "key", "value"):
                object.__setattr__(self, name, getattr(self, name).to(dtype))

    @property
    def rule(self) -> dict[str, Any]:
        """The keyword arguments that all operators share."""
        return {"causal": self.causal, "window": self.window, "key_mask": self.key_mask, "scale": self.scale}

    def attend(self) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, queries, value_dim]`` and log-sum-exp ``[batch, heads, queries]``."""
        return attention_with_lse(self.query, self.key, self.value, **self.rule)

    def select_heads(self, heads: Sequence[int]) -> "AttentionCall":
        """The call for some query heads, each with a key head of its own.

        Raises:
            ValueError: if there is no such head.
        """
        count = self.query.shape[1]
        if out_of_range := [head for head in heads if not 0 <= head < count]:
            raise ValueError(f"heads must lie in [0, {count}), got {out_of_range}")
        if tuple(heads) == tuple(range(count)):
            return self
        query_heads = torch.as_tensor(heads, device=self.query.device)
        key_heads = query_heads // (count // self.key.shape[1])
        return dataclasses.replace(
            self,
            query=self.query[:, query_heads],
            key=self.key[:, key_heads],
            value=self.value[:, key_heads],
        )

    def detach(self) -> "AttentionCall":
        """The call cut off from the graph."""
        return dataclasses.replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach())
