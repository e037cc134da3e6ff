"""What must hold of the observe operators by mathematics, and at the edges of their domain."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from attn.core_kernels.counting import peak_memory
from attn.core_kernels.observe import softmax_map
from attn.core_kernels.observe.softmax_map import tiles
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")

everywhere = pytest.mark.parametrize("impl", ["reference", "torch"])


def draw(queries=9, keys=9, *, batch=2, heads=4, key_heads=2, head_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries, head_dim), (batch, key_heads, keys, head_dim), (batch, key_heads, keys, head_dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def read_all(query, key, value, impl="torch", **rule):
    """Every operator's result in one flat list."""
    places = torch.arange(key.shape[2]) // 2
    return [
        *softmax_map.attention_with_lse(query, key, value, impl=impl, **rule),
        *softmax_map.attention_with_lse(query, key, value[..., :3], impl=impl, **rule),
        softmax_map.key_mass(query, key, impl=impl, **rule),
        *softmax_map.key_moments(query, key, impl=impl, **rule),
        softmax_map.suffix_key_mass(query, key, block_size=4, impl=impl, **rule),
        *softmax_map.row_stats(query, key, impl=impl, **rule),
        softmax_map.submap(query, key, impl=impl, **rule),
        softmax_map.mean_map(query, key, impl=impl, **rule),
        *softmax_map.tile_stats(query, key, block_size=4, eps=0.1, impl=impl, **rule),
        softmax_map.mass_by_distance(query, key, (0, 2), places=places, impl=impl, **rule),
        softmax_map.logit_by_distance(query, key, (0, 2), places=places, impl=impl, **rule),
    ]


def assert_all_close(actual, expected, **tolerance):
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)


@given(
    queries=st.integers(1, 20),
    keys=st.integers(1, 20),
    groups=st.sampled_from([(1, 1), (3, 1), (4, 2), (2, 2)]),
    batch=st.integers(0, 3),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 25),
    masked=st.none() | st.integers(0, 100),
    entries=st.integers(1, 200),
    rows=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_the_blockwise_form_equals_the_reference(queries, keys, groups, batch, causal, window, masked, entries, rows):
    query, key, value = draw(queries, max(queries, keys), batch=batch, heads=groups[0], key_heads=groups[1])
    rule = {"causal": causal, "window": window, "key_mask": None}
    if masked is not None:
        rule["key_mask"] = torch.rand(batch, key.shape[2], generator=torch.Generator().manual_seed(masked)) > 0.4
    expected = read_all(query, key, value, "reference", **rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ENTRIES", entries)
        patch.setattr(tiles, "FEWEST_ROWS", 1)
        patch.setattr(tiles, "MOST_ROWS", rows)
        assert_all_close(read_all(query, key, value, **rule), expected)


@everywhere
@pytest.mark.parametrize("size", [{"batch": 0}, {"queries": 0}])
def test_nothing_in_gives_nothing_out(size, impl):
    query, key, value = draw(**size)
    results = read_all(query, key, value, impl)
    full = read_all(*draw())
    for result, expected in zip(results, full, strict=True):
        assert result.dtype == expected.dtype
        assert result.ndim == expected.ndim
    assert softmax_map.key_mass(query, key, impl=impl).shape == (query.shape[0], 4, 9)
    assert not softmax_map.key_mass(query, key, impl=impl).any()


@everywhere
def test_a_query_that_sees_no_key_is_zero_everywhere(impl):
    query, key, value = draw(dtype=torch.float32)
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[0, :3] = False  # with causal order the first three rows of the first sample see nothing
    rule = {"causal": True, "key_mask": key_mask, "impl": impl}
    for value_dim in (8, 3):
        out, lse = softmax_map.attention_with_lse(query, key, value[..., :value_dim], **rule)
        assert not out[0, :, :3].any()
        assert (lse[0, :, :3] == -math.inf).all()
        assert lse[0, :, 3:].isfinite().all()
    stats = softmax_map.row_stats(query, key, **rule)
    assert (stats.lse[0, :, :3] == -math.inf).all()
    assert (stats.max[0, :, :3] == -math.inf).all()
    assert (stats.argmax[0, :, :3] == -1).all()
    assert not stats.entropy[0, :, :3].any()
    alone = softmax_map.key_mass(query[:, :, :3], key, causal=False, key_mask=torch.zeros_like(key_mask), impl=impl)
    assert not alone.any()
    assert not softmax_map.submap(query, key, **rule)[0, :, :3].any()
    assert not softmax_map.mass_by_distance(query, key, (0,), **rule)[0, :, :3].any()


@everywhere
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_visible_key_gets_everything(dtype, impl):
    query, key, value = draw(dtype=dtype)
    rule = {"window": 1, "causal": True, "impl": impl}
    out, lse = softmax_map.attention_with_lse(query, key, value, **rule)
    assert torch.equal(out, value.repeat_interleave(2, 1))
    stats = softmax_map.row_stats(query, key, **rule)
    assert torch.equal(stats.lse, stats.max)
    torch.testing.assert_close(stats.lse, lse)
    assert not stats.entropy.any()
    assert (stats.argmax == torch.arange(9)).all()
    mass = softmax_map.key_mass(query, key, **rule)
    assert torch.equal(mass, torch.ones_like(mass))


@everywhere
@pytest.mark.parametrize("magnitude", [1e4, 1e-30])
def test_extreme_scores_neither_overflow_nor_vanish(magnitude, impl):
    query, key, value = draw(dtype=torch.float32)
    query = query * magnitude
    for result in read_all(query, key, value, impl, scale=1.0):
        assert not result.isnan().any()
    exact = read_all(query.double(), key.double(), value.double(), "reference", scale=1.0)
    stats, expected = softmax_map.row_stats(query, key, scale=1.0, impl=impl), softmax_map.RowStats(*exact[9:13])
    torch.testing.assert_close(stats.lse, expected.lse, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert torch.equal(stats.argmax, expected.argmax)
    assert (stats.entropy >= 0).all()
    torch.testing.assert_close(
        softmax_map.submap(query, key, scale=1.0, impl=impl).sum(-1), torch.ones(2, 4, 9), rtol=1e-5, atol=0
    )


@everywhere
@pytest.mark.parametrize("rule", [{}, {"causal": True}, {"causal": True, "window": 3}], ids=str)
def test_rows_sum_to_one_so_that_mass_is_conserved(rule, impl):
    query, key, _ = draw(7, 9)
    rows = torch.ones(2, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(softmax_map.key_mass(query, key, impl=impl, **rule).sum(-1), rows.sum(-1))
    torch.testing.assert_close(softmax_map.submap(query, key, impl=impl, **rule).sum(-1), rows)
    torch.testing.assert_close(softmax_map.mass_by_distance(query, key, (0, 1, 2), impl=impl, **rule).sum(-1), rows)
    stats = softmax_map.tile_stats(query, key, block_size=4, eps=1.0, impl=impl, **rule)
    torch.testing.assert_close(stats.sum.sum((2, 3)), rows.sum(-1))
    assert (stats.below <= stats.visible).all()


@everywhere
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_even_if_it_is_not_a_number(side, impl):
    query, key, value = draw()
    expected = read_all(query, key, value, impl)
    garbage = torch.full((2, 2, 4, 8), math.nan, dtype=torch.float64)
    order = (lambda *x: x) if side == "right" else (lambda *x: x[::-1])
    padded_key, padded_value = (torch.cat(order(x, garbage), 2) for x in (key, value))
    key_mask = torch.cat(order(torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)), 1)
    kept = slice(0, 9) if side == "right" else slice(4, 13)
    rule = {"key_mask": key_mask, "impl": impl}
    out, lse = softmax_map.attention_with_lse(query, padded_key, padded_value, **rule)
    torch.testing.assert_close((out, lse), (expected[0], expected[1]))
    mass = softmax_map.key_mass(query, padded_key, **rule)
    torch.testing.assert_close(mass[..., kept], softmax_map.key_mass(query, key, impl=impl))
    assert mass.sum() == mass[..., kept].sum()
    torch.testing.assert_close(
        softmax_map.row_stats(query, padded_key, **rule).entropy, softmax_map.row_stats(query, key, impl=impl).entropy
    )
    torch.testing.assert_close(
        softmax_map.mean_map(query, padded_key, **rule)[..., kept], softmax_map.mean_map(query, key)
    )


def test_gradients_at_padding_are_zero_even_if_it_is_not_a_number():
    query, key, value = draw()
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[1, 5:] = False
    key[1, :, 5:], value[1, :, 5:] = math.nan, math.nan
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out, lse = softmax_map.attention_with_lse(*leaves, key_mask=key_mask)
    mapped = softmax_map.submap(query, key, key_mask=key_mask)
    grads = torch.autograd.grad(out.sum() + lse.sum() + mapped.square().sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][1, :, 5:].any()
    assert not grads[2][1, :, 5:].any()


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (0, 2, 1, 3), (3, 0, 2, 1)], ids=str)
def test_strides_do_not_matter(order):
    inputs = draw()
    back = [order.index(axis) for axis in range(4)]
    strided = [x.permute(order).contiguous().permute(back) for x in inputs]
    assert_all_close(read_all(*strided, causal=True), read_all(*inputs, causal=True))
    shared = [x[:1, :1].expand_as(x) for x in inputs]
    assert_all_close(read_all(*shared), read_all(*(x.contiguous() for x in shared)))


def test_later_tokens_do_not_reach_earlier_rows():
    query, key, value = draw()
    changed = [torch.cat([x[:, :, :6], 1e3 * x[:, :, 6:]], 2) for x in (query, key, value)]
    for read in (
        lambda q, k, v: softmax_map.attention_with_lse(q, k, v, causal=True),
        lambda q, k, v: softmax_map.row_stats(q, k, causal=True),
        lambda q, k, v: (
            softmax_map.submap(q, k, causal=True),
            softmax_map.mass_by_distance(q, k, (0, 2), causal=True),
        ),
    ):
        for before, after in zip(read(query, key, value), read(*changed), strict=True):
            torch.testing.assert_close(after[:, :, :6], before[:, :, :6], rtol=1e-12, atol=0)


def test_samples_and_heads_do_not_mix():
    inputs = draw(batch=3)
    rule = {"causal": True, "key_mask": torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) > 0.3}
    together = read_all(*inputs, **rule)
    order = [2, 0, 1]
    shuffled = read_all(*(x[order] for x in inputs), causal=True, key_mask=rule["key_mask"][order])
    assert_all_close(shuffled, [x[order] for x in together], rtol=1e-12, atol=1e-14)
    for b in range(3):
        alone = read_all(*(x[b : b + 1] for x in inputs), causal=True, key_mask=rule["key_mask"][b : b + 1])
        assert_all_close(alone, [x[b : b + 1] for x in together], rtol=1e-12, atol=1e-14)


def test_splitting_the_queries_splits_the_sums():
    query, key, _ = draw(7, 9)
    whole = softmax_map.key_mass(query, key, causal=True)
    # the last query is level with the last key, so earlier queries see a prefix of the keys
    first = torch.nn.functional.pad(softmax_map.key_mass(query[:, :, :3], key[:, :, :5], causal=True), (0, 4))
    torch.testing.assert_close(first + softmax_map.key_mass(query[:, :, 3:], key, causal=True), whole)
    suffix = softmax_map.suffix_key_mass(query, key, block_size=3, causal=True)
    torch.testing.assert_close(suffix[:, :, 0], whole)
    torch.testing.assert_close(suffix[:, :, 1], softmax_map.key_mass(query[:, :, 3:], key, causal=True))


def test_splitting_the_keys_into_spans_splits_the_softmax():
    query, key, _ = draw()
    whole = softmax_map.row_stats(query, key, causal=True)
    parts = [softmax_map.row_stats(query, key, causal=True, span=span) for span in [(0, 4), (4, 9)]]
    torch.testing.assert_close(torch.logaddexp(parts[0].lse, parts[1].lse), whole.lse)
    torch.testing.assert_close(torch.maximum(parts[0].max, parts[1].max), whole.max)
    share = [(part.lse - whole.lse).exp() for part in parts]
    entropy = sum(s * part.entropy - torch.special.xlogy(s, s) for s, part in zip(share, parts, strict=True))
    torch.testing.assert_close(entropy, whole.entropy)


def test_equal_heads_of_a_group_and_repeated_keys_agree():
    query, key, value = draw()
    grouped = read_all(query, key, value, causal=True)
    repeated = read_all(query, *(x.repeat_interleave(2, 1) for x in (key, value)), causal=True)
    assert_all_close(grouped, repeated, rtol=1e-12, atol=1e-14)


def test_ties_go_to_the_first_key():
    query, key, _ = draw()
    assert not softmax_map.row_stats(torch.zeros_like(query), key).argmax.any()
    assert (softmax_map.row_stats(torch.zeros_like(query), key, span=(3, 9)).argmax == 3).all()


def test_the_same_call_gives_the_same_bits():
    inputs = draw(50, 50, dtype=torch.float32)
    for first, second in zip(read_all(*inputs, causal=True), read_all(*inputs, causal=True), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_lse_of_two_key_sets_merges_their_outputs():
    query, key, value = draw()
    whole, lse = softmax_map.attention_with_lse(query, key, value)
    parts = [softmax_map.attention_with_lse(query, key[:, :, s], value[:, :, s]) for s in (slice(0, 4), slice(4, 9))]
    merged = sum(out * (part - lse).exp()[..., None] for out, part in parts)
    torch.testing.assert_close(merged, whole)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_lse_equal_those_of_torch(dtype, masked):
    query, key, value = draw(16, 16, dtype=dtype, head_dim=16)
    key_mask = torch.ones(2, 16, dtype=torch.bool)
    if masked:
        key_mask[0, 12:] = False
    out, lse = softmax_map.attention_with_lse(query, key, value, window=4, causal=True, key_mask=key_mask)
    visible = torch.ones(16, 16).tril().bool() & ~torch.ones(16, 16).tril(-4).bool() & key_mask[:, None, None]
    by_sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=True)
    assert_close(out[visible.any(-1).expand(2, 4, 16)], by_sdpa.double()[visible.any(-1).expand(2, 4, 16)], length=48)

    def score(s, b, h, i, j):
        return torch.where((j <= i) & (i - j < 4) & key_mask[b, j], s, -torch.inf)

    flex_out, aux = flex_attention(query, key, value, score_mod=score, enable_gqa=True, return_aux=AuxRequest(lse=True))
    torch.testing.assert_close(out, flex_out.nan_to_num(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, aux.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [{}, {"causal": True}, {"causal": True, "window": 2}, {"key_mask": torch.tensor([[True, False, True, True]])}],
)
def test_gradients_match_finite_differences(rule, monkeypatch):
    monkeypatch.setattr(tiles, "MOST_ROWS", 2)
    leaves = [x.requires_grad_() for x in draw(3, 4, batch=1, heads=2, key_heads=1, head_dim=3)]
    query, key, value = leaves
    rows, columns = torch.tensor([2, 0, 2]), torch.tensor([[3, 1, 1]])
    check = functools.partial(torch.autograd.gradcheck, fast_mode=False)
    assert check(lambda q, k: softmax_map.mean_map(q, k, **rule), (query, key))
    assert check(lambda q, k: softmax_map.submap(q, k, rows, columns, **rule), (query, key))
    assert check(lambda q, k: softmax_map.submap(q, k, None, columns, reduce="mean_heads", **rule), (query, key))
    assert check(lambda q, k: softmax_map.submap(q, k, rows, **rule), (query, key))

    def finite(*inputs):
        out, lse = softmax_map.attention_with_lse(*inputs, **rule)
        return out, lse.masked_fill(lse == -math.inf, 0)

    assert check(finite, (query, key, value))
    assert check(lambda *inputs: finite(*inputs)[0], (query, key, value))


@pytest.mark.parametrize("rule", [{}, {"causal": True}], ids=str)
def test_memory_is_far_below_the_map(rule):
    query, key, _ = draw(1024, 1024, batch=1, dtype=torch.float32)
    entries = 4 * 1024**2 * 4  # bytes of the map of four heads
    for read in (
        lambda: softmax_map.attention_with_lse(query, key, key, **rule),
        lambda: softmax_map.attention_with_lse(query, key, key[..., :3], **rule),
        lambda: softmax_map.key_moments(query, key, **rule),
        lambda: softmax_map.suffix_key_mass(query, key, block_size=128, **rule),
        lambda: softmax_map.row_stats(query, key, **rule),
        lambda: softmax_map.submap(query, key, torch.arange(3), torch.arange(3), **rule),
        lambda: softmax_map.tile_stats(query, key, block_size=64, eps=0.1, **rule),
        lambda: softmax_map.mass_by_distance(query, key, (0, 8), **rule),
        lambda: softmax_map.logit_by_distance(query, key, (0, 8), **rule),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "TILE_ENTRIES", 2**14)
            assert peak_memory(read) < entries / 16
    assert peak_memory(lambda: softmax_map.key_mass(query, key, impl="reference", **rule)) > entries
