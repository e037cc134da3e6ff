"""Which blocks of the attention map are computed, per head, in compressed form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attn.core_kernels.checks import check_number, check_size
from attn.core_kernels.sparsify.mask_rules import MaskRule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

PAIRS_AT_ONCE = 2**22  # query-key pairs of a rule that are evaluated together: a few MiB of int64


class BlockTable(NamedTuple):
    """Lists of blocks, one after another.

    Args:
        offsets: int32 ``[lists + 1]``; list ``n`` holds the entries from ``offsets[n]`` to ``offsets[n + 1] - 1``.
        blocks: int32 ``[entries]``, increasing within a list.
        tiles: int32 ``[entries]``, which of `BlockLayout.tiles` the block keeps; -1 for the whole block.
    """

    offsets: Tensor
    blocks: Tensor
    tiles: Tensor


class Density(NamedTuple):
    """What a layout keeps, as fractions of what there is, over all heads.

    Args:
        pairs: of query-key pairs.
        blocks: of blocks, a partial block counting as one.
    """

    pairs: float
    blocks: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockLayout:
    """The blocks that block-sparse attention computes and, where a block is not kept whole, which of its pairs.

    Made by `from_rule`, `from_blocks`, `from_scores` or `from_block_mask`. Memory grows with the blocks kept and with
    the distinct partial ones. Query head ``h`` of ``H`` follows head ``h // (H / heads)`` of the layout.

    Args:
        num_queries: queries; the last one is level with the last key, and block 0 starts at the first one.
        num_keys: keys.
        block_size: queries and keys of a block; the last block of either axis may be ragged.
        batch: 1, or the batch size if the rows of a batch have lists of their own.
        heads: 1, or heads that have lists of their own; a divisor of the number of query heads.
        by_query: for each batch row, head and query block, in this order, its key blocks.
        by_key: for each batch row, head and key block its query blocks: the transposed table.
        tiles: bool ``[distinct, *block_size]``, True where a pair of a partial block is attended.
    """

    num_queries: int
    num_keys: int
    block_size: tuple[int, int]
    batch: int
    heads: int
    by_query: BlockTable
    by_key: BlockTable
    tiles: Tensor

    @classmethod
    def from_rule(
        cls,
        rule: MaskRule,
        num_queries: int,
        num_keys: int,
        *,
        block_size: int | tuple[int, int] = 64,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str = "cpu",
    ) -> "BlockLayout":
        """The layout of a rule, which is asked about every pair once, some blocks at a time.

        Args:
            rule: called as ``rule(batch, head, query, key)`` with int64 tensors that broadcast; returns bools. Query
                ``i`` is passed as its position ``i + num_keys - num_queries``.
            num_queries: queries, at least 1.
            num_keys: keys, at least 1.
            block_size: queries and keys of a block, one number for both or a pair; 64.
            batch: batch rows that the rule tells apart, else 1.
            heads: heads that the rule tells apart, else 1.
            device: where the rule is evaluated and the layout lies.

        Raises:
            TypeError: if a size is not an integer, or the rule does not return bools.
            ValueError: if a size is below 1.
        """
        sizes = {"num_queries": num_queries, "num_keys": num_keys, "batch": batch, "heads": heads}
        for name, size in sizes.items():
            check_size(name, size)
        grid = _Grid(num_queries, num_keys, _pair(block_size), batch, heads, torch.device(device))
        return _evaluate(rule, grid, grid.all_blocks(), offset=num_keys - num_queries)

    @classmethod
    def from_blocks(
        cls, blocks: Tensor, num_queries: int, num_keys: int, *, block_size: int | tuple[int, int] = 64
    ) -> "BlockLayout":
        """The layout that keeps whole blocks; what order or a window cut off is said where attention is computed.

        Args:
            blocks: bool ``[query_blocks, key_blocks]``, or with ``heads``, or ``batch, heads`` before.
            num_queries: queries, at least 1.
            num_keys: keys, at least 1.
            block_size: queries and keys of a block, one number for both or a pair; 64.

        Raises:
            TypeError: if the blocks are not a boolean tensor or a size is not an integer.
            ValueError: if there are not as many blocks as the sizes say.
        """
        if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool:
            got = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
            raise TypeError(f"blocks must be a boolean tensor, got {got}")
        grid, blocks = _grid_of("blocks", blocks, num_queries, num_keys, block_size)
        entries = blocks.flatten().nonzero()[:, 0]
        whole = torch.full_like(entries, -1)
        return grid.layout(entries, whole, entries.new_empty(0, *grid.block_size, dtype=torch.bool))

    @classmethod
    def from_scores(
        cls,
        scores: Tensor,
        num_queries: int,
        num_keys: int,
        *,
        block_size: int | tuple[int, int] = 64,
        top_k: int | None = None,
        top_p: float | None = None,
        always: Tensor | None = None,
        eligible: Tensor | None = None,
    ) -> "BlockLayout":
        """The layout that keeps the best-scored key blocks of every query block, whole.

        Exactly one of ``top_k`` and ``top_p`` is given. Blocks that are always kept are taken first and count.

        Args:
            scores: ``[query_blocks, key_blocks]``, or with ``heads``, or ``batch, heads`` before; no NaN.
            num_queries: queries, at least 1.
            num_keys: keys, at least 1.
            block_size: queries and keys of a block, one number for both or a pair; 64.
            top_k: blocks to keep per row, at least 1; of equal scores the first.
            top_p: keep the fewest blocks whose scores, which must not be negative, sum to this share of the row's
                eligible sum, in (0, 1].
            always: bool, broadcast to the scores: eligible blocks kept whatever their score, e.g. sinks or the own.
            eligible: bool, broadcast to the scores: blocks that may be kept at all, e.g. the causal ones; None for all.

        Raises:
            TypeError: if an argument has another type or dtype than stated.
            ValueError: if shapes disagree, a number is out of its range, or both or neither of the two is given.
        """
        if not isinstance(scores, Tensor) or not scores.dtype.is_floating_point:
            got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"scores must be a floating-point tensor, got {got}")
        if (top_k is None) == (top_p is None):
            raise ValueError(f"top_k or top_p must be given, and not both, got {top_k} and {top_p}")
        if scores.isnan().any():
            raise ValueError("scores must not be NaN, got NaN")
        allowed = _broadcast("eligible", eligible, scores, missing=True)
        first = _broadcast("always", always, scores, missing=False) & allowed
        rank = scores.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        # Sorting again by class, stably, puts what is always kept first and what may not be kept last.
        group = (2 - allowed.to(torch.int8) - first.to(torch.int8)).gather(-1, rank)
        rank = rank.gather(-1, group.argsort(dim=-1, stable=True))
        if top_k is not None:
            check_size("top_k", top_k)
            kept = torch.arange(scores.shape[-1], device=scores.device) < top_k
        else:
            kept = _fewest_with_share(scores.masked_fill(~allowed, 0).gather(-1, rank), top_p)
        blocks = torch.zeros_like(allowed).scatter(-1, rank, kept.expand_as(rank))
        return cls.from_blocks((blocks & allowed) | first, num_queries, num_keys, block_size=block_size)

    @classmethod
    def from_block_mask(cls, block_mask: "BlockMask") -> "BlockLayout":
        """The layout of a FlexAttention ``BlockMask``, whose ``mask_mod`` is asked about its partial blocks.

        Args:
            block_mask: its ``mask_mod`` must serve index tensors that broadcast, as those without branches do.
        """
        num_queries, num_keys = block_mask.seq_lengths
        batch, heads, _ = block_mask.kv_num_blocks.shape
        size = _pair(block_mask.BLOCK_SIZE)
        grid = _Grid(num_queries, num_keys, size, batch, heads, block_mask.kv_num_blocks.device)
        partial = _spread(block_mask.kv_num_blocks, block_mask.kv_indices, grid)
        whole = torch.zeros_like(partial)
        if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
            whole = _spread(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, grid)
        # FlexAttention counts queries from 0 whatever the number of keys.
        of_rule = _evaluate(block_mask.mask_mod, grid, partial & ~whole, offset=0)
        tiles = of_rule._tile_grid().flatten().to(torch.int64).masked_fill(whole, -1)
        entries = (tiles > -2).nonzero()[:, 0]
        return grid.layout(entries, tiles[entries], of_rule.tiles)

    def to_block_mask(self) -> "BlockMask":
        """The same as a FlexAttention ``BlockMask``, whose batch and heads are the layout's."""
        from torch.nn.attention.flex_attention import BlockMask

        grid, tiles, (rows, columns) = self._tile_grid(), self.tiles, self.block_size
        partial, whole = _flex_lists(grid >= 0), _flex_lists(grid == -1)
        if not len(tiles):
            tiles = tiles.new_zeros(1, rows, columns)
        several_rows, several_heads = self.batch > 1, self.heads > 1

        def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            batch, head = (batch if several_rows else batch * 0), (head if several_heads else head * 0)
            tile = grid[batch, head, query // rows, key // columns]
            return (tile == -1) | ((tile >= 0) & tiles[tile.clamp(min=0), query % rows, key % columns])

        return BlockMask.from_kv_blocks(
            *partial, *whole, self.block_size, mask_mod, seq_lengths=(self.num_queries, self.num_keys)
        )

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return self.tiles.device

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Query blocks and key blocks, the ragged ones counted."""
        return -(-self.num_queries // self.block_size[0]), -(-self.num_keys // self.block_size[1])

    def to(self, device: torch.device | str) -> "BlockLayout":
        """The layout on another device."""
        by_query, by_key = (BlockTable(*(x.to(device) for x in table)) for table in (self.by_query, self.by_key))
        return BlockLayout(
            num_queries=self.num_queries,
            num_keys=self.num_keys,
            block_size=self.block_size,
            batch=self.batch,
            heads=self.heads,
            by_query=by_query,
            by_key=by_key,
            tiles=self.tiles.to(device),
        )

    def to_dense_blocks(self, head: int = 0, batch: int = 0) -> Tensor:
        """Which blocks one head keeps, whole or in part, bool ``[query_blocks, key_blocks]``."""
        return self._tile_grid()[batch, head] > -2

    def to_dense(self) -> Tensor:
        """Which pairs are attended, bool ``[batch, heads, queries, keys]``: what a dense mask would be."""
        rows, columns = self.block_size
        grid = self._tile_grid()
        pairs = (grid == -1)[..., None, None].expand(*grid.shape, rows, columns)
        if len(self.tiles):
            pairs = pairs | (self.tiles[grid.clamp(min=0)] & (grid >= 0)[..., None, None])
        pairs = pairs.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return pairs[:, :, : self.num_queries, : self.num_keys]

    def density(self, *, causal: bool = False) -> Density:
        """The fractions of pairs and of blocks that the layout keeps.

        Args:
            causal: count only what causal order lets a query see, on both sides of the fraction.
        """
        grid = _Grid(self.num_queries, self.num_keys, self.block_size, self.batch, self.heads, self.device)
        table, (query_blocks, key_blocks) = self.by_query, self.num_blocks
        entries = torch.arange(len(table.blocks), device=self.device)
        lists = torch.searchsorted(table.offsets, entries, right=True, out_int32=True) - 1
        query_block = lists % query_blocks
        offset = self.num_keys - self.num_queries
        pairs = blocks = 0
        at_once = max(PAIRS_AT_ONCE // (self.block_size[0] * self.block_size[1]), 1)
        for part in entries.split(at_once):
            rows, columns = grid.tokens(query_block[part].long(), table.blocks[part].long())
            kept = (rows < self.num_queries) & (columns < self.num_keys)
            if causal:
                kept = kept & (columns <= rows + offset)
            tile = table.tiles[part].long()
            if len(self.tiles):
                kept = kept & ((tile < 0)[:, None, None] | self.tiles[tile.clamp(min=0)])
            blocks += int(kept.flatten(1).any(1).sum())
            pairs += int(kept.sum())
        position = torch.arange(self.num_queries, device=self.device) + offset + 1
        all_pairs, all_blocks = self.num_queries * self.num_keys, query_blocks * key_blocks
        if causal:
            all_pairs = int(position.clamp(min=0).sum())
            last = position[torch.arange(1, query_blocks + 1).mul(self.block_size[0]).clamp(max=self.num_queries) - 1]
            all_blocks = int(
                (last.clamp(min=0) + self.block_size[1] - 1).div(self.block_size[1], rounding_mode="floor").sum()
            )
        lists_of_rows = self.batch * self.heads
        return Density(pairs / max(all_pairs * lists_of_rows, 1), blocks / max(all_blocks * lists_of_rows, 1))

    def receptive_field(self, hops: int) -> Tensor:
        """Which key blocks reach each query block through at most ``hops`` layers of this layout.

        One hop leads from a query block to the key blocks of its list; the next goes on from those.

        Args:
            hops: layers, at least 1.

        Returns:
            bool ``[batch, heads, blocks, blocks]``, a row per query block.

        Raises:
            TypeError: if hops is not an integer.
            ValueError: if hops is below 1, or queries and keys are not the same tokens in the same blocks.
        """
        check_size("hops", hops)
        if self.num_queries != self.num_keys or self.block_size[0] != self.block_size[1]:
            raise ValueError(
                "receptive_field must have the same tokens and blocks on both axes, got "
                f"{self.num_queries} queries and {self.num_keys} keys in blocks of {self.block_size}"
            )
        edge = (self._tile_grid() > -2).float()
        reached = edge
        for _ in range(hops - 1):
            further = torch.maximum(reached, (reached @ edge).clamp(max=1))
            if torch.equal(further, reached):
                break
            reached = further
        return reached.bool()

    def tables(self) -> tuple[Tensor, ...]:
        """The three tensors of ``by_query``, those of ``by_key`` and the tiles: what a registered operator takes."""
        return *self.by_query, *self.by_key, self.tiles

    def _tile_grid(self) -> Tensor:
        """int32 ``[batch, heads, query_blocks, key_blocks]``: a block's tile, -1 if kept whole, -2 if left out."""
        query_blocks, key_blocks = self.num_blocks
        grid = self.by_query.blocks.new_full((self.batch * self.heads * query_blocks, key_blocks), -2)
        lists = torch.arange(len(grid), device=self.device).repeat_interleave(self.by_query.offsets.diff())
        grid[lists, self.by_query.blocks.long()] = self.by_query.tiles
        return grid.view(self.batch, self.heads, query_blocks, key_blocks)


class _Grid(NamedTuple):
    """All blocks of a map, numbered batch row by batch row, then by head, query block and key block."""

    num_queries: int
    num_keys: int
    block_size: tuple[int, int]
    batch: int
    heads: int
    device: torch.device

    @property
    def num_blocks(self) -> tuple[int, int]:
        return -(-self.num_queries // self.block_size[0]), -(-self.num_keys // self.block_size[1])

    def all_blocks(self) -> Tensor:
        query_blocks, key_blocks = self.num_blocks
        return torch.ones(self.batch * self.heads * query_blocks * key_blocks, dtype=torch.bool, device=self.device)

    def tokens(self, query_block: Tensor, key_block: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``[blocks, rows, 1]`` and keys ``[blocks, 1, columns]`` of some blocks, also beyond the end."""
        rows, columns = (torch.arange(size, device=self.device) for size in self.block_size)
        queries = query_block[:, None, None] * self.block_size[0] + rows[:, None]
        return queries, key_block[:, None, None] * self.block_size[1] + columns

    def layout(self, entries: Tensor, tile: Tensor, tiles: Tensor) -> BlockLayout:
        """The layout of chosen blocks.

        Args:
            entries: int64 numbers of the blocks, increasing.
            tile: int64, for each which of ``tiles`` it keeps, -1 for the whole.
            tiles: bool ``[distinct, *block_size]``.
        """
        query_blocks, key_blocks = self.num_blocks
        by_query, key_block = entries // key_blocks, entries % key_blocks
        by_key = by_query // query_blocks * key_blocks + key_block
        order = by_key.argsort(stable=True)
        lists = self.batch * self.heads
        return BlockLayout(
            num_queries=self.num_queries,
            num_keys=self.num_keys,
            block_size=self.block_size,
            batch=self.batch,
            heads=self.heads,
            by_query=_table(by_query, key_block, tile, lists * query_blocks),
            by_key=_table(by_key[order], by_query[order] % query_blocks, tile[order], lists * key_blocks),
            tiles=tiles,
        )


def _table(lists: Tensor, blocks: Tensor, tiles: Tensor, length: int) -> BlockTable:
    ends = torch.arange(length + 1, device=lists.device)
    return BlockTable(torch.searchsorted(lists, ends, out_int32=True), blocks.to(torch.int32), tiles.to(torch.int32))


def _evaluate(rule: MaskRule, grid: _Grid, candidates: Tensor, *, offset: int) -> BlockLayout:
    """The layout of a rule that holds in the candidate blocks alone, bool ``[all blocks]``."""
    query_blocks, key_blocks = grid.num_blocks
    kept: list[Tensor] = []
    tile_of: list[Tensor] = []
    tiles: list[Tensor] = []
    for entries in _runs(candidates, grid):
        query_block, key_block = entries // key_blocks % query_blocks, entries % key_blocks
        head, batch = (
            entries // (key_blocks * query_blocks) % grid.heads,
            entries // (key_blocks * query_blocks * grid.heads),
        )
        queries, keys = grid.tokens(query_block, key_block)
        inside = (queries < grid.num_queries) & (keys < grid.num_keys)
        # A rule may look positions up in a table that ends with the sequence.
        queries, keys = queries.clamp(max=grid.num_queries - 1) + offset, keys.clamp(max=grid.num_keys - 1)
        attended = rule(batch[:, None, None], head[:, None, None], queries, keys)
        if attended.dtype != torch.bool:
            raise TypeError(f"rule must return bools, got {attended.dtype}")
        attended = attended.expand_as(inside) & inside
        holds = attended.flatten(1).any(1)
        entries, attended, inside = entries[holds], attended[holds], inside[holds]
        partial = (attended != inside).flatten(1).any(1)
        tile = torch.full_like(entries, -1)
        distinct, tile[partial] = _distinct(attended[partial])
        tile[partial] += sum(len(x) for x in tiles)
        kept.append(entries)
        tile_of.append(tile)
        tiles.append(distinct)
    nothing = torch.zeros(0, dtype=torch.int64, device=grid.device)
    distinct, number = _distinct(torch.cat([nothing.new_empty(0, *grid.block_size, dtype=torch.bool), *tiles]))
    tile = torch.cat([nothing, *tile_of])
    tile[tile >= 0] = number[tile[tile >= 0]]
    return grid.layout(torch.cat([nothing, *kept]), tile, distinct)


def _runs(candidates: Tensor, grid: _Grid) -> Iterator[Tensor]:
    """Numbers of candidate blocks, as many at a time as are evaluated together."""
    rows, columns = grid.block_size
    yield from (x for x in candidates.nonzero()[:, 0].split(max(PAIRS_AT_ONCE // (rows * columns), 1)) if len(x))


def _distinct(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of bool ``[tiles, rows, columns]``, and for each tile which of them it is."""
    if not len(tiles):
        return tiles, torch.zeros(0, dtype=torch.int64, device=tiles.device)
    bits = torch.nn.functional.pad(tiles.flatten(1), (0, -tiles[0].numel() % 8)).unflatten(1, (-1, 8))
    packed = (bits * torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=tiles.device)).sum(-1)
    _, number = packed.to(torch.uint8).unique(dim=0, return_inverse=True)
    first = torch.full((int(number.max()) + 1,), len(tiles), device=tiles.device)
    first.scatter_reduce_(0, number, torch.arange(len(tiles), device=tiles.device), "amin")
    return tiles[first], number


def _flex_lists(member: Tensor) -> tuple[Tensor, Tensor]:
    """FlexAttention's lists of bool ``[batch, heads, query_blocks, key_blocks]``: how many, and which first."""
    order = member.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return member.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _spread(counts: Tensor, indices: Tensor, grid: _Grid) -> Tensor:
    """FlexAttention's lists, ``[batch, heads, query_blocks(, key_blocks)]``, as bools over all blocks."""
    query_blocks, key_blocks = grid.num_blocks
    listed = torch.arange(indices.shape[-1], device=grid.device) < counts[..., None]
    member = torch.zeros(*counts.shape, key_blocks + 1, dtype=torch.bool, device=grid.device)
    member.scatter_(-1, indices.long().where(listed, key_blocks), True)
    return member[:, :, :query_blocks, :key_blocks].flatten()


def _fewest_with_share(scores: Tensor, share: float | None) -> Tensor:
    """Which of scores in order of preference are needed until their sum is this share of the whole."""
    check_number("top_p", share)  # type: ignore[arg-type]
    if share is None or not 0 < share <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {share}")
    if (scores < 0).any():
        raise ValueError("scores must not be negative with top_p, got a negative score")
    scores = scores.double()
    before = scores.cumsum(-1) - scores
    return (before < share * scores.sum(-1, keepdim=True)) & (scores > 0)


def _broadcast(name: str, blocks: Tensor | None, scores: Tensor, *, missing: bool) -> Tensor:
    if blocks is None:
        return torch.full_like(scores, missing, dtype=torch.bool)
    if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool:
        got = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
        raise TypeError(f"{name} must be a boolean tensor, got {got}")
    try:
        return blocks.expand_as(scores)
    except RuntimeError:
        raise ValueError(f"{name} must broadcast to scores {list(scores.shape)}, got {list(blocks.shape)}") from None


def _pair(block_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2:
        raise ValueError(f"block_size must be one size or two, got {len(pair)}")
    for size in pair:
        check_size("block_size", size)
    return pair


def _grid_of(
    name: str, blocks: Tensor, num_queries: int, num_keys: int, block_size: int | tuple[int, int]
) -> tuple[_Grid, Tensor]:
    """The grid that a tensor over blocks describes, and the tensor as ``[batch, heads, query_blocks, key_blocks]``."""
    check_size("num_queries", num_queries)
    check_size("num_keys", num_keys)
    size = _pair(block_size)
    expected = [-(-num_queries // size[0]), -(-num_keys // size[1])]
    if not 2 <= blocks.ndim <= 4 or list(blocks.shape[-2:]) != expected or 0 in blocks.shape:
        raise ValueError(
            f"{name} must have shape [(batch, heads,) query_blocks, key_blocks] ending in {expected} for {num_queries} "
            f"queries and {num_keys} keys in blocks of {size}, got {list(blocks.shape)}"
        )
    blocks = blocks[(None,) * (4 - blocks.ndim)]
    return _Grid(num_queries, num_keys, size, blocks.shape[0], blocks.shape[1], blocks.device), blocks
