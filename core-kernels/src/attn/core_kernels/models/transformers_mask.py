"""The attention mask of a transformers model as a rule instead of queries times keys of booleans."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import masking_utils


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Which keys queries see: query ``i`` stands level with key ``i + offset``.

    Args:
        offset: the key that is level with query 0.
        causal: whether the keys after each query are hidden.
        window: distance from which keys are hidden, the query's own key counted; None for no limit.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; None for all.
    """

    offset: int
    causal: bool
    window: int | None
    key_mask: Tensor | None


class CompactMask(Tensor):
    """A mask that knows its rule and stores nothing: a boolean ``[batch, 1, queries, keys]`` by all appearances.

    A look at its shape, device or dtype costs nothing, and so does handing it on. Any other operation is done on the
    dense mask that the model's own implementation would have been given, so that a model that works on its mask gets
    what it expects; the result is dense.

    Attributes:
        rule: the rule, or None where causal order, window and key padding do not express the mask.
        reason: why there is none.
    """

    rule: MaskRule | None
    reason: str
    _arguments: dict[str, Any]
    _original: str
    _made: dict[str, Tensor | None]

    @classmethod
    def make(cls, rule: MaskRule | None, reason: str, original: str, arguments: dict[str, Any]) -> "CompactMask":
        """A mask from its rule and from what a mask function of transformers makes it of.

        Args:
            rule: the rule, None where there is none.
            reason: why there is none.
            original: name of the implementation whose dense mask stands in for it.
            arguments: arguments of transformers' mask functions.
        """
        shape = (arguments["batch_size"], 1, arguments["q_length"], arguments["kv_length"])
        storage = torch.zeros(1, dtype=torch.bool, device=arguments["device"]).expand(shape)
        mask = torch.Tensor._make_subclass(cls, storage)
        mask.rule, mask.reason, mask._original, mask._arguments, mask._made = rule, reason, original, arguments, {}
        return mask

    def as_made_for(self, implementation: str) -> Tensor | None:
        """The mask that transformers makes for an implementation; made once and kept."""
        if implementation not in self._made:
            functions = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
            known = implementation in functions.valid_keys()
            self._made[implementation] = functions[implementation](**self._arguments) if known else None
        return self._made[implementation]

    def dense(self) -> Tensor:
        """The mask in full, as the model's own implementation takes it."""
        make: Callable[..., Any] = masking_utils.eager_mask if self._original == "eager" else masking_utils.sdpa_mask
        always = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        dense: Tensor = make(**{**self._arguments, **always})
        return dense

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a look at the mask; do anything else on the dense one."""
        kwargs = kwargs or {}
        if func in _LOOKS or (getattr(func, "__name__", "") == "__get__" and func not in _VIEWS):
            return super().__torch_function__(func, types, args, kwargs)
        if func in _IDENTITIES and not args[1:] and not kwargs:
            return args[0]
        name = getattr(func, "__name__", str(func))
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("out") is not None:
            raise NotImplementedError(f"the model writes into its attention mask ({name}), which a probe cannot follow")
        args, kwargs = tree_map(lambda x: x.dense() if isinstance(x, CompactMask) else x, (args, kwargs))
        return func(*args, **kwargs)


_LOOKS = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.element_size, Tensor.is_floating_point}
_VIEWS = {getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH", "real", "imag")}
_IDENTITIES = {Tensor.detach, Tensor.contiguous}


def compact_mask(original: str, **arguments: Any) -> CompactMask:
    """The mask that transformers describes, as a rule where there is one.

    Args:
        original: name of the implementation that the model had.
        arguments: what transformers gives to mask functions.
    """
    arguments = {
        "q_offset": 0,
        "kv_offset": 0,
        "mask_function": masking_utils.causal_mask_function,
        "attention_mask": None,
        "device": "cpu",
        **arguments,
    }
    order = _order(arguments["mask_function"])
    if isinstance(order, str):
        return CompactMask.make(None, order, original, arguments)
    causal, window = order
    start, keys = arguments["kv_offset"], arguments["kv_length"]
    key_mask = masking_utils.prepare_padding_mask(arguments["attention_mask"], keys, start)
    if key_mask is not None:
        key_mask = key_mask[:, start : start + keys].expand(arguments["batch_size"], -1)
        key_mask = None if bool(key_mask.all()) else key_mask
    rule = MaskRule(offset=int(arguments["q_offset"]) - start, causal=causal, window=window, key_mask=key_mask)
    return CompactMask.make(rule, "", original, arguments)


def _order(function: Callable[..., Any]) -> tuple[bool, int | None] | str:
    """Causality and window of a mask function, or why it has no such form.

    transformers describes a mask by functions of index pairs that are made by factories: their names and what they
    close over say which mask it is.
    """
    if function is masking_utils.causal_mask_function:
        return True, None
    if function is masking_utils.bidirectional_mask_function:
        return False, None
    factory, closed = _factory(function), inspect.getclosurevars(function).nonlocals
    if factory == "sliding_window_bidirectional_overlay":
        return False, closed["sliding_window"] + 1
    if factory == "and_masks":
        return _intersection(closed["mask_functions"])
    if factory == "or_masks":
        first, *others = closed["mask_functions"]
        if all(_is_empty_overlay(other) for other in others):
            return _order(first)
    return _REASONS.get(factory, f"a mask function of its own ({factory or function!r})")


def _intersection(functions: tuple[Callable[..., Any], ...]) -> tuple[bool, int | None] | str:
    causal, windows, one_sided = False, [], []
    for function in functions:
        if _factory(function) == "sliding_window_overlay":
            one_sided.append(inspect.getclosurevars(function).nonlocals["sliding_window"])
            continue
        order = _order(function)
        if isinstance(order, str):
            return order
        causal |= order[0]
        windows += [] if order[1] is None else [order[1]]
    if one_sided and not causal:
        return "a window on one side without causal order"
    return causal, min([*windows, *one_sided], default=None)


def _is_empty_overlay(function: Callable[..., Any]) -> bool:
    """Whether a union with this function adds nothing: blocks of image tokens where there is no image token."""
    if _factory(function) != "blockwise_overlay":
        return False
    blocks: Tensor = inspect.getclosurevars(function).nonlocals["block_sequence_ids"]
    return bool((blocks < 0).all())


def _factory(function: Callable[..., Any]) -> str:
    """Name of the function of transformers that made this one, empty if none did."""
    made_here = getattr(function, "__module__", "") == masking_utils.__name__
    name, _, rest = getattr(function, "__qualname__", "").partition(".<locals>.")
    return name if made_here and rest else ""


_REASONS = {
    "or_masks": "tokens that see one another whatever their order, such as an image's or a prefix's",
    "packed_sequence_mask_function": "several sequences packed into a row",
    "remap_positions_for_packed_sequence": "several sequences packed into a row",
    "chunked_overlay": "chunked attention",
}
