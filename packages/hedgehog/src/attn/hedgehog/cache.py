"""The state of linear attention in transformers' caches: sums whose size does not grow with the tokens seen."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, EncoderDecoderCache

from attn.core_kernels import LinearState


class LinearCacheLayer(CacheLayerMixin):
    """A converted layer's part of a `DynamicCache`: a `LinearState` and the number of tokens in it.

    It stands where a `DynamicLayer` would hold keys and values, so that it works beside those in a model of which only
    some layers are converted. Dropping tokens (``crop``, for assisted generation) is impossible: sums do not forget.

    Attributes:
        state: the sums over the tokens so far; None before the first.
        tokens: their number, padding included.
    """

    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: LinearState | None = None
        self.tokens = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: the state comes from the first tokens."""
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Count the new tokens and return their keys and values alone; attention adds them to the state."""
        self.is_initialized = True
        self.tokens += key_states.shape[-2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` more tokens covers, as if they were stored."""
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        """The number of tokens so far."""
        return self.tokens

    def get_max_length(self) -> int:
        """No limit, which transformers writes as -1."""
        return -1

    def offload(self) -> None:
        """Stay where it is: the state is small."""

    def prefetch(self) -> None:
        """Stay where it is: the state is small."""

    def reset(self) -> None:
        """Forget all tokens."""
        self.state = None
        self.tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to drop tokens.

        Raises:
            NotImplementedError: unless there is nothing to drop.
        """
        if tokens_to_remove:
            raise NotImplementedError(
                "a linear attention state cannot drop tokens: generate without an assistant model or other look-ahead"
            )

    def _each_row(self, rows: Tensor) -> None:
        if self.state is not None:
            key_value, key = self.state.key_value, self.state.key
            rows = rows.to(key.device)
            self.state = LinearState(key_value.index_select(0, rows), key.index_select(0, rows))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue what row `beam_idx[i]` has seen (beam search)."""
        self._each_row(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.state is not None:
            self._each_row(torch.arange(self.state.key.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._each_row(indices)


def self_attention_cache(cache: Cache) -> Cache:
    """The part of a cache that serves self-attention."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def linear_cache_layer(cache: Cache, index: int) -> LinearCacheLayer:
    """Layer `index` of a cache, which becomes a `LinearCacheLayer` if it is still empty.

    Raises:
        NotImplementedError: if the cache is not a `DynamicCache` (static, quantized and paged caches).
        ValueError: if the layer already holds softmax keys.
    """
    cache = self_attention_cache(cache)
    if not isinstance(cache, DynamicCache):
        raise NotImplementedError(
            f"cache must be a DynamicCache (generate's default) with linear attention, got {type(cache).__name__}"
        )
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, LinearCacheLayer):
        return layer
    if type(layer) is not DynamicLayer:
        raise NotImplementedError(f"cache layer {index} must be a DynamicLayer, got {type(layer).__name__}")
    if layer.get_seq_length():
        raise ValueError(
            f"cache layer {index} must be empty or hold a linear state, got {layer.get_seq_length()} softmax keys: "
            "start a new cache after changing a layer's mode"
        )
    cache.layers[index] = linear = LinearCacheLayer()
    return linear


def check_softmax_cache(cache: Cache, index: int) -> None:
    """Refuse a linear state where a layer needs keys.

    Raises:
        ValueError: if layer `index` holds a linear state.
    """
    layers = self_attention_cache(cache).layers
    if index < len(layers) and isinstance(layers[index], LinearCacheLayer):
        raise ValueError(
            f"cache layer {index} must hold softmax keys, got a linear state: "
            "start a new cache after changing a layer's mode"
        )
