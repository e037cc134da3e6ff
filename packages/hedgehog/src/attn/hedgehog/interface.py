"""How a converted layer computes: Hedgehog as a function of transformers' attention interface.

transformers' attention modules project, rotate and cache queries and keys, then call the function that their config
names. `register` makes one that serves all layers of a model: those without maps (or in mode ``"softmax"``) are handed
to the model's own implementation with its own mask, the others are distilled or computed linearly.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attn.hedgehog.attention import ConvertedAttention
from attn.hedgehog.cache import LinearCacheLayer

SOFTMAX_IMPLEMENTATIONS = ("eager", "sdpa")
UNSUPPORTED_ARGUMENTS = ("head_mask", "position_bias", "s_aux", "sliding_window", "softcap")


class LayerMask:
    """What the tokens of one forward pass may attend to, in the form that each kind of layer reads.

    Linear layers need a bit per key; the mask of softmax layers, which may have a bit per pair of tokens, is only made
    if one asks.

    Args:
        softmax: name of the softmax implementation.
        arguments: what transformers gives to a function of its `AttentionMaskInterface`.
    """

    def __init__(self, softmax: str, arguments: dict[str, Any]) -> None:
        self._softmax = softmax
        self._arguments = arguments
        self._softmax_mask: list[Any] = []

    def softmax_mask(self) -> Any:
        """The mask as the softmax implementation takes it."""
        if not self._softmax_mask:
            self._softmax_mask.append(AttentionMaskInterface()[self._softmax](**self._arguments))
        return self._softmax_mask[0]

    @property
    def causal(self) -> bool:
        """Whether a token sees itself and those before it; otherwise it sees all.

        Raises:
            NotImplementedError: if the pattern is another one.
        """
        mask_function = self._arguments["mask_function"]
        if mask_function is causal_mask_function:
            return True
        if mask_function is bidirectional_mask_function:
            return False
        raise NotImplementedError(
            "linear attention serves causal and bidirectional patterns with padding, not packed sequences, windows or "
            "custom patterns; position_ids with gaps count as packed unless attention_mask is given"
        )

    @property
    def key_mask(self) -> Tensor | None:
        """``[batch, tokens]``, True where a token of this pass is no padding; None if all are."""
        mask = self._arguments["attention_mask"]
        if mask is None:
            return None
        first, tokens = self._arguments["q_offset"], self._arguments["q_length"]
        mask = mask[:, first : first + tokens]
        return nn.functional.pad(mask, (0, tokens - mask.shape[1]))  # as transformers does: what is not named is hidden


def register(softmax: str) -> str:
    """Make Hedgehog known to transformers for models whose softmax implementation is `softmax`; returns its name.

    Raises:
        NotImplementedError: if Hedgehog cannot take turns with that implementation.
    """
    if softmax not in SOFTMAX_IMPLEMENTATIONS:
        accepted = " or ".join(map(repr, SOFTMAX_IMPLEMENTATIONS))
        raise NotImplementedError(f"model must be loaded with attn_implementation {accepted}, got {softmax!r}")
    name = f"hedgehog|{softmax}"
    AttentionInterface.register(name, partial(attention, softmax=softmax))
    # Without this second entry transformers would make no mask at all, and decoders would see the future.
    AttentionMaskInterface.register(name, partial(layer_mask, softmax))
    return name


def layer_mask(softmax: str, **arguments: Any) -> LayerMask:
    """The mask function: defers to each layer's need."""
    return LayerMask(softmax, arguments)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask | Tensor | None,
    *,
    softmax: str,
    dropout: float = 0.0,
    scaling: float | None = None,
    linear_cache: LinearCacheLayer | None = None,
    return_weights: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function, in transformers' terms.

    Args:
        module: the attention module.
        query: ``[batch, heads, tokens, head_dim]``, after rotary embedding.
        key: ``[batch, key_value_heads, keys, head_dim]``; in a linear layer, those of the new tokens alone.
        value: ``[batch, key_value_heads, keys, value_dim]``.
        attention_mask: from `layer_mask`.
        softmax: name of the softmax implementation.
        dropout: of softmax weights; linear attention has no weights to drop.
        scaling: of the softmax scores.
        linear_cache: this layer's state, in generation.
        return_weights: make a linear layer return its weights too, at the cost of ``tokens ** 2`` memory.
        kwargs: for the softmax implementation.

    Returns:
        Output ``[batch, tokens, heads, value_dim]``, and attention weights ``[batch, heads, tokens, keys]`` or None.
    """
    layer: ConvertedAttention | None = getattr(module, "hedgehog", None)

    def softmax_attention(dropout: float) -> tuple[Tensor, Tensor | None]:
        mask = attention_mask.softmax_mask() if isinstance(attention_mask, LayerMask) else attention_mask
        function = _softmax_function(module, softmax)
        return function(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)

    if layer is None or layer.mode == "softmax":
        return softmax_attention(dropout)
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"linear attention has no {name}: leave the layer in mode 'softmax'")
    causal, key_mask = _visible(module, attention_mask, kwargs.get("is_causal"))
    if layer.mode == "distill":
        if key.shape[-2] != query.shape[-2]:
            raise ValueError(
                "distillation must see whole sequences, got a cache with "
                f"{key.shape[-2] - query.shape[-2]} earlier tokens: pass use_cache=False"
            )
        output, weights = softmax_attention(0.0)
        layer.record_distillation(
            query, key, value, output.transpose(1, 2), causal=causal, key_mask=key_mask, scale=scaling
        )
        return output, weights
    return _linear_attention(
        layer, query, key, value, causal=causal, key_mask=key_mask, cache=linear_cache, return_weights=return_weights
    )


def _linear_attention(
    layer: ConvertedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    cache: LinearCacheLayer | None,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output and, on request, weights of a layer in mode ``"linear"``; brings its cache up to date."""
    tokens = query.shape[-2]
    first = 0 if cache is None else cache.tokens - tokens
    # Positions count padding, which shifts all tokens alike: maps may only depend on differences.
    positions = torch.arange(first, first + tokens, device=query.device)
    attend = partial(layer, query, key, causal=causal, key_mask=key_mask, positions=positions)
    output, state = attend(value, state=None if cache is None else cache.state)
    if cache is not None:
        cache.state = state
    weights = None
    if return_weights:
        if first:
            raise NotImplementedError("output_attentions must be False once a linear layer has a cached state")
        one_hot = torch.eye(tokens, dtype=value.dtype, device=value.device)
        weights, _ = attend(one_hot.expand(*value.shape[:2], tokens, tokens))
    return output.transpose(1, 2).contiguous(), weights


def _softmax_function(module: nn.Module, softmax: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The model's own softmax attention; the eager form is a function of the file that defines the module."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(softmax, sys.modules[type(module).__module__].eager_attention_forward)


def _visible(module: nn.Module, mask: LayerMask | Tensor | None, is_causal: bool | None) -> tuple[bool, Tensor | None]:
    """Whether attention is causal, and the key mask."""
    if isinstance(mask, LayerMask):
        return mask.causal, mask.key_mask
    if mask is not None:
        raise NotImplementedError(
            f"attention_mask must be a padding mask [batch, tokens] with linear attention, got {tuple(mask.shape)}"
        )
    return bool(module.is_causal if is_causal is None else is_causal), None
