"""BlockLayout against what it was made from, pair by pair."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from attn.core_kernels import BlockLayout
from attn.core_kernels.sparsify import block_layout, mask_rules

pytestmark = pytest.mark.usefixtures("poisoned_memory")
quick = settings(max_examples=40, deadline=None)

sizes = st.integers(1, 20)


@st.composite
def masks(draw):
    """Bool ``[batch, heads, queries, keys]`` of clumps and single pairs, and a block size."""
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(sizes), draw(sizes)
    block_size = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    coarse = torch.rand(*shape[:2], 20, 20, generator=generator) < 0.5
    coarse = coarse.repeat_interleave(draw(st.integers(1, 7)), 2).repeat_interleave(draw(st.integers(1, 7)), 3)
    mask = coarse[:, :, : shape[2], : shape[3]]
    if draw(st.booleans()):
        mask = mask & (torch.rand(shape, generator=generator) < 0.9)
    return mask, block_size


def rule_of(mask):
    offset = mask.shape[3] - mask.shape[2]
    return lambda batch, head, query, key: mask[batch, head, query - offset, key]


def layout_of(mask, block_size):
    batch, heads, queries, keys = mask.shape
    return BlockLayout.from_rule(rule_of(mask), queries, keys, block_size=block_size, batch=batch, heads=heads)


def blocks_of(mask, block_size):
    """Which blocks hold a pair, as loops."""
    rows, columns = block_size
    grid = [-(-mask.shape[2] // rows), -(-mask.shape[3] // columns)]
    held = torch.zeros(*mask.shape[:2], *grid, dtype=torch.bool)
    for b, h, i, j in mask.nonzero().tolist():
        held[b, h, i // rows, j // columns] = True
    return held


@quick
@given(masks())
def test_a_rule_is_kept_pair_by_pair(given_mask):
    mask, block_size = given_mask
    layout = layout_of(mask, block_size)
    assert torch.equal(layout.to_dense(), mask)
    for b in range(mask.shape[0]):
        for h in range(mask.shape[1]):
            assert torch.equal(layout.to_dense_blocks(h, b), blocks_of(mask, block_size)[b, h])


@quick
@given(masks())
def test_tables_list_the_blocks_in_order_and_by_key_is_by_query_transposed(given_mask):
    mask, block_size = given_mask
    layout = layout_of(mask, block_size)
    held = blocks_of(mask, block_size)
    for table, expected in ((layout.by_query, held), (layout.by_key, held.mT)):
        offsets = table.offsets.tolist()
        lists = [table.blocks[start:stop].tolist() for start, stop in pairwise(offsets)]
        assert lists == [row.nonzero()[:, 0].tolist() for row in expected.flatten(0, 2)]
    tile = {(b, i, j): t for (b, i, j), t in entries(layout.by_query, layout.num_blocks[0])}
    assert {(b, i, j): t for (b, j, i), t in entries(layout.by_key, layout.num_blocks[1])} == tile


def entries(table, per_head):
    """((head, own block, listed block), tile) of every entry."""
    for number, (start, stop) in enumerate(pairwise(table.offsets.tolist())):
        for entry in range(start, stop):
            yield (number // per_head, number % per_head, int(table.blocks[entry])), int(table.tiles[entry])


@quick
@given(masks())
def test_a_whole_block_has_no_tile_and_no_two_tiles_are_equal(given_mask):
    mask, block_size = given_mask
    layout = layout_of(mask, block_size)
    rows, columns = block_size
    for (head, i, j), tile in entries(layout.by_query, layout.num_blocks[0]):
        block = mask.flatten(0, 1)[head, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        assert (tile == -1) == bool(block.all())
    assert len(layout.tiles.flatten(1).unique(dim=0)) == len(layout.tiles)


@quick
@given(masks(), st.booleans())
def test_density_counts_pairs_and_blocks(given_mask, causal):
    mask, block_size = given_mask
    seen = torch.ones(mask.shape[2:], dtype=torch.bool)
    if causal:
        seen = seen.tril(mask.shape[3] - mask.shape[2])
    density = layout_of(mask, block_size).density(causal=causal)
    there = seen.expand_as(mask)
    assert density.pairs == pytest.approx(int((mask & seen).sum()) / max(int(there.sum()), 1))
    held, possible = (int(blocks_of(x, block_size).sum()) for x in (mask & seen, there))
    assert density.blocks == pytest.approx(held / max(possible, 1))


def test_a_rule_evaluated_in_parts_is_the_same(monkeypatch):
    mask = torch.rand(1, 2, 19, 23, generator=torch.Generator().manual_seed(0)) < 0.8
    mask[:, :, :8, 4:12] = True
    whole = layout_of(mask, (4, 4))
    monkeypatch.setattr(block_layout, "PAIRS_AT_ONCE", 50)
    parts = layout_of(mask, (4, 4))
    assert all(map(torch.equal, whole.tables(), parts.tables()))
    assert parts.density() == whole.density()


@quick
@given(masks())
def test_block_masks_come_back_as_they_were(given_mask):
    layout = layout_of(*given_mask)
    back = BlockLayout.from_block_mask(layout.to_block_mask())
    assert (back.batch, back.heads, back.block_size) == (layout.batch, layout.heads, layout.block_size)
    assert all(map(torch.equal, back.tables(), layout.tables()))


@pytest.mark.parametrize("lengths", [(128, 128), (100, 75)])
def test_block_masks_of_flex_attention_are_read(lengths):
    def near(_b, h, i, j):
        return ((i - j).abs() < 20 * (h + 1)) & (i >= j)

    flex = create_block_mask(near, 1, 2, *lengths, device="cpu", BLOCK_SIZE=16)
    expected = [
        [[abs(i - j) < 20 * (h + 1) and i >= j for j in range(lengths[1])] for i in range(lengths[0])] for h in (0, 1)
    ]
    assert torch.equal(BlockLayout.from_block_mask(flex).to_dense()[0], torch.tensor(expected))


def test_blocks_are_kept_whole():
    blocks = torch.tensor([[True, False, True], [False, False, True]])
    layout = BlockLayout.from_blocks(blocks, 7, 11, block_size=(4, 4))
    expected = [[bool(blocks[i // 4, j // 4]) for j in range(11)] for i in range(7)]
    assert torch.equal(layout.to_dense()[0, 0], torch.tensor(expected))
    assert not len(layout.tiles)
    assert layout.density() == (sum(map(sum, expected)) / 77, 0.5)


# --- ready rules


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (mask_rules.causal, lambda i, j: j <= i),
        (mask_rules.sliding_window(3), lambda i, j: i - 3 < j <= i),
        (mask_rules.sliding_window(3, causal=False), lambda i, j: abs(i - j) <= 2),
        (mask_rules.sinks_and_window(2, 3), lambda i, j: j <= i and (j < 2 or i - j < 3)),
        (mask_rules.sinks_and_window(2, 1, causal=False), lambda i, j: j < 2 or i == j),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (3, 9), (9, 5)])
def test_ready_rules_put_the_last_query_level_with_the_last_key(rule, seen, queries, keys):
    layout = BlockLayout.from_rule(rule, queries, keys, block_size=4)
    expected = [[seen(i + keys - queries, j) for j in range(keys)] for i in range(queries)]
    assert torch.equal(layout.to_dense()[0, 0], torch.tensor(expected))


def test_ready_rules_refuse_sizes_that_are_none():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        mask_rules.sliding_window(0)
    with pytest.raises(ValueError, match="sinks must be at least 1, got -1"):
        mask_rules.sinks_and_window(-1, 2)


# --- scores


def chosen_by_hand(scores, allowed, always, top_k, top_p):
    order = sorted(
        (j for j in range(len(scores)) if allowed[j]), key=lambda j: (not always[j], -scores[j])
    )  # sorted keeps the first of equals first
    kept, total, mass = set(), sum(scores[j] for j in range(len(scores)) if allowed[j]), 0.0
    for rank, j in enumerate(order):
        if top_k is not None and rank >= top_k:
            break
        if top_p is not None and (mass >= top_p * total or scores[j] == 0):  # a zero adds nothing to the share
            continue
        kept.add(j)
        mass += scores[j]
    return kept | {j for j in order if always[j]}


@quick
@given(st.integers(0, 99), st.integers(1, 7), st.booleans())
def test_scores_keep_the_best_blocks(seed, top_k, with_rules):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (2, 3, 5, 6), generator=generator).double()  # with ties and zeros
    always = torch.rand(5, 6, generator=generator) < 0.2 if with_rules else None
    eligible = torch.rand(5, 6, generator=generator) < 0.7 if with_rules else None
    for knob in ({"top_k": top_k}, {"top_p": top_k / 8}):
        layout = BlockLayout.from_scores(scores, 20, 22, block_size=4, always=always, eligible=eligible, **knob)
        for b in range(2):
            for h in range(3):
                for i in range(5):
                    allowed = [True] * 6 if eligible is None else eligible[i].tolist()
                    first = [False] * 6 if always is None else always[i].tolist()
                    row = scores[b, h, i].tolist()
                    expected = chosen_by_hand(row, allowed, first, knob.get("top_k"), knob.get("top_p"))
                    assert set(layout.to_dense_blocks(h, b)[i].nonzero()[:, 0].tolist()) == expected


def test_scores_of_minus_infinity_are_the_last_choice_but_a_choice():
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, -1.0]])
    kept = BlockLayout.from_scores(scores, 1, 16, block_size=(1, 4), top_k=3).to_dense_blocks()
    assert kept.tolist() == [[True, True, False, True]]


# --- receptive field


@quick
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_the_receptive_field_is_what_paths_reach(blocks, hops, seed):
    edges = torch.rand(2, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.3
    field = BlockLayout.from_blocks(edges, blocks * 2, blocks * 2, block_size=2).receptive_field(hops)
    for head in range(2):
        for start in range(blocks):
            reached, frontier = set(), {start}
            for _ in range(hops):
                frontier = {j for i in frontier for j in range(blocks) if edges[head, i, j]}
                reached |= frontier
            assert set(field[0, head, start].nonzero()[:, 0].tolist()) == reached


def power_blocks(blocks, window):
    """PowerAttention's mask over blocks (algorithm 1): window, powers of two, one sink."""
    return torch.tensor(
        [
            [j <= i and (i - j < window or (i - j) & (i - j - 1) == 0 or j == 0) for j in range(blocks)]
            for i in range(blocks)
        ]
    )


@pytest.mark.parametrize(
    ("kept", "counts"),
    [
        (power_blocks(128, 5), [10, 35, 75, 110, 126, 128]),
        (
            torch.ones(128, 128).tril().bool() & (torch.ones(128, 128).triu(-8).bool() | (torch.arange(128) == 0)),
            [10, 18, 26],
        ),
    ],
)
def test_the_receptive_field_of_the_last_of_128_blocks(kept, counts):
    layout = BlockLayout.from_blocks(kept, 128, 128, block_size=1)
    assert [int(layout.receptive_field(hops)[0, 0, -1].sum()) for hops in range(1, len(counts) + 1)] == counts


# --- arguments


def test_a_layout_moves_to_another_device():
    layout = layout_of(torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(), (2, 2)).to("meta")
    assert {x.device.type for x in layout.tables()} == {layout.device.type} == {"meta"}


SCORES = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BlockLayout.from_rule(mask_rules.causal, 0, 4), ValueError, "num_queries must be at least 1, got 0"),
        (lambda: BlockLayout.from_rule(mask_rules.causal, 4, 4, heads=0), ValueError, "heads must be at least 1"),
        (
            lambda: BlockLayout.from_rule(mask_rules.causal, 4, 4, block_size=(2, 2, 2)),
            ValueError,
            "block_size must be one size or two, got 3",
        ),
        (
            lambda: BlockLayout.from_rule(mask_rules.causal, 4, 4, block_size=0),
            ValueError,
            "block_size must be at least",
        ),
        (
            lambda: BlockLayout.from_rule(lambda b, h, i, j: i - j, 4, 4),
            TypeError,
            "rule must return bools, got torch.int64",
        ),
        (lambda: BlockLayout.from_blocks([[True]], 4, 4), TypeError, "blocks must be a boolean tensor, got list"),
        (
            lambda: BlockLayout.from_blocks(SCORES.bool(), 4, 5, block_size=2),
            ValueError,
            r"blocks must have shape .* ending in \[2, 3\] for 4 .* and 5 keys in blocks of \(2, 2\), got \[2, 2\]",
        ),
        (
            lambda: BlockLayout.from_scores(SCORES.int(), 4, 4, top_k=1),
            TypeError,
            "scores must be a floating-point tensor",
        ),
        (lambda: BlockLayout.from_scores(SCORES, 4, 4), ValueError, "top_k or top_p must be given, .* None and None"),
        (lambda: BlockLayout.from_scores(SCORES, 4, 4, top_k=1, top_p=0.5), ValueError, "and not both, got 1 and 0.5"),
        (lambda: BlockLayout.from_scores(SCORES / 0, 4, 4, top_k=1), ValueError, "scores must not be NaN"),
        (lambda: BlockLayout.from_scores(SCORES, 4, 4, top_k=0), ValueError, "top_k must be at least 1, got 0"),
        (lambda: BlockLayout.from_scores(SCORES, 4, 4, top_p=1.5), ValueError, r"top_p must lie in \(0, 1\], got 1.5"),
        (
            lambda: BlockLayout.from_scores(SCORES - 1, 4, 4, top_p=0.5),
            ValueError,
            "scores must not be negative with top_p",
        ),
        (
            lambda: BlockLayout.from_scores(SCORES, 4, 4, top_k=1, always=SCORES),
            TypeError,
            "always must be a boolean tensor, got torch.float32",
        ),
        (
            lambda: BlockLayout.from_scores(SCORES, 4, 4, top_k=1, eligible=torch.ones(3).bool()),
            ValueError,
            r"eligible must broadcast to scores \[2, 2\], got \[3\]",
        ),
        (
            lambda: BlockLayout.from_rule(mask_rules.causal, 4, 6, block_size=2).receptive_field(1),
            ValueError,
            "receptive_field must have the same tokens .* 4 queries and 6 keys",
        ),
        (
            lambda: BlockLayout.from_rule(mask_rules.causal, 4, 4).receptive_field(0),
            ValueError,
            "hops must be at least 1, got 0",
        ),
    ],
)
def test_an_error_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_block_mask_is_for_a_multiple_of_the_layouts_heads():
    layout = BlockLayout.from_blocks(torch.ones(2, 1, 1, dtype=torch.bool), 4, 4, block_size=4)
    assert layout.to_block_mask(6).kv_num_blocks.shape == (1, 6, 1)
    with pytest.raises(ValueError, match="heads must be a multiple of the layout's 2, got 3"):
        layout.to_block_mask(3)
