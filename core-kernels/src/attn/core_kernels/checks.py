"""Checks of arguments that operators share; they cost nothing under ``torch.compile`` and break no graph.

Messages read ``<argument> must <rule>, got <what came>``: TypeError for a type or dtype, ValueError for the rest.
"""

import math

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_rows(name: str, tensor: Tensor) -> None:
    """Require a floating-point ``[batch, heads, tokens, width]`` tensor with at least one head and one column."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must have dtype float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.ndim != 4 or tensor.shape[1] < 1 or tensor.shape[3] < 1:
        raise ValueError(
            f"{name} must have shape [batch, heads, tokens, width] with a head and a column, got {_shape(tensor)}"
        )


def check_query_key(
    query: Tensor, key: Tensor, *, same_tokens: bool = False, names: tuple[str, str] = ("query", "key")
) -> None:
    """Require rows that can be multiplied: one dtype, device, batch and width, heads grouped evenly.

    Args:
        query: ``[batch, heads, queries, width]``.
        key: ``[batch, key_heads, keys, width]``, ``heads`` a multiple of ``key_heads``.
        same_tokens: whether ``queries`` must equal ``keys``.
        names: what the messages call the two.

    Raises:
        TypeError: if either is no floating-point tensor or their dtypes differ.
        ValueError: if the shapes or devices disagree.
    """
    first, second = names
    check_rows(first, query)
    check_rows(second, key)
    _check_like(second, key, first, query)
    if key.dtype != query.dtype:
        raise TypeError(f"{second} must have {first}'s dtype {query.dtype}, got {key.dtype}")
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"{second} must have {first}'s width {query.shape[3]}, got {_shape(key)}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{second} must have a number of heads that divides {query.shape[1]}, got {key.shape[1]}")
    if same_tokens and key.shape[2] != query.shape[2]:
        raise ValueError(f"{second} must have {first}'s {query.shape[2]} tokens, got {key.shape[2]}")


def check_value(value: Tensor, key: Tensor, *, any_dtype: bool = False) -> None:
    """Require a ``[batch, key_heads, keys, value_dim]`` value for a key that was checked.

    Raises:
        TypeError: if value is no floating-point tensor, or has another dtype than key unless ``any_dtype``.
        ValueError: if batch, heads, tokens or device are not key's.
    """
    check_rows("value", value)
    _check_like("value", value, "key", key)
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value must have key's batch, heads and tokens {list(key.shape[:3])}, got {_shape(value)}")
    if value.dtype != key.dtype and not any_dtype:
        raise TypeError(f"value must have key's dtype {key.dtype}, got {value.dtype}")


def check_key_mask(key_mask: Tensor | None, key: Tensor) -> None:
    """Require None or a boolean ``[batch, keys]`` mask on key's device, True where a key is visible.

    Raises:
        TypeError: if the mask is not a boolean tensor.
        ValueError: if its shape or device is not key's.
    """
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise TypeError(f"key_mask must be a boolean tensor, got {got}")
    expected = (key.shape[0], key.shape[2])
    if tuple(key_mask.shape) != expected:
        raise ValueError(f"key_mask must have shape [batch, keys] = {list(expected)}, got {_shape(key_mask)}")
    if key_mask.device != key.device:
        raise ValueError(f"key_mask must be on key's device {key.device}, got {key_mask.device}")


def check_scale(scale: float | None, head_dim: int) -> float:
    """The scale of the scores: ``head_dim ** -0.5`` for None.

    Raises:
        TypeError: if the scale is not a number.
        ValueError: if it is not finite.
    """
    if scale is None:
        return head_dim**-0.5
    check_number("scale", scale)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    return scale


def check_positive(name: str, number: float) -> None:
    """Require a finite number above zero.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is zero, negative, infinite or NaN.
    """
    check_number(name, number)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")


def check_size(name: str, size: int) -> None:
    """Require an integer of at least one.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below one.
    """
    if not isinstance(size, int | torch.SymInt) or isinstance(size, bool):
        raise TypeError(f"{name} must be an integer, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def check_indices(name: str, indices: Tensor | None, tensor: Tensor) -> Tensor | None:
    """Indices of tokens of a ``[batch, heads, tokens, width]`` tensor as ``[batch or 1, count]``; None for None.

    Raises:
        TypeError: if they are no int64 tensor.
        ValueError: if they are not ``[count]`` or ``[batch, count]``, on another device, or, where they can be looked
            at without waiting, out of range.
    """
    if indices is None:
        return None
    batch, limit = tensor.shape[0], tensor.shape[2]
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")
    if indices.ndim not in (1, 2) or (indices.ndim == 2 and indices.shape[0] != batch):
        raise ValueError(f"{name} must have shape [{name}] or [{batch}, {name}], got {list(indices.shape)}")
    if indices.device != tensor.device:
        raise ValueError(f"{name} must be on device {tensor.device}, got {indices.device}")
    # Under compilation the values are unknown, and on another device a look at them would wait for it.
    if not torch.compiler.is_compiling() and indices.device.type == "cpu" and indices.numel():
        lowest, highest = (int(x) for x in indices.aminmax())
        if lowest < 0 or highest >= limit:
            raise ValueError(f"{name} must lie in [0, {limit}), got values from {lowest} to {highest}")
    return indices if indices.ndim == 2 else indices[None]


def check_places(
    places: Tensor | None, query: Tensor, key: Tensor, query_places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Places of the queries and of the keys on the axis on which distance is measured; the token's index for None.

    Raises:
        TypeError: if they are no int64 tensor.
        ValueError: if they are not ``[keys]`` and ``[queries]``, on another device, or places are given for the keys
            alone and there are more queries than keys to stand with.
    """
    queries, keys = query.shape[2], key.shape[2]
    if query_places is not None:
        _check_places("query_places", query_places, "queries", query)
    if places is None:
        every = torch.arange(max(queries, keys), device=key.device)
        of_queries, of_keys = every[len(every) - queries :], every[len(every) - keys :]
        return of_queries if query_places is None else query_places, of_keys
    _check_places("places", places, "keys", key)
    if query_places is not None:
        return query_places, places
    if queries > keys:
        raise ValueError(
            f"query must have at most as many tokens as key, {keys}, where places are given, got {queries}"
        )
    return places[keys - queries :], places


def _check_places(name: str, places: Tensor, tokens: str, other: Tensor) -> None:
    if not isinstance(places, Tensor) or places.dtype != torch.int64:
        got = places.dtype if isinstance(places, Tensor) else type(places).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")
    if list(places.shape) != [other.shape[2]]:
        raise ValueError(f"{name} must have shape [{tokens}] = [{other.shape[2]}], got {list(places.shape)}")
    if places.device != other.device:
        raise ValueError(f"{name} must be on the device of the {tokens} {other.device}, got {places.device}")


def check_number(name: str, number: float) -> None:
    """Require an integer or a float.

    Raises:
        TypeError: if it is neither.
    """
    if not isinstance(number, int | float | torch.SymInt | torch.SymFloat) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}")


def _check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other_name}'s device {other.device}, got {tensor.device}")
    if tensor.shape[0] != other.shape[0]:
        raise ValueError(f"{name} must have {other_name}'s batch size {other.shape[0]}, got {_shape(tensor)}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
