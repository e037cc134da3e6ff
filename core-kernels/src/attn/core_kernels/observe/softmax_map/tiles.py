"""Walk over the softmax map a few rows at a time: every visible key of some rows, so that one pass normalises them."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attn.core_kernels.visibility import Visibility

TILE_ENTRIES = 2**18  # 1 MiB of float32 stays in a core's second-level cache between the passes over a tile
MOST_ROWS = 128
FEWEST_ROWS = 16  # fewer make the products slow; beyond 2 ** 14 keys a tile then outgrows TILE_ENTRIES, linearly


class Tile(NamedTuple):
    """Rows of the map before the softmax.

    Args:
        heads: run of the merged axis batch * key_heads.
        rows: run of queries.
        keys: run of at least one key that holds every key that these rows see.
        logits: ``[heads, group, rows, keys]``, -inf where hidden, the reader's to overwrite.
    """

    heads: slice
    rows: slice
    keys: slice
    logits: Tensor


class LogitTiles:
    """The logits of an attention map, tile by tile, in float32 (float64 for float64).

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]``.
        scale: factor of the scores.
        visibility: which keys the queries see.
    """

    def __init__(self, query: Tensor, key: Tensor, scale: float, visibility: Visibility) -> None:
        self.precision = torch.promote_types(query.dtype, torch.float32)
        self.scale = scale
        key_heads = key.shape[1]
        self.query = merge_heads(query, key_heads)
        self.key = key.to(self.precision).flatten(0, 1)
        self.visibility = visibility.repeat_batch(key_heads)
        group, keys = self.query.shape[1], visibility.num_keys
        if visibility.window is not None and visibility.positions is None:
            keys = min(keys, 2 * visibility.window + MOST_ROWS)
        fewest = math.ceil(FEWEST_ROWS / group)
        self.rows_at_once = min(max(TILE_ENTRIES // (group * keys), fewest), MOST_ROWS)
        self.heads_at_once = max(TILE_ENTRIES // (group * keys * self.rows_at_once), 1)

    def read_rows(self, heads: slice, rows: slice) -> Tensor:
        """Queries times scale, ``[heads, group, rows, head_dim]``."""
        return self.query[heads, :, rows].to(self.precision) * self.scale

    def __iter__(self) -> Iterator[Tile]:
        """All heads of some rows, then the next rows; rows that order or window keep from every key are left out."""
        for rows in runs(self.visibility.num_queries, self.rows_at_once):
            keys = self.visibility.key_range(rows)
            if keys.start == keys.stop:
                continue
            for heads in runs(self.query.shape[0], self.heads_at_once):
                scaled = self.read_rows(heads, rows)
                logits = scaled.flatten(1, 2) @ self.key[heads, keys].mT
                logits = logits.unflatten(1, scaled.shape[1:3])
                yield Tile(heads, rows, keys, self.visibility.select_batch(heads).hide_(logits, rows, keys))


def runs(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most ``step`` that cover ``range(length)``."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def merge_heads(tensor: Tensor, key_heads: int) -> Tensor:
    """``[batch, heads, ...]`` as ``[batch * key_heads, group, ...]``."""
    return tensor.unflatten(1, (key_heads, tensor.shape[1] // key_heads)).flatten(0, 1)


def split_heads(tensor: Tensor, key_heads: int) -> Tensor:
    """``[batch * key_heads, group, ...]`` as ``[batch, heads, ...]``."""
    return tensor.unflatten(0, (tensor.shape[0] // key_heads, key_heads)).flatten(1, 2)


def exponentiate_(logits: Tensor, lse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Replace logits by their exponentials up to a factor per row, in place.

    Args:
        logits: ``[..., keys]``, -inf where hidden.
        lse: log-sum-exp of the rows ``[...]``, if it is known.

    Returns:
        The factors that turn the rows into probabilities, 0 for rows without a visible key, and the log-sum-exp;
        both ``[..., 1]``.
    """
    if lse is not None:
        logits.sub_(finite(lse[..., None])).exp_()
        return torch.ones_like(lse)[..., None], lse[..., None]
    highest = finite(logits.amax(-1, keepdim=True))
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    return torch.where(total > 0, total.reciprocal(), 0), total.log() + highest


def finite(row: Tensor) -> Tensor:
    """The tensor with -inf, which stands for rows without a visible key, replaced by 0."""
    return row.masked_fill(row == -torch.inf, 0)


class LogitGradients:
    """Gradients of query and key, gathered from those of the logits tile by tile.

    Args:
        tiles: the walk whose tiles will be added.
    """

    def __init__(self, tiles: LogitTiles) -> None:
        self._tiles = tiles
        self._query = torch.zeros_like(tiles.query, dtype=tiles.precision, memory_format=torch.contiguous_format)
        self._key = torch.zeros_like(tiles.key)

    def add(self, tile: Tile, grad: Tensor) -> None:
        """Add one tile's gradient, ``[heads, group, rows, keys]``."""
        grad = grad.flatten(1, 2)
        to_query = (grad @ self._tiles.key[tile.heads, tile.keys]) * self._tiles.scale
        self._query[tile.heads, :, tile.rows] = to_query.unflatten(1, tile.logits.shape[1:3])
        self._key[tile.heads, tile.keys] += grad.mT @ self._tiles.read_rows(tile.heads, tile.rows).flatten(1, 2)

    def finish(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients in the shapes and dtypes of query and key."""
        return split_heads(self._query, key.shape[1]).to(query.dtype), self._key.view(key.shape).to(key.dtype)


Slopes = Callable[[Tile], Iterator[tuple[slice, Tensor]]]
"""For a tile with its scores, runs of its keys whose scores change, each with the factors by which they do."""


def attend(tiles: LogitTiles, value: Tensor, slopes: Slopes | None = None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the rows.

    Args:
        tiles: the walk over the scores.
        value: ``[batch, key_heads, keys, value_dim]``.
        slopes: factors of the scores; None for the scores as they are.

    Returns:
        ``[batch, heads, queries, value_dim]`` in value's dtype, and ``[batch, heads, queries]``.
    """
    key_heads, dtype = value.shape[1], value.dtype
    value = value.flatten(0, 1).to(tiles.precision)
    out = value.new_zeros(*tiles.query.shape[:3], value.shape[-1])
    lse = out.new_full(out.shape[:3], -torch.inf)
    for tile in tiles:
        for part, slope in slopes(tile) if slopes else ():
            tile.logits[..., part].mul_(slope)
        factor, row_lse = exponentiate_(tile.logits, None)
        weighted = tile.logits.flatten(1, 2) @ value[tile.heads, tile.keys]
        out[tile.heads, :, tile.rows] = weighted.unflatten(1, factor.shape[1:3]) * factor
        lse[tile.heads, :, tile.rows] = row_lse[..., 0]
    return split_heads(out, key_heads).to(dtype), split_heads(lse, key_heads)


def attend_backward(
    tiles: LogitTiles,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    slopes: Slopes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: ``ds = slope * p * (dout @ v.T - (dout . out) + dlse)``.

    A slope must be the derivative too, as it is where it depends on the score's sign alone.
    """
    key_heads = key.shape[1]
    flat = value.flatten(0, 1).to(tiles.precision)
    grad_out, out = (merge_heads(x, key_heads).to(tiles.precision) for x in (grad_out, out))
    shift = torch.linalg.vecdot(grad_out, out).neg_()
    if grad_lse is not None:
        shift += merge_heads(grad_lse, key_heads)
    lse = merge_heads(lse, key_heads)
    gradients = LogitGradients(tiles)
    grad_value = torch.zeros_like(flat)
    for tile in tiles:
        parts = list(slopes(tile)) if slopes else []
        for part, slope in parts:
            tile.logits[..., part].mul_(slope)
        exponentiate_(tile.logits, lse[tile.heads, :, tile.rows])
        upstream = grad_out[tile.heads, :, tile.rows].flatten(1, 2)
        grad_value[tile.heads, tile.keys] += tile.logits.flatten(1, 2).mT @ upstream
        grad_map = (upstream @ flat[tile.heads, tile.keys].mT).view_as(tile.logits)
        grad = tile.logits.mul_(grad_map.add_(shift[tile.heads, :, tile.rows, None]))
        for part, slope in parts:
            grad[..., part].mul_(slope)
        gradients.add(tile, grad)
    return *gradients.finish(query, key), grad_value.unflatten(0, key.shape[:2]).to(value.dtype)
