"""What the edit operators share: the arguments of one attention, and the checks of theirs."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from attn.core_kernels.checks import check_number, check_query_key, check_value
from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.observe.softmax_map import attention_with_lse
from attn.core_kernels.visibility import Visibility, check_rule, hide_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """The checked arguments of one attention, zero in key and value where the key mask hides.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        value: ``[batch, key_heads, keys, value_dim]``.
        scale: factor of the scores.
        visibility: which keys the queries see.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    visibility: Visibility

    @property
    def precision(self) -> torch.dtype:
        """The dtype of sums: float32, float64 for float64."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def out_shape(self) -> torch.Size:
        """``[batch, heads, queries, value_dim]``."""
        return self.query.shape[:3] + self.value.shape[3:]

    def attend(self) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp by `attention_with_lse`."""
        rule = self.visibility
        return attention_with_lse(
            self.query,
            self.key,
            self.value,
            causal=rule.causal,
            window=rule.window,
            key_mask=rule.key_mask,
            scale=self.scale,
        )

    def replace(self, **changes: Tensor) -> "Attention":
        """The same with another query, key or value of the same number of tokens."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def take_maps(self, source: Tensor) -> "Attention":
        """Queries, keys and key mask of other batch rows, int64 ``[batch]``, with the own values."""
        rule = self.visibility
        mask = None if rule.key_mask is None else rule.key_mask[source]
        visibility = dataclasses.replace(rule, key_mask=mask)
        return dataclasses.replace(self, query=self.query[source], key=self.key[source], visibility=visibility)

    def within(self, keys: Tensor) -> "Attention":
        """The attention over some of the keys that may be seen, bool ``[batch, keys]``."""
        rule = self.visibility
        mask = keys if rule.key_mask is None else keys & rule.key_mask
        return dataclasses.replace(self, visibility=dataclasses.replace(rule, key_mask=mask))

    def heads_as_batch(self) -> "Attention":
        """Every head as a batch row of one head, so that a key mask may differ between heads."""
        batch, heads = self.query.shape[:2]
        query, key, value = (
            repeat_heads(x, heads).reshape(batch * heads, 1, *x.shape[2:]) for x in (self.query, self.key, self.value)
        )
        visibility = self.visibility.repeat_batch(heads)
        return Attention(query=query, key=key, value=value, scale=self.scale, visibility=visibility)

    def for_heads(self, heads: list[int], function: Callable[["Attention"], Tensor]) -> Tensor:
        """What a function of the attention gives for some heads, zeros for the others.

        Args:
            heads: their indices, increasing.
            function: gives ``[batch, heads, queries, value_dim]``, each head from that head alone.
        """
        count = self.query.shape[1]
        if len(heads) == count:
            return function(self)
        out = self.query.new_zeros(self.out_shape)
        if not heads:
            return out
        index = torch.tensor(heads, device=self.query.device)
        of_key = index // (count // self.key.shape[1])
        chosen = self.replace(query=self.query[:, index], key=self.key[:, of_key], value=self.value[:, of_key])
        return out.index_copy(1, index, function(chosen))


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    scale: float | None,
) -> Attention:
    """Check what every operator takes.

    Raises:
        TypeError: if an argument has another type or dtype than stated in `Attention`.
        ValueError: if shapes or devices disagree, a number is out of range or there is no key.
    """
    check_query_key(query, key)
    check_value(value, key)
    scale, visibility, key = check_rule(query, key, causal=causal, window=window, key_mask=key_mask, scale=scale)
    if key_mask is not None:
        value = hide_tokens(value, key_mask)
    return Attention(query=query, key=key, value=value, scale=scale, visibility=visibility)


def check_between(name: str, number: float, low: float, high: float) -> float:
    """The number as a float, if it lies in a closed interval; ``high`` may be infinite, the number may not.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it lies outside, is infinite or NaN.
    """
    check_number(name, number)
    if not (low <= number <= high and number < math.inf):
        raise ValueError(f"{name} must {_interval(low, high)}, got {number}")
    return float(number)


def check_entries(name: str, tensor: Tensor, low: float = -math.inf, high: float = math.inf) -> None:
    """Require every entry to be finite and in a closed interval; under ``torch.compile`` nobody looks at them.

    Raises:
        ValueError: if one is not.
    """
    if values_known() and tensor.numel() and not bool(((tensor >= low) & (tensor <= high) & tensor.isfinite()).all()):
        lowest, highest = (x.item() for x in tensor.aminmax())
        raise ValueError(f"{name} must {_interval(low, high)}, got entries from {lowest} to {highest}")


def check_tensor(name: str, tensor: Tensor, query: Tensor, *, dtype: str = "floating-point") -> None:
    """Require a ``"floating-point"``, ``"boolean"`` or ``"int64"`` tensor on query's device.

    Raises:
        TypeError: if it is none.
        ValueError: if it is on another device.
    """
    article = "an" if dtype == "int64" else "a"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be {article} {dtype} tensor, got {type(tensor).__name__}")
    fits = {
        "floating-point": tensor.is_floating_point(),
        "boolean": tensor.dtype == torch.bool,
        "int64": tensor.dtype == torch.int64,
    }
    if not fits[dtype]:
        raise TypeError(f"{name} must be {article} {dtype} tensor, got {tensor.dtype}")
    if tensor.device != query.device:
        raise ValueError(f"{name} must be on query's device {query.device}, got {tensor.device}")


def check_keys(keys: Tensor, attention: Attention) -> Tensor:
    """A set of keys per head, bool ``[batch or 1, heads or 1, keys]``, without the keys that the key mask hides.

    Raises:
        TypeError: if it is no boolean tensor.
        ValueError: if its shape or device does not fit.
    """
    check_tensor("keys", keys, attention.query, dtype="boolean")
    batch, heads = attention.query.shape[:2]
    count = attention.key.shape[2]
    shape = list(keys.shape)
    if len(shape) != 3 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2] != count:
        raise ValueError(f"keys must have shape [{batch} or 1, {heads} or 1, {count}], got {shape}")
    key_mask = attention.visibility.key_mask
    return keys if key_mask is None else keys & key_mask[:, None]


def values_known() -> bool:
    """Whether the values of tensors may be looked at, which on a GPU waits for them; not under ``torch.compile``."""
    return not torch.compiler.is_compiling()


def heads_where(condition: Tensor) -> list[int]:
    """The heads for which a ``[batch or 1, heads]`` condition holds in any sample; all of them while compiling."""
    if not values_known():
        return list(range(condition.shape[1]))
    return condition.any(0).nonzero()[:, 0].tolist()


def _interval(low: float, high: float) -> str:
    if low == -math.inf:
        return "be finite"
    return f"be finite and at least {low:g}" if high == math.inf else f"lie in [{low:g}, {high:g}]"
