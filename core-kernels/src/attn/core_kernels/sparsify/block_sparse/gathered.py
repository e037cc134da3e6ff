"""Block-sparse attention in PyTorch: lists of about equal length are gathered and multiplied together.

Forward and the gradient of the queries walk over the query blocks, each with its key blocks; the gradients of keys and
values over the key blocks, each with its query blocks, by the transposed table. So every element is written once and
the same call gives the same bits. Blocks that order or window hide wholly are dropped from the lists; only blocks that
are partly hidden are masked. Computed in float32 (float64 for float64), under autocast too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attn.core_kernels.observe.softmax_map.tiles import exponentiate_
from attn.core_kernels.sparsify.block_layout import BlockTable

ENTRIES_AT_ONCE = 2**18  # logits of the lists that are computed together; 1 MiB of float32
LEAST_FILLED = 0.75  # shortest list that is computed with the longest, as a share of it


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a call and its rule of visibility.

    Heads are split into ``units`` that follow the same lists, ``group`` query heads each: the heads that share a key
    head if the layout does not tell them apart, else single heads.
    """

    batch: int
    heads: int
    key_heads: int
    num_queries: int
    num_keys: int
    block_size: tuple[int, int]
    layout_batch: int
    layout_heads: int
    causal: bool
    window: int | None

    @property
    def units(self) -> int:
        """Parts that the heads are split into."""
        return self.key_heads if self.key_heads % self.layout_heads == 0 else self.heads

    @property
    def group(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Query blocks and key blocks."""
        return -(-self.num_queries // self.block_size[0]), -(-self.num_keys // self.block_size[1])

    def fold_queries(self, tensor: Tensor) -> Tensor:
        """``[batch, heads, queries, width]`` as ``[batch * units * query_blocks, group * rows, width]``, padded."""
        return _fold(tensor, self.units, self.block_size[0])

    def unfold_queries(self, folded: Tensor) -> Tensor:
        """The inverse of `fold_queries`."""
        return _unfold(folded, self.batch, self.units, self.group, self.num_queries)

    def fold_keys(self, tensor: Tensor) -> Tensor:
        """``[batch, key_heads, keys, width]`` as ``[batch * key_heads * key_blocks, columns, width]``, padded by 0."""
        return _fold(tensor, self.key_heads, self.block_size[1])

    def unfold_keys(self, folded: Tensor) -> Tensor:
        """``[batch * units * key_blocks, columns, width]`` as ``[batch, key_heads, keys, width]``, units summed."""
        per_unit = _unfold(folded, self.batch, self.units, 1, self.num_keys)
        return per_unit.unflatten(1, (self.key_heads, -1)).sum(2) if self.units > self.key_heads else per_unit

    def hidden_pairs(self, query_block: Tensor, key_block: Tensor) -> Tensor:
        """Pairs that order, window or the end of the keys hide, bool ``[blocks, rows, columns]``."""
        rows, columns = (torch.arange(size, device=query_block.device) for size in self.block_size)
        query = query_block[:, None, None] * self.block_size[0] + rows[:, None] + self.num_keys - self.num_queries
        key = key_block[:, None, None] * self.block_size[1] + columns
        hidden = key >= self.num_keys
        if self.causal:
            hidden = hidden | (key > query)
        if self.window is not None:
            hidden = hidden | ((query - key).abs() >= self.window)
        return hidden.expand(-1, *self.block_size)

    def hidden_blocks(self, query_block: Tensor, key_block: Tensor) -> tuple[Tensor, Tensor]:
        """Which blocks order and window hide wholly, and of which they or the end of the keys hide a part."""
        offset = self.num_keys - self.num_queries
        first_query = query_block * self.block_size[0] + offset
        last_query = (first_query + self.block_size[0] - 1).clamp(max=self.num_keys - 1)
        first_key = key_block * self.block_size[1]
        partly = first_key + self.block_size[1] > self.num_keys
        last_key = (first_key + self.block_size[1] - 1).clamp(max=self.num_keys - 1)
        wholly = torch.zeros_like(partly)
        if self.causal:
            wholly = wholly | (first_key > last_query)
            partly = partly | (last_key > first_query)
        if self.window is not None:
            wholly = wholly | (first_key - last_query >= self.window) | (first_query - last_key >= self.window)
            partly = partly | (last_key - first_query >= self.window) | (last_query - first_key >= self.window)
        return wholly, partly


class Chunk(NamedTuple):
    """Lists that are computed together.

    Args:
        lists: int64 ``[lists]``, of the call.
        unit: int64 ``[lists]``, batch row times units plus unit.
        own: int64 ``[lists]``, the block that has the list.
        blocks: int64 ``[lists, longest]``, the blocks in it; a shorter list repeats its last.
        place: where blocks need a mask, their list and their place in it.
        hidden: bool ``[len(place), rows, columns]``, what the mask hides.
    """

    lists: Tensor
    unit: Tensor
    own: Tensor
    blocks: Tensor
    place: tuple[Tensor, Tensor]
    hidden: Tensor

    def hide_(self, logits: Tensor) -> Tensor:
        """Write -inf over hidden logits ``[lists, longest, group, rows, columns]``, in place."""
        if len(self.hidden):
            logits[self.place] = logits[self.place].masked_fill_(self.hidden[:, None], -torch.inf)
        return logits


def walk(table: BlockTable, tiles: Tensor, shape: Shape, *, by_key: bool) -> Iterator[Chunk]:
    """All lists that are not empty, the longest first."""
    per_head = shape.num_blocks[1] if by_key else shape.num_blocks[0]
    table, partly = _drop_hidden(table, shape, per_head, by_key)
    counts = table.offsets.diff()
    call = torch.arange(shape.batch * shape.units * per_head, device=counts.device)
    own, unit = call % per_head, call // per_head
    row = unit // shape.units if shape.layout_batch > 1 else 0
    head = unit % shape.units // (shape.units // shape.layout_heads)
    of_layout = (row * shape.layout_heads + head) * per_head + own
    lengths, order = counts[of_layout].sort(descending=True, stable=True)
    on_host = lengths.tolist()
    area = shape.group * shape.block_size[0] * shape.block_size[1]
    start = 0
    while start < len(on_host) and on_host[start]:
        longest = on_host[start]
        stop, limit = start + 1, start + max(ENTRIES_AT_ONCE // (area * longest), 1)
        while stop < min(limit, len(on_host)) and on_host[stop] >= max(LEAST_FILLED * longest, 1):
            stop += 1
        lists = order[start:stop]
        slot = torch.arange(longest, device=lists.device)
        length = lengths[start:stop, None]
        entry = table.offsets[of_layout[lists]][:, None] + torch.minimum(slot, length - 1)
        blocks, tile, repeated = table.blocks[entry].long(), table.tiles[entry].long(), slot >= length
        listed, slots = (partly[entry] | (tile >= 0) | repeated).nonzero(as_tuple=True)
        place = listed, slots
        here, there = own[lists][place[0]], blocks[place]
        hidden = shape.hidden_pairs(*((there, here) if by_key else (here, there))) | repeated[place][:, None, None]
        if len(tiles):
            tile = tile[place]
            hidden = hidden | (~tiles[tile.clamp(min=0)] & (tile >= 0)[:, None, None])
        yield Chunk(lists, unit[lists], own[lists], blocks, place, hidden)
        start = stop


def _drop_hidden(table: BlockTable, shape: Shape, per_head: int, by_key: bool) -> tuple[BlockTable, Tensor]:
    """The table without blocks that order and window hide wholly, and which of the others they hide in part."""
    lists = torch.arange(len(table.offsets) - 1, device=table.blocks.device)
    own = (lists % per_head).repeat_interleave(table.offsets.diff(), output_size=len(table.blocks))
    blocks = table.blocks.long()
    wholly, partly = shape.hidden_blocks(*((blocks, own) if by_key else (own, blocks)))
    seen = ~wholly
    offsets = F.pad(seen.cumsum(0), (1, 0))[table.offsets]
    return BlockTable(offsets, table.blocks[seen], table.tiles[seen]), partly[seen]


class Blocks:
    """Queries, keys, values and the key mask cut into blocks, and the logits of a chunk."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float, shape: Shape
    ) -> None:
        precision = torch.promote_types(query.dtype, torch.float32)
        self.shape = shape
        self.query = shape.fold_queries(query.to(precision) * scale)
        self.key, self.value = (shape.fold_keys(x.to(precision)) for x in (key, value))
        self.hidden_keys = None
        if key_mask is not None:
            self.hidden_keys = _fold(~key_mask[:, None, :, None], 1, shape.block_size[1])[..., 0]

    def key_places(self, chunk: Chunk, blocks: Tensor) -> Tensor:
        """Rows of `key` that hold these key blocks of the chunk's units, ``[lists, ...]`` like the blocks."""
        row = chunk.unit // self.shape.units * self.shape.key_heads
        row += chunk.unit % self.shape.units // (self.shape.units // self.shape.key_heads)
        return row.view(-1, *[1] * (blocks.ndim - 1)) * self.shape.num_blocks[1] + blocks

    def query_places(self, chunk: Chunk, blocks: Tensor) -> Tensor:
        """Rows of `query` that hold these query blocks, ``[lists, ...]`` like the blocks."""
        return chunk.unit.view(-1, *[1] * (blocks.ndim - 1)) * self.shape.num_blocks[0] + blocks

    def hide_keys_(self, logits: Tensor, chunk: Chunk, blocks: Tensor) -> None:
        """Write -inf over the logits ``[lists, longest, group, rows, columns]`` of masked keys, in place."""
        if self.hidden_keys is not None:
            row = (chunk.unit // self.shape.units).view(-1, *[1] * (blocks.ndim - 1)) * self.shape.num_blocks[1]
            hidden = self.hidden_keys[row + blocks]
            hidden = hidden[:, :, None, None] if blocks.ndim == 2 else hidden[:, None, None, None]
            logits.masked_fill_(hidden, -torch.inf)

    def logits_by_query(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Logits ``[lists, group * rows, longest * columns]``, and rows of `key` that hold the chunk's key blocks."""
        places = self.key_places(chunk, chunk.blocks)
        logits = self.query[chunk.lists] @ self.key[places].flatten(1, 2).mT
        by_block = logits.view(len(logits), self.shape.group, -1, places.shape[1], self.shape.block_size[1])
        by_block = by_block.permute(0, 3, 1, 2, 4)
        chunk.hide_(by_block)
        self.hide_keys_(by_block, chunk, chunk.blocks)
        return logits, places

    def logits_by_key(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[lists, longest * group * rows, columns]``, rows of `query` in them, and of `key`, one per list."""
        places, own = self.query_places(chunk, chunk.blocks), self.key_places(chunk, chunk.own)
        logits = self.query[places].flatten(1, 2) @ self.key[own].mT
        by_block = logits.view(*places.shape, self.shape.group, -1, self.shape.block_size[1])
        chunk.hide_(by_block)
        self.hide_keys_(by_block, chunk, chunk.own)
        return logits, places, own


def _shape(
    query: Tensor,
    key: Tensor,
    block_size: list[int],
    layout_batch: int,
    layout_heads: int,
    causal: bool,
    window: int | None,
) -> Shape:
    return Shape(
        batch=query.shape[0],
        heads=query.shape[1],
        key_heads=key.shape[1],
        num_queries=query.shape[2],
        num_keys=key.shape[2],
        block_size=(block_size[0], block_size[1]),
        layout_batch=layout_batch,
        layout_heads=layout_heads,
        causal=causal,
        window=window,
    )


@torch.library.custom_op("attn::block_sparse_gathered", mutates_args=())
def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    tables: list[Tensor],
    block_size: list[int],
    layout_batch: int,
    layout_heads: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, value_dim]`` in query's dtype and lse ``[batch, heads, queries]``.

    The tables are what `BlockLayout.tables` gives.
    """
    with torch.autocast(query.device.type, enabled=False):
        shape = _shape(query, key, block_size, layout_batch, layout_heads, causal, window)
        blocks = Blocks(query, key, value, key_mask, scale, shape)
        out = blocks.query.new_zeros(*blocks.query.shape[:2], value.shape[3])
        lse = blocks.query.new_full((*out.shape[:2], 1), -torch.inf)
        for chunk in walk(BlockTable(*tables[:3]), tables[6], shape, by_key=False):
            weights, places = blocks.logits_by_query(chunk)
            factor, row_lse = exponentiate_(weights, None)
            out[chunk.lists] = (weights @ blocks.value[places].flatten(1, 2)) * factor
            lse[chunk.lists] = row_lse
        return shape.unfold_queries(out).to(query.dtype), shape.unfold_queries(lse)[..., 0].contiguous()


@block_sparse_attention.register_fake
def _(query, _key, value, *_rest):  # type: ignore[no-untyped-def]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


@torch.library.custom_op("attn::block_sparse_gathered_backward", mutates_args=())
def block_sparse_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    key_mask: Tensor | None,
    tables: list[Tensor],
    block_size: list[int],
    layout_batch: int,
    layout_heads: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: ``ds = p * (dout @ v.T - (dout . out) + dlse)``."""
    with torch.autocast(query.device.type, enabled=False):
        shape = _shape(query, key, block_size, layout_batch, layout_heads, causal, window)
        blocks = Blocks(query, key, value, key_mask, scale, shape)
        grad_out = grad_out.to(lse.dtype)
        shift = shape.fold_queries((grad_lse - torch.linalg.vecdot(grad_out, out.to(lse.dtype)))[..., None])
        lse, grad_out = shape.fold_queries(lse[..., None])[..., 0], shape.fold_queries(grad_out)

        grad_query = torch.zeros_like(blocks.query)
        for chunk in walk(BlockTable(*tables[:3]), tables[6], shape, by_key=False):
            weights, places = blocks.logits_by_query(chunk)
            exponentiate_(weights, lse[chunk.lists])
            grad_map = grad_out[chunk.lists] @ blocks.value[places].flatten(1, 2).mT
            grad_logits = weights.mul_(grad_map.add_(shift[chunk.lists]))
            grad_query[chunk.lists] = (grad_logits @ blocks.key[places].flatten(1, 2)) * scale

        lists = shape.batch * shape.units * shape.num_blocks[1]
        grad_key = blocks.key.new_zeros(lists, shape.block_size[1], key.shape[3])
        grad_value = blocks.key.new_zeros(lists, shape.block_size[1], value.shape[3])
        for chunk in walk(BlockTable(*tables[3:6]), tables[6], shape, by_key=True):
            weights, places, own = blocks.logits_by_key(chunk)
            exponentiate_(weights, lse[places].flatten(1, 2))
            upstream = grad_out[places].flatten(1, 2)
            grad_value[chunk.lists] = weights.mT @ upstream
            grad_map = upstream @ blocks.value[own].mT
            grad_logits = weights.mul_(grad_map.add_(shift[places].flatten(1, 2)))
            grad_key[chunk.lists] = grad_logits.mT @ blocks.query[places].flatten(1, 2)
        return (
            shape.unfold_queries(grad_query).to(query.dtype),
            shape.unfold_keys(grad_key).to(key.dtype),
            shape.unfold_keys(grad_value).to(value.dtype),
        )


@block_sparse_attention_backward.register_fake
def _(_grad_out, _grad_lse, query, key, value, *_rest):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, key_mask, tables, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, *output, key_mask, *tables)


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    query, key, value, out, lse, key_mask, *tables = ctx.saved_tensors
    grads = block_sparse_attention_backward(
        grad_out, grad_lse, query, key, value, out, lse, key_mask, tables, *ctx.rest
    )
    return *grads, None, [None] * len(tables), *[None] * len(ctx.rest)


block_sparse_attention.register_autograd(_differentiate, setup_context=_save)


def _fold(tensor: Tensor, units: int, block: int) -> Tensor:
    """``[batch, units * group, tokens, width]`` as ``[batch * units * blocks, group * block, width]``."""
    padded = F.pad(tensor, (0, 0, 0, -tensor.shape[2] % block))
    batch, heads, tokens, width = padded.shape
    parts = padded.reshape(batch, units, heads // units, tokens // block, block, width).transpose(2, 3)
    return parts.reshape(batch * units * (tokens // block), heads // units * block, width)


def _unfold(folded: Tensor, batch: int, units: int, group: int, tokens: int) -> Tensor:
    """The inverse of `_fold`, without the padding."""
    block = folded.shape[1] // group
    parts = folded.view(batch, units, -(-tokens // block), group, block, folded.shape[2])
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :tokens].contiguous()
