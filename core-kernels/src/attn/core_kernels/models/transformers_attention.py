"""Reads and edits in models of transformers, through its registries of attention and mask functions.

One attention function and one mask function are registered, under one name, when a model is first probed. A probe sets
that name on the model and its sub-models and takes it back when the last block on them is left. Layers that are not
chosen run the implementation that the model had.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from attn.core_kernels.models import hooks as layer_hooks
from attn.core_kernels.models.attention_call import AttentionCall
from attn.core_kernels.models.hooks import EditHook, Hook
from attn.core_kernels.models.transformers_mask import CompactMask, compact_mask

NAME = "attn_core_kernels"
INDEXES_STACKS = False  # an index alone does not tell the layers of several stacks apart

OWN_TERMS = {
    "softcap": "a soft cap of its scores",
    "s_aux": "attention sinks of its own",
    "sinks": "attention sinks of its own",
    "position_bias": "a position bias added to its scores",
    "indices": "a choice of keys by an indexer",
    "block_indices": "a choice of key blocks",
    "cu_seq_lens_q": "several sequences packed into a row",
}
"""Arguments of attention functions that change the map, and what they stand for."""


@dataclass
class _Lent:
    """A config that our name is set on, and what it had."""

    config: Any
    implementation: str | None
    blocks: int = 0


@dataclass
class _State:
    """What the registered functions look up: hooks by attention module, original implementations by config."""

    hooks: weakref.WeakKeyDictionary[nn.Module, tuple[Hook, ...]] = field(default_factory=weakref.WeakKeyDictionary)
    names: weakref.WeakKeyDictionary[nn.Module, str] = field(default_factory=weakref.WeakKeyDictionary)
    lent: dict[int, _Lent] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)


_STATE = _State()


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that ask transformers' registry for their attention function, by name."""
    return {name: module for name, module in model.named_modules() if "get_interface" in _names_used(module)}


def layer_names(model: nn.Module) -> dict[int, str]:
    """Names of attention layers by index: ``layer_idx`` where every layer has one of its own, else their order."""
    modules = attention_modules(model)
    indices = [getattr(module, "layer_idx", None) for module in modules.values()]
    if None in indices or len(set(indices)) < len(indices):
        indices = list(range(len(indices)))
    return dict(sorted(zip(indices, modules, strict=True)))  # type: ignore[arg-type]


@contextmanager
def attached(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Put hooks on attention modules, given by name, for the length of a block."""
    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, describe_mask)
    modules = {model.get_submodule(name): (name, hook) for name, hook in hooks.items()}
    with _STATE.lock:
        lent = _lend(model)
        for module, (name, hook) in modules.items():
            _STATE.hooks[module] = (*_STATE.hooks.get(module, ()), hook)
            _STATE.names[module] = name
    try:
        yield
    finally:
        with _STATE.lock:
            for module, (_, hook) in modules.items():
                if left := tuple(other for other in _STATE.hooks[module] if other is not hook):
                    _STATE.hooks[module] = left
                else:
                    del _STATE.hooks[module], _STATE.names[module]
            _take_back(lent)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: reads and edits at chosen layers, the model's own implementation elsewhere.

    Args:
        module: the attention module that calls.
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        value: ``[batch, key_heads, keys, value_dim]``.
        attention_mask: what `compact_mask` made, a mask of the model's own, or None.
        scaling: factor of the scores.
        dropout: share of the map's entries that are dropped.
        is_causal: whether the keys after each query are hidden where there is no mask; None for what the module says.
        kwargs: whatever else the model gives its attention functions.

    Returns:
        Output ``[batch, queries, heads, value_dim]``, and the map where the model's own implementation gives it.

    Raises:
        NotImplementedError: if a chosen layer's attention is not softmax attention over a causal order, a window and
            key padding, or dropout is to be applied to an edited layer.
    """
    tensors = query, key, value, attention_mask
    arguments = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal, **kwargs}
    hooks = _STATE.hooks.get(module)
    if not hooks:
        return _attend_unobserved(module, tensors, arguments)
    layer = f"layer {_STATE.names[module]!r}"
    for name, meaning in OWN_TERMS.items():
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{layer} has {meaning} ({name}): its map is no plain softmax; leave it out")
    call = _call(module, *tensors, is_causal, scaling, layer)
    if not dropout:
        return layer_hooks.attend(hooks, call).transpose(1, 2).contiguous(), None
    if any(isinstance(hook, EditHook) for hook in hooks):
        raise NotImplementedError(f"{layer} drops {dropout} of its map in training: edit it in model.eval() or without")
    layer_hooks.observe(hooks, call)
    return _attend_originally(module, tensors, arguments)


def describe_mask(**arguments: Any) -> CompactMask:
    """The registered mask function: the rule of the mask that transformers describes."""
    return compact_mask(_original_implementation(arguments["config"]), **arguments)


def _call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool | None,
    scale: float | None,
    layer: str,
) -> AttentionCall:
    """The attention in the operators' terms, without the keys that no query can see for they lie after the last."""
    queries, keys = query.shape[2], key.shape[2]
    causal, window, key_mask, offset = False, None, None, keys - queries
    if isinstance(mask, CompactMask):
        if mask.rule is None:
            raise NotImplementedError(
                f"{layer} has a mask that is not causal order, window and key padding: {mask.reason}; leave it out"
            )
        causal, window, key_mask = mask.rule.causal, mask.rule.window, mask.rule.key_mask
        if mask.shape[2:] == (queries, keys):
            offset = mask.rule.offset
        elif queries > 1 or key_mask is not None or window is not None:
            raise NotImplementedError(
                f"{layer} has {queries} queries and {keys} keys, but a mask of {list(mask.shape)}: leave it out"
            )
    elif mask is None:
        # What transformers' own functions do without a mask: one query sees all keys, several are level from the start.
        causal = (getattr(module, "is_causal", True) if is_causal is None else is_causal) and queries > 1
        offset = 0 if causal else offset
    else:
        key_mask = _key_mask(mask, query, key, layer)
    if causal:
        keys = min(keys, offset + queries)
        key, value = key[:, :, :keys], value[:, :, :keys]
        key_mask = None if key_mask is None else key_mask[:, :keys]
    if offset != keys - queries and (causal or window is not None):
        raise NotImplementedError(f"{layer} has its first query level with key {offset} of {keys}: leave it out")
    return AttentionCall(
        query=query, key=key, value=value, causal=causal, window=window, key_mask=key_mask, scale=scale
    )


def _key_mask(mask: Tensor, query: Tensor, key: Tensor, layer: str) -> Tensor:
    """A dense mask that is the same for all heads and queries, as bool ``[batch, keys]``."""
    if mask.ndim != 4 or mask.shape[1:3] != (1, 1) or mask.shape[3] != key.shape[2]:
        raise NotImplementedError(
            f"{layer} has a dense mask of shape {list(mask.shape)}: a probe takes [batch, keys] padding masks, which "
            "the model turns into its own; leave the layer out"
        )
    mask = mask[:, 0, 0].expand(query.shape[0], -1)
    if mask.dtype == torch.bool:
        return mask
    visible = mask == 0
    if not bool((visible | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        raise NotImplementedError(f"{layer} has a bias added to its scores: its map is no plain softmax; leave it out")
    return visible


def _attend_unobserved(
    module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], arguments: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The model's own implementation; for a mask that SDPA would need in full, the blockwise form of the same."""
    query, key, value, mask = tensors
    if (
        isinstance(mask, CompactMask)
        and mask.rule is not None
        and query.shape[2] > 1
        and _original_implementation(module.config) == "sdpa"
        and not arguments["dropout"]
        and all(arguments.get(name) is None for name in OWN_TERMS)
        and _needs_dense(mask)
    ):
        call = _call(module, query, key, value, mask, arguments["is_causal"], arguments["scaling"], "a layer")
        return call.attend()[0].transpose(1, 2).contiguous(), None
    return _attend_originally(module, tensors, arguments)


def _needs_dense(mask: CompactMask) -> bool:
    rule = mask.rule
    queries, keys = mask.shape[2:]
    beside = rule is not None and rule.causal and rule.offset != 0
    return rule is not None and (rule.key_mask is not None or rule.window is not None or (beside and queries != keys))


def _attend_originally(
    module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], arguments: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The implementation that the model had, with the mask that it would have been given."""
    query, key, value, mask = tensors
    implementation = _original_implementation(module.config)
    if isinstance(mask, CompactMask):
        mask = mask.as_made_for(implementation)
    if arguments["is_causal"] is None:
        arguments = {name: argument for name, argument in arguments.items() if name != "is_causal"}
    attention: Callable[..., tuple[Tensor, Tensor | None]] = _original_function(module, implementation)
    return attention(module, query, key, value, mask, **arguments)


def _original_function(module: nn.Module, implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What the module would have got from the registry; its eager form is a function of its own file."""
    forward = inspect.unwrap(type(module).forward)
    eager = [name for name in _names_used(module) if name.endswith("eager_attention_forward")]
    functions: Any = forward.__globals__.get("ALL_ATTENTION_FUNCTIONS", transformers.AttentionInterface())
    return functions.get_interface(implementation, forward.__globals__[eager[0]] if eager else None)


def _names_used(module: nn.Module) -> tuple[str, ...]:
    """The global names and attributes in a module's forward."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code.co_names if code else ()


def _original_implementation(config: Any) -> str:
    lent = _STATE.lent.get(id(config))
    return (lent.implementation if lent else None) or "sdpa"


def _lend(model: nn.Module) -> list[_Lent]:
    """Set our name on a model and all that it contains, and remember what they had."""
    models = [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
    before = [(config, config._attn_implementation) for config in _configs([module.config for module in models])]
    try:
        for module in models:
            if module.config._attn_implementation != NAME:
                module.set_attn_implementation(NAME)
    except BaseException:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        raise
    lent = []
    for config, implementation in before:
        if config._attn_implementation == NAME:
            entry = _STATE.lent.setdefault(id(config), _Lent(config, implementation))
            entry.blocks += 1
            lent.append(entry)
    return lent


def _configs(configs: Iterable[Any]) -> list[Any]:
    """Configs and the configs within them, each once."""
    found: dict[int, Any] = {}
    waiting = list(configs)
    while waiting:
        config = waiting.pop(0)
        if config is not None and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


def _take_back(lent: list[_Lent]) -> None:
    for entry in lent:
        entry.blocks -= 1
        if not entry.blocks:
            # Not the public setter: it would set the configs within as well, which have their own to go back to.
            entry.config._attn_implementation_internal = entry.implementation
            del _STATE.lent[id(entry.config)]
