"""The observe operators in PyTorch, a tile of rows at a time, so that memory grows with queries plus keys.

Each is a registered operator: opaque to ``torch.compile``, and computed in float32 (float64 for float64) under autocast
too. The last arguments of all are the scale and what `Visibility.as_arguments` gives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from attn.core_kernels.observe.softmax_map import sdpa
from attn.core_kernels.observe.softmax_map.registration import differentiate_attention, differentiate_submap, register
from attn.core_kernels.observe.softmax_map.tiles import (
    LogitGradients,
    LogitTiles,
    Tile,
    attend,
    attend_backward,
    exponentiate_,
    finite,
    merge_heads,
    runs,
    split_heads,
)
from attn.core_kernels.visibility import Visibility


def _merge_lse(lse: Tensor | None, key_heads: int) -> Tensor | None:
    return None if lse is None else merge_heads(lse, key_heads)


def _part(lse: Tensor | None, heads: slice, rows: slice) -> Tensor | None:
    return None if lse is None else lse[heads, :, rows]


# --- attention_with_lse


@register
def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, value_dim]`` in query's dtype and lse ``[batch, heads, queries]``."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    if sdpa.serves(query, value, *visibility.as_arguments()):
        return sdpa.attend(query, key, value, scale, causal, key_mask)
    return attend(LogitTiles(query, key, scale, visibility), value)


@register
def attention_with_lse_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    return attend_backward(tiles, grad_out, grad_lse, query, key, value, out, lse)


differentiate_attention(attention_with_lse, attention_with_lse_backward)


# --- what is read off the map


@register
def key_moments(
    query: Tensor,
    key: Tensor,
    row_weights: Tensor,
    lse: Tensor | None,
    squares: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weighted column sums ``[batch, heads, sets, keys]``, and those of the squares, empty unless ``squares``.

    The weights are ``[batch or 1, heads or 1, sets, queries]``, lse is ``[batch, heads, queries]``.
    """
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    weights = row_weights.to(tiles.precision).expand(*query.shape[:2], -1, -1)
    weights, lse = merge_heads(weights, key.shape[1]), _merge_lse(lse, key.shape[1])
    mass = weights.new_zeros(*weights.shape[:3], key.shape[2])
    square = torch.zeros_like(mass) if squares else mass.new_zeros(0, *mass.shape[1:])
    for tile in tiles:
        factor = exponentiate_(tile.logits, _part(lse, tile.heads, tile.rows))[0].mT
        weighted = weights[tile.heads, :, :, tile.rows] * factor
        mass[tile.heads, :, :, tile.keys] += weighted @ tile.logits
        if squares:
            square[tile.heads, :, :, tile.keys] += (weighted * factor) @ tile.logits.square_()
    return split_heads(mass, key.shape[1]), split_heads(square, key.shape[1])


@register
def suffix_key_mass(
    query: Tensor,
    key: Tensor,
    block_size: int,
    mean_heads: bool,
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Column sums over the rows from each block's first on, ``[batch, (heads,) query_blocks, keys]``."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    lse = _merge_lse(lse, key.shape[1])
    blocks = -(-query.shape[2] // block_size)
    total = tiles.key.new_zeros(*_lead(query, key, mean_heads), blocks, key.shape[2])
    for tile in tiles:
        factor, _ = exponentiate_(tile.logits, _part(lse, tile.heads, tile.rows))
        first, last = tile.rows.start // block_size, (tile.rows.stop - 1) // block_size + 1
        block_of_row = torch.arange(tile.rows.start, tile.rows.stop, device=query.device) // block_size
        member = block_of_row == torch.arange(first, last, device=query.device)[:, None]
        sums = (member * factor.mT) @ tile.logits
        _accumulate(total, sums, tile.heads, key.shape[1], slice(first, last), tile.keys)
    if mean_heads:
        total /= query.shape[1]
    else:
        total = split_heads(total, key.shape[1])
    for block in reversed(range(blocks - 1)):
        total[..., block, :] += total[..., block + 1, :]
    return total


def _lead(query: Tensor, key: Tensor, mean_heads: bool) -> tuple[int, ...]:
    """Leading sizes of what is gathered per head, merged, or summed over the heads of a batch row."""
    batch, heads = query.shape[:2]
    return (batch,) if mean_heads else (batch * key.shape[1], heads // key.shape[1])


def _accumulate(total: Tensor, part: Tensor, heads: slice, key_heads: int, rows: slice, keys: slice) -> None:
    """Add ``[heads, group, rows, keys]`` to its place, summed over heads if total is ``[batch, rows, keys]``."""
    if total.ndim == 4:
        total[heads, :, rows, keys] += part
        return
    summed = part.sum(1)
    for head in range(heads.start, heads.stop):
        total[head // key_heads, rows, keys] += summed[head - heads.start]


@register
def row_stats(
    query: Tensor,
    key: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp, largest logit, its key and entropy of every row, ``[batch, heads, queries]`` each."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    lse = tiles.key.new_full(tiles.query.shape[:3], -torch.inf)
    highest, entropy = lse.clone(), torch.zeros_like(lse)
    argmax = torch.full_like(lse, -1, dtype=torch.int64)
    for tile in tiles:
        place = tile.heads, slice(None), tile.rows
        row_highest, row_argmax = tile.logits.max(-1)
        sees_none = row_highest == -torch.inf
        below = tile.logits.sub_(finite(row_highest)[..., None]).clamp_(min=torch.finfo(tiles.precision).min)
        weight = below.exp()
        total = weight.sum(-1).masked_fill_(sees_none, 1)
        highest[place], argmax[place] = row_highest, (row_argmax + tile.keys.start).masked_fill_(sees_none, -1)
        lse[place] = total.log() + row_highest
        entropy[place] = (total.log() - weight.mul_(below).sum(-1) / total).masked_fill_(sees_none, 0)
    lse, highest, argmax, entropy = (split_heads(x, key.shape[1]) for x in (lse, highest, argmax, entropy))
    return lse, highest, argmax, entropy


@register
def tile_stats(
    query: Tensor,
    key: Tensor,
    tile_rows: int,
    tile_keys: int,
    eps: float,
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, maximum, visible entries below eps and visible entries, ``[batch, heads, query_tiles, key_tiles]`` each."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    lse = _merge_lse(lse, key.shape[1])
    shape = *tiles.query.shape[:2], -(-query.shape[2] // tile_rows), -(-key.shape[2] // tile_keys)
    total = tiles.key.new_zeros(shape)
    highest = torch.zeros_like(total)
    below, visible = (torch.zeros_like(total, dtype=torch.int64) for _ in range(2))
    for tile in tiles:
        seen = tile.logits > -torch.inf
        factor, _ = exponentiate_(tile.logits, _part(lse, tile.heads, tile.rows))
        probability = tile.logits.mul_(factor)
        is_below = (probability < eps) & seen
        columns = slice(tile.keys.start // tile_keys, (tile.keys.stop - 1) // tile_keys + 1)
        padding = tile.keys.start % tile_keys, -tile.keys.stop % tile_keys

        def by_tile(per_key: Tensor, columns: slice = columns, padding: tuple[int, int] = padding) -> Tensor:
            return F.pad(per_key, padding).unflatten(-1, (columns.stop - columns.start, tile_keys))

        for row, rows in _rows_by_block(tile.rows, tile_rows):
            place = tile.heads, slice(None), row, columns
            total[place] += by_tile(probability[:, :, rows].sum(2)).sum(-1)
            highest[place] = torch.maximum(highest[place], by_tile(probability[:, :, rows].amax(2)).amax(-1))
            below[place] += by_tile(is_below[:, :, rows].sum(2)).sum(-1)
            visible[place] += by_tile(seen[:, :, rows].sum(2)).sum(-1)
    total, highest, below, visible = (split_heads(x, key.shape[1]) for x in (total, highest, below, visible))
    return total, highest, below, visible


def _rows_by_block(rows: slice, block_size: int) -> Iterator[tuple[int, slice]]:
    """Blocks that a run of rows touches, each with the part of the run in it, counted from the run's start."""
    for block in range(rows.start // block_size, (rows.stop - 1) // block_size + 1):
        start, stop = max(block * block_size, rows.start), min((block + 1) * block_size, rows.stop)
        yield block, slice(start - rows.start, stop - rows.start)


# --- distances


class _Bands:
    """Number of the distance band of query and key, the same for all heads; ``len(edges)`` for no band."""

    def __init__(self, of_query: Tensor, of_key: Tensor, edges: list[int]) -> None:
        self._of_query, self._of_key = of_query, of_key
        self.none = len(edges)
        self._furthest = int(torch.cat([of_query, of_key]).amax()) if len(of_query) + len(of_key) else 0
        distances = torch.arange(self._furthest + 2, device=of_key.device)
        band = torch.bucketize(distances, torch.tensor(edges, device=of_key.device), right=True) - 1
        band[-1] = -1  # the place of unknown distances
        self._band = band.masked_fill_(band < 0, self.none)
        self._last: tuple[slice, slice, Tensor] | None = None

    def of(self, rows: slice, keys: slice) -> Tensor:
        """Bands of a run of queries and a run of keys, int64 ``[rows, keys]``."""
        if self._last is None or self._last[:2] != (rows, keys):
            of_query, of_key = self._of_query[rows, None], self._of_key[keys]
            distance = (of_query - of_key).abs_()
            distance.masked_fill_((of_query < 0) | (of_key < 0), self._furthest + 1)
            self._last = rows, keys, self._band[distance]
        return self._last[2]

    def sums(self, entries: Tensor, rows: slice, keys: slice) -> Tensor:
        """Sums over the keys of each band, ``[..., rows, bands]``, of entries ``[..., rows, keys]``."""
        sums = entries.new_zeros(*entries.shape[:-1], self.none + 1)
        return sums.scatter_add_(-1, self.of(rows, keys).expand_as(entries), entries)[..., :-1]


@register
def mass_by_distance(
    query: Tensor,
    key: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    edges: list[int],
    lse: Tensor | None,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Attention mass of every row in every band, ``[batch, heads, queries, bands]``."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    lse = _merge_lse(lse, key.shape[1])
    bands = _Bands(query_places, key_places, edges)
    mass = tiles.key.new_zeros(*tiles.query.shape[:3], len(edges))
    for tile in tiles:
        factor, _ = exponentiate_(tile.logits, _part(lse, tile.heads, tile.rows))
        mass[tile.heads, :, tile.rows] = bands.sums(tile.logits, tile.rows, tile.keys) * factor
    return split_heads(mass, key.shape[1])


@register
def logit_by_distance(
    query: Tensor,
    key: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    edges: list[int],
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Mean visible logit of every band, ``[batch, heads, bands]``; NaN for a band without visible pairs."""
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    bands = _Bands(query_places, key_places, edges)
    # A band may hold more pairs than float32 can count.
    total = torch.zeros(*tiles.query.shape[:2], len(edges), dtype=torch.float64, device=query.device)
    for tile in tiles:
        total[tile.heads] += bands.sums(finite(tile.logits), tile.rows, tile.keys).sum(2, dtype=torch.float64)
    pairs = total.new_zeros(query.shape[0], 1, len(edges))
    for rows in runs(query.shape[2], tiles.rows_at_once):
        keys = visibility.key_range(rows)
        visible = visibility.mask(rows, keys, query.device).float()
        pairs += bands.sums(visible, rows, keys).sum(1, dtype=torch.float64)[:, None]
    return (split_heads(total, key.shape[1]) / pairs).to(tiles.precision)


# --- submap


@register
def submap(
    query: Tensor,
    key: Tensor,
    columns: Tensor | None,
    mean_heads: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The map at chosen columns, ``[batch, (heads,) queries, columns]``, and the lse ``[batch, heads, queries]``.

    Queries are the chosen rows; columns are int64 ``[batch or 1, columns]``, or None for all.
    """
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    lse = tiles.key.new_full(tiles.query.shape[:3], -torch.inf)
    width = key.shape[2] if columns is None else columns.shape[1]
    total = lse.new_zeros(*_lead(query, key, mean_heads), query.shape[2], width)
    for tile in tiles:
        factor, row_lse = exponentiate_(tile.logits, None)
        lse[tile.heads, :, tile.rows] = row_lse[..., 0]
        probability = tile.logits.mul_(factor)
        if columns is None:
            _accumulate(total, probability, tile.heads, key.shape[1], tile.rows, tile.keys)
        else:
            index, inside = _column_index(columns, tile, key.shape[1])
            chosen = probability.gather(-1, index).mul_(inside)
            _accumulate(total, chosen, tile.heads, key.shape[1], tile.rows, slice(0, width))
    lse = split_heads(lse, key.shape[1])
    return (total.div_(query.shape[1]) if mean_heads else split_heads(total, key.shape[1])), lse


def _column_index(columns: Tensor, tile: Tile, key_heads: int) -> tuple[Tensor, Tensor]:
    """Where chosen columns lie in a tile, ``[heads, group, rows, columns]``, and whether they do at all."""
    if columns.shape[0] > 1:
        columns = columns[torch.arange(tile.heads.start, tile.heads.stop, device=columns.device) // key_heads]
    index = (columns - tile.keys.start)[:, None, None].expand(*tile.logits.shape[:3], -1)
    inside = (index >= 0) & (index < tile.logits.shape[3])
    return index.clamp(0, tile.logits.shape[3] - 1), inside


@register
def submap_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    columns: Tensor | None,
    lse: Tensor,
    mean_heads: bool,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key: ``ds_j = p_j * (g_j - sum_c p_c g_c)``, g zero outside the chosen columns."""
    key_heads = key.shape[1]
    visibility = Visibility.from_arguments(query, key, offset, causal, window, key_mask, positions)
    tiles = LogitTiles(query, key, scale, visibility)
    gradients = LogitGradients(tiles)
    lse = merge_heads(lse, key_heads)
    grad = grad if mean_heads else merge_heads(grad, key_heads)
    for tile in tiles:
        exponentiate_(tile.logits, lse[tile.heads, :, tile.rows])
        if mean_heads:
            batch = torch.arange(tile.heads.start, tile.heads.stop, device=grad.device) // key_heads
            upstream = grad[batch, tile.rows][:, None] / query.shape[1]
        else:
            upstream = grad[tile.heads, :, tile.rows]
        if columns is None:
            upstream = upstream[..., tile.keys]
            shift = (upstream * tile.logits).sum(-1, keepdim=True)
            gradients.add(tile, tile.logits.mul_(upstream - shift))
        else:
            index, inside = _column_index(columns, tile, key_heads)
            weighted = tile.logits.gather(-1, index).mul_(inside).mul_(upstream)
            shift = weighted.sum(-1, keepdim=True)
            gradients.add(tile, tile.logits.mul_(-shift).scatter_add_(-1, index, weighted))
    return gradients.finish(query, key)


differentiate_submap(submap, submap_backward)
