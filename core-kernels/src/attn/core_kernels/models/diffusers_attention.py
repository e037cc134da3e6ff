"""Reads and edits in models of diffusers, by processors that are wrapped.

A wrapper calls the processor that was there, with ``scaled_dot_product_attention`` replaced for that call: whatever the
processor does around its attention stays as it is. A processor that computes attention in another way is refused.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attn.core_kernels.models import hooks as layer_hooks
from attn.core_kernels.models.attention_call import AttentionCall
from attn.core_kernels.models.hooks import EditHook, Hook

INDEXES_STACKS = True  # an index counts over all stacks, in the order of attn_processors


def layer_names(model: nn.Module) -> dict[int, str]:
    """Names of a model's attention layers by index, in the order of its ``attn_processors``."""
    processors: Any = model.attn_processors
    return dict(enumerate(name.removesuffix(".processor") for name in processors))


@contextmanager
def attached(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Put hooks on attention layers, given by name, for the length of a block."""
    placed: list[tuple[Any, HookedProcessor, Hook]] = []
    try:
        for name, hook in hooks.items():
            layer: Any = model.get_submodule(name)
            if not isinstance(layer.processor, HookedProcessor):
                layer.set_processor(HookedProcessor(layer.processor, name, tuple(layer._modules)))
            wrapper = layer.processor
            wrapper.hooks = (*wrapper.hooks, hook)
            placed.append((layer, wrapper, hook))
        yield
    finally:
        for layer, wrapper, hook in placed:
            wrapper.hooks = tuple(other for other in wrapper.hooks if other is not hook)
            if not wrapper.hooks:
                layer.set_processor(wrapper.processor)
                for module in wrapper.modules:  # a processor that is a module goes back to its place among them
                    layer._modules[module] = layer._modules.pop(module)


class HookedProcessor:
    """A processor with reads and edits in its attention.

    Args:
        processor: the processor that computes the layer.
        name: the layer's name.
        modules: names of the layer's modules, in order.
    """

    def __init__(self, processor: Any, name: str, modules: tuple[str, ...]) -> None:
        self.processor = processor
        self.name = name
        self.modules = modules
        self.hooks: tuple[Hook, ...] = ()
        # Layers look up in the signature which arguments their processor takes.
        call = functools.wraps(processor.__call__)(functools.partial(type(self).__call__, self))
        self.__call__: Any = call  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the processor with its attention replaced.

        Raises:
            NotImplementedError: if it does not compute attention by ``scaled_dot_product_attention``.
        """
        with _HookedAttention(self.hooks, self.name) as attention:
            result = self.processor(*args, **kwargs)
        if not attention.calls:
            raise NotImplementedError(
                f"layer {self.name!r} does not call scaled_dot_product_attention in {type(self.processor).__name__}: "
                "set a processor that does, and the attention backend 'native'"
            )
        return result


class _HookedAttention(TorchFunctionMode):
    """Attention with hooks wherever ``scaled_dot_product_attention`` is called."""

    def __init__(self, hooks: tuple[Hook, ...], name: str) -> None:
        super().__init__()
        self.hooks, self.name, self.calls = hooks, name, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`, argument by argument; grouped heads are always allowed."""
        layer = f"layer {self.name!r}"
        if is_causal and query.shape[2] != key.shape[2]:
            raise NotImplementedError(f"{layer} has causal order over {query.shape[2]} queries and {key.shape[2]} keys")
        key_mask = None if attn_mask is None else _key_mask(attn_mask, query, key, layer)
        call = AttentionCall(query=query, key=key, value=value, causal=is_causal, key_mask=key_mask, scale=scale)
        if not dropout_p:
            return layer_hooks.attend(self.hooks, call)
        if any(isinstance(hook, EditHook) for hook in self.hooks):
            raise NotImplementedError(f"{layer} drops {dropout_p} of its map in training: edit it in model.eval()")
        layer_hooks.observe(self.hooks, call)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def _key_mask(mask: Tensor, query: Tensor, key: Tensor, layer: str) -> Tensor | None:
    """A mask that is the same for all heads and queries as bool ``[batch, keys]``."""
    batch, heads, queries, keys = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    mask = mask.expand(batch, heads, queries, keys)
    if not bool((mask == mask[:, :1, :1]).all()):
        raise NotImplementedError(f"{layer} has a mask that differs between queries or heads; leave it out")
    mask = mask[:, 0, 0]
    if mask.dtype == torch.bool:
        return mask
    visible = mask == 0
    if not bool((visible | (mask <= -10000)).all()):
        raise NotImplementedError(f"{layer} has a bias added to its scores: its map is no plain softmax; leave it out")
    return visible
