"""Reads and edits on unmodified models, as context managers."""

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, get_args

import torch
from torch import nn

from attn.core_kernels.models.hooks import Edit, EditHook, ReadHook
from attn.core_kernels.models.reads import Read
from attn.core_kernels.models.records import Calls, Seen
from attn.core_kernels.models.selection import Heads, Layers, select_heads, select_layers


@contextmanager
def probe(
    model: nn.Module, reads: Sequence[Read], layers: Layers = None, heads: Heads = None, *, calls: Calls = "last"
) -> Iterator[Seen]:
    """Read statistics off a model's softmax maps, without storing them, in whatever runs in the block.

    A read sees the map as the layer's queries and keys give it, before edits of the same layer; memory grows with
    tokens, not with their square. The model computes what it computes without the probe, to rounding. A backward pass
    belongs into the block. What ``torch.compile`` has compiled runs eagerly while a block is open, in the whole
    process: a compiled graph has no place for hooks, and keeping masks as rules is not traced.

    Args:
        model: a model, or sub-model, of transformers or diffusers.
        reads: what to read, e.g. ``[KeyMass(), RowEntropy()]``.
        layers: indices as `attention_layers` gives them, or patterns of names such as ``"*language_model*"``; None for
            all. A model of several stacks of layers, as vision and text, takes patterns, or give the sub-model.
        heads: indices of query heads for all layers, or by layer; None for all.
        calls: which calls of a layer to keep: ``"last"``, ``"first"``, after which nothing more is read (the prompt, in
            ``generate``), or ``"all"``, whose memory grows with the steps of ``generate``. The vision towers of Qwen
            call their layers once for every picture or window.

    Yields:
        `Seen`: ``seen.key_mass[12]`` is layer 12's result of the last call kept, ``seen.key_mass.calls[12]`` is the
        list of all. With heads chosen, the axis of heads holds these, in the order given.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if two reads share a field, or there is no such layer or, at the first call, head.
        NotImplementedError: if the model is none that can be probed or, at a call, a chosen layer's attention is not
            softmax attention over a causal order, a window and key padding.
    """
    reads = _checked_reads(reads)
    if calls not in get_args(Calls):
        raise ValueError(f"calls must be 'last', 'first' or 'all', got {calls!r}")
    library = _library(model)
    names, chosen = _chosen(library, model, layers, heads)
    seen = Seen([read.field for read in reads], {layer: names[layer] for layer in chosen}, calls)
    hooks = {
        names[layer]: ReadHook(layer=layer, heads=heads_there, reads=reads, seen=seen)
        for layer, heads_there in chosen.items()
    }
    with _EAGERLY, library.attached(model, hooks):
        yield seen


@contextmanager
def edit(model: nn.Module, edit: Edit, layers: Layers = None, heads: Heads = None) -> Iterator[None]:
    """Put an edit in the place of attention in chosen layers and heads, for what runs in the block.

    Blocks can be nested, with each other and with probes: edits of the same layer must be given different heads.

    Args:
        model: a model, or sub-model, of transformers or diffusers.
        edit: called with query, key and value of the chosen heads, ``[batch, heads, tokens, width]`` with as many key
            heads as query heads, and the keywords ``causal``, ``window``, ``key_mask`` and ``scale``; returns the
            output ``[batch, heads, queries, value_dim]``. Without a choice of heads, key heads stay grouped.
        layers: as for `probe`.
        heads: as for `probe`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there is no such layer or, at the first call, head, or one has two edits.
        NotImplementedError: as for `probe`, and for dropout in training.
    """
    if not callable(edit):
        raise TypeError(f"edit must be callable, got {type(edit).__name__}")
    library = _library(model)
    names, chosen = _chosen(library, model, layers, heads)
    hooks = {names[layer]: EditHook(layer=layer, heads=there, edit=edit) for layer, there in chosen.items()}
    with _EAGERLY, library.attached(model, hooks):
        yield


def attention_layers(model: nn.Module) -> dict[int, str]:
    """Names of a model's attention layers by index.

    The index is transformers' ``layer_idx`` where every layer has one of its own, otherwise the order in the model; in
    diffusers the order of ``attn_processors``.

    Args:
        model: a model, or sub-model, of transformers or diffusers.

    Raises:
        TypeError: if the model is no module.
        NotImplementedError: if the model is none that can be probed.
    """
    return _layer_names(_library(model), model)


class _Eagerly:
    """What torch.compile has compiled runs eagerly from the first block entered to the last one left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                self._stance = torch.compiler.set_stance("force_eager")
            self._blocks += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._stance.__exit__(None, None, None)


_EAGERLY = _Eagerly()


def _library(model: nn.Module) -> ModuleType:
    """The module that serves the library which the model comes from."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # A model of a library that was not imported there is none of: neither is imported for the question.
    if "diffusers" in sys.modules and hasattr(model, "attn_processors"):
        from attn.core_kernels.models import diffusers_attention

        return diffusers_attention
    if "transformers" in sys.modules:
        from attn.core_kernels.models import transformers_attention

        return transformers_attention
    raise NotImplementedError(f"model must be a model of transformers or diffusers, got {type(model).__name__}")


def _layer_names(library: ModuleType, model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = library.layer_names(model)
    if not names:
        raise NotImplementedError(
            f"model must have attention layers that take their function from transformers' AttentionInterface or from "
            f"diffusers' processors, got {type(model).__name__} with none"
        )
    return names


def _chosen(
    library: ModuleType, model: nn.Module, layers: Layers, heads: Heads
) -> tuple[dict[int, str], dict[int, tuple[int, ...] | None]]:
    names = _layer_names(library, model)
    if layers is None and isinstance(heads, Mapping):
        layers = heads
    stacks = 1 if library.INDEXES_STACKS else len({re.sub(r"\d+", "*", name) for name in names.values()})
    return names, select_heads(heads, select_layers(names, layers, stacks))


def _checked_reads(reads: Sequence[Read]) -> tuple[Read, ...]:
    if isinstance(reads, Read):
        raise TypeError(f"reads must be a list of reads, got one {type(reads).__name__}")
    reads = tuple(reads)
    for read in reads:
        if not isinstance(read, Read):
            raise TypeError(f"reads must be instances of the classes of attn.core_kernels.models, got {read!r}")
    if not reads:
        raise ValueError("reads must be at least one, got none")
    if twice := [field for field, count in Counter(read.field for read in reads).items() if count > 1]:
        raise ValueError(f"reads must have fields of their own: give a name to all but one of {twice}")
    return reads
