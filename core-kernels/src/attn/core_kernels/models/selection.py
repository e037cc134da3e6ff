"""Which layers and heads of a model are meant."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

Layers = Iterable[int | str] | None
Heads = Sequence[int] | Mapping[int, Sequence[int]] | None


def select_layers(names: Mapping[int, str], layers: Layers, stacks: int) -> list[int]:
    """Indices of the layers that are meant, in the model's order.

    Args:
        names: names of all layers, by index.
        layers: indices, and patterns of names as a shell has them (``"*attn2*"``); None for all.
        stacks: how many stacks of layers the model has.

    Raises:
        TypeError: if a layer is neither an integer nor a string.
        ValueError: if there is no such layer, none is chosen, or an index is given for a model of several stacks.
    """
    if layers is None:
        return list(names)
    if isinstance(layers, int | str):
        raise TypeError(f"layers must be indices or names in a list or range, got {layers!r}")
    chosen = set()
    for layer in layers:
        if isinstance(layer, str):
            matches = {index for index, name in names.items() if fnmatchcase(name, layer)}
            if not matches:
                raise ValueError(f"layers must name attention layers, got {layer!r}; there are {_listed(names)}")
            chosen |= matches
        elif isinstance(layer, int) and not isinstance(layer, bool):
            if layer not in names:
                raise ValueError(f"layers must be among {_listed(names)}, got {layer}")
            if stacks > 1:
                raise ValueError(
                    f"layers must be names or patterns where a model has {stacks} stacks of layers, got {layer}; there "
                    f"are {_listed(names)}; or give the sub-model that is meant"
                )
            chosen.add(layer)
        else:
            raise TypeError(f"layers must be integers or names, got {type(layer).__name__}")
    if not chosen:
        raise ValueError("layers must choose at least one layer, got none")
    return [index for index in names if index in chosen]


def select_heads(heads: Heads, layers: Sequence[int]) -> dict[int, tuple[int, ...] | None]:
    """The heads that are meant at each layer, None for all.

    Args:
        heads: indices for all layers, or by layer; None for all heads.
        layers: the layers that are chosen.

    Raises:
        TypeError: if a head is no integer.
        ValueError: if heads are given for other layers than the chosen ones, or a layer has none or one twice.
    """
    if isinstance(heads, Mapping):
        if set(heads) != set(layers):
            raise ValueError(f"heads must be given for the layers {list(layers)}, got {sorted(heads)}")
        return {layer: _checked(heads[layer]) for layer in layers}
    return dict.fromkeys(layers, None if heads is None else _checked(heads))


def _checked(heads: Sequence[int]) -> tuple[int, ...]:
    heads = tuple(heads)
    if any(not isinstance(head, int) or isinstance(head, bool) for head in heads):
        raise TypeError(f"heads must be integers, got {heads}")
    if not heads or len(set(heads)) < len(heads):
        raise ValueError(f"heads must be at least one and each once, got {heads}")
    return heads


def _listed(names: Mapping[int, str]) -> str:
    entries = [f"{index}: {name}" for index, name in names.items()]
    return ", ".join(entries if len(entries) <= 12 else [*entries[:6], "...", *entries[-5:]])
