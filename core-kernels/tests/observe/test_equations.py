"""The observe operators against their equations, as float64 loops over the softmax map."""

import functools
import math
from typing import NamedTuple

import pytest
import torch

from attn.core_kernels.observe import softmax_map
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_tiles")


class Case(NamedTuple):
    queries: int
    keys: int
    heads: int = 2
    key_heads: int = 2
    head_dim: int = 16
    causal: bool = False
    window: int | None = None
    padded: bool = False


CASES = [
    Case(1, 1),
    Case(1, 13, heads=4, key_heads=1, head_dim=40, causal=True),
    Case(13, 1, causal=True),
    Case(7, 7, head_dim=64, causal=True),
    Case(8, 8, heads=4, key_heads=2, head_dim=72, padded=True),
    Case(9, 9, heads=6, key_heads=2, head_dim=80, causal=True, padded=True),
    Case(5, 11, head_dim=96, causal=True, window=4),
    Case(11, 11, head_dim=128, window=2),
    Case(10, 10, heads=3, key_heads=1, head_dim=256, causal=True, window=1, padded=True),
    Case(12, 7, head_dim=16, causal=True, window=3, padded=True),
    Case(6, 12, head_dim=8, window=20),
]
IN_16_BITS = [CASES[2], CASES[5], CASES[6]]

everywhere = pytest.mark.parametrize("impl", ["reference", "torch"])
in_every_case = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for dtype in (torch.float64, torch.float32) for case in CASES]
    + [(case, dtype) for dtype in (torch.bfloat16, torch.float16) for case in IN_16_BITS],
    ids=str,
)


class Problem(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rule: dict
    logits: torch.Tensor  # float64 [batch, heads, queries, keys], -inf where hidden
    map: torch.Tensor

    @property
    def length(self):
        return self.key.shape[2] + self.query.shape[2] + self.query.shape[3]


@functools.cache
def problem(case, dtype, batch=2, value_dim=None):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, case.heads, case.queries, case.head_dim),
        (batch, case.key_heads, case.keys, case.head_dim),
        (batch, case.key_heads, case.keys, value_dim or case.head_dim),
    ]
    query, key, value = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    key_mask = None
    if case.padded:  # the first row is padded on the left, the last sees no key
        key_mask = torch.ones(batch, case.keys, dtype=torch.bool)
        key_mask[0, : case.keys // 2] = False
        key_mask[-1] = False
        key = key.masked_fill(~key_mask[:, None, :, None], math.nan)
        value = value.masked_fill(~key_mask[:, None, :, None], math.nan)
    rule = {"causal": case.causal, "window": case.window, "key_mask": key_mask}
    logits = torch.full((batch, case.heads, case.queries, case.keys), -math.inf, dtype=torch.float64)
    weights = torch.zeros_like(logits)
    for b in range(batch):
        for h in range(case.heads):
            for i in range(case.queries):
                for j in range(case.keys):
                    ahead = j - (i + case.keys - case.queries)
                    hidden = (case.causal and ahead > 0) or (case.window is not None and abs(ahead) >= case.window)
                    if hidden or (key_mask is not None and not key_mask[b, j]):
                        continue
                    of_key = key[b, h // (case.heads // case.key_heads), j].double()
                    logits[b, h, i, j] = torch.dot(query[b, h, i].double(), of_key) / math.sqrt(case.head_dim)
                row = logits[b, h, i].tolist()
                if max(row) > -math.inf:
                    exponentials = [math.exp(s - max(row)) for s in row]
                    weights[b, h, i] = torch.tensor([e / sum(exponentials) for e in exponentials], dtype=torch.float64)
    return Problem(query, key, value, rule, logits, weights)


def lse_of(logits):
    flat = [
        math.log(sum(map(math.exp, row))) if max(row) > -math.inf else -math.inf
        for row in logits.flatten(0, -2).tolist()
    ]
    return torch.tensor(flat, dtype=torch.float64).view(logits.shape[:-1])


@everywhere
@in_every_case
@pytest.mark.parametrize("value_dim", [None, 3])
def test_attention_with_lse_is_the_weighted_value_and_the_log_of_the_summed_exponentials(case, dtype, impl, value_dim):
    p = problem(case, dtype, value_dim=value_dim)
    expected = torch.zeros(*p.query.shape[:3], p.value.shape[3], dtype=torch.float64)
    for h in range(case.heads):
        value = p.value[:, h // (case.heads // case.key_heads)].double()
        for i in range(case.queries):
            for j in range(case.keys):
                weight = p.map[:, h, i, j, None]
                expected[:, h, i] += torch.where(weight > 0, weight * value[:, j], 0)
    out, lse = softmax_map.attention_with_lse(p.query, p.key, p.value, impl=impl, **p.rule)
    assert out.dtype == dtype
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    assert_close(out, expected, length=p.length)
    # torch's kernel for 16-bit formats has an exponential of 20 bits
    assert_close(lse, lse_of(p.logits), length=p.length * 256 if dtype.itemsize == 2 else p.length)


@everywhere
@in_every_case
@pytest.mark.parametrize("given_lse", [False, True])
def test_key_mass_is_the_weighted_column_sum(case, dtype, impl, given_lse):
    p = problem(case, dtype)
    precision = torch.promote_types(dtype, torch.float32)
    lse = lse_of(p.logits).to(precision) if given_lse else None
    generator = torch.Generator().manual_seed(1)
    rows = case.queries
    for shape in [None, (rows,), (1, case.heads, rows), (2, 1, 3, rows), (2, case.heads, 1, rows)]:
        weights = None if shape is None else torch.randn(shape, generator=generator).to(precision)
        full = torch.ones(1, 1, 1, rows) if shape is None else weights
        full = full if full.ndim == 4 else full[:, :, None] if full.ndim == 3 else full.expand(1, 1, 1, -1)
        full = full.double().expand(2, case.heads, -1, -1)
        expected = torch.zeros(2, case.heads, full.shape[2], case.keys, dtype=torch.float64)
        for i in range(rows):
            expected += full[..., i, None] * p.map[:, :, None, i]
        mass = softmax_map.key_mass(p.query, p.key, weights, lse=lse, impl=impl, **p.rule)
        assert mass.dtype == precision
        assert_close(mass, expected if shape and len(shape) == 4 else expected[:, :, 0], length=p.length)


@everywhere
@in_every_case
def test_key_moments_are_mean_and_variance_over_the_rows_that_see_the_key(case, dtype, impl):
    p = problem(case, dtype)
    weights = torch.linspace(0.5, 2, case.queries, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    moments = softmax_map.key_moments(p.query, p.key, weights, impl=impl, **p.rule)
    expected = torch.zeros(3, 2, case.heads, case.keys, dtype=torch.float64)
    mean, variance = torch.full_like(expected[0], math.nan), torch.full_like(expected[0], math.nan)
    for b in range(2):
        for h in range(case.heads):
            for j in range(case.keys):
                seeing = [i for i in range(case.queries) if p.logits[b, h, i, j] > -math.inf]
                u = [weights[i].item() for i in seeing]
                a = [p.map[b, h, i, j].item() for i in seeing]
                sums = [sum(x * y**power for x, y in zip(u, a, strict=True)) for power in range(3)]
                expected[:, b, h, j] = torch.tensor(sums, dtype=torch.float64)
                if seeing:
                    mean[b, h, j] = sums[1] / sums[0]
                    around = [x * (y - sums[1] / sums[0]) ** 2 for x, y in zip(u, a, strict=True)]
                    variance[b, h, j] = sum(around) / sums[0]
    for actual, sums in zip(moments, expected, strict=True):
        assert_close(actual, sums, length=p.length)
    assert torch.equal(moments.mean.isnan(), mean.isnan())
    assert_close(moments.mean.nan_to_num(), mean.nan_to_num(), length=p.length)
    absolute = 4e-7 if dtype != torch.float64 else 1e-15  # a difference of squares of at most 1
    torch.testing.assert_close(moments.variance, variance, rtol=1e-4, atol=absolute, check_dtype=False, equal_nan=True)


@everywhere
@in_every_case
@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_suffix_key_mass_sums_the_rows_from_each_block_on(case, dtype, impl, block_size):
    p = problem(case, dtype)
    starts = range(0, case.queries, block_size)
    expected = torch.stack([sum(p.map[:, :, i] for i in range(s, case.queries)) for s in starts], 2)
    lse = lse_of(p.logits).to(torch.promote_types(dtype, torch.float32))
    for given in (None, lse):
        mass = softmax_map.suffix_key_mass(p.query, p.key, block_size=block_size, lse=given, impl=impl, **p.rule)
        assert_close(mass, expected, length=p.length)
    mean = softmax_map.suffix_key_mass(p.query, p.key, block_size=block_size, reduce="mean_heads", impl=impl, **p.rule)
    assert_close(mean, sum(expected.unbind(1)) / case.heads, length=p.length)


@everywhere
@in_every_case
@pytest.mark.parametrize("span", [None, (0, 1), (2, 6)])
def test_row_stats_are_those_of_the_row_or_of_the_span_alone(case, dtype, impl, span):
    if span and span[1] > case.keys:
        pytest.skip("the span must lie within the keys")
    p = problem(case, dtype)
    start, stop = span or (0, case.keys)
    stats = softmax_map.row_stats(p.query, p.key, span=span, impl=impl, **p.rule)
    logits = p.logits[..., start:stop]
    expected = lse_of(logits)
    assert_close(stats.lse, expected, length=p.length)
    assert stats.argmax.dtype == torch.int64
    for place in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        b, h, i = place
        row, lse = logits[b, h, i].tolist(), expected[b, h, i].item()
        if lse == -math.inf:
            assert stats.max[b, h, i] == -math.inf
            assert stats.argmax[b, h, i] == -1
            assert stats.entropy[b, h, i] == 0
        else:
            entropy = sum(-math.exp(s - lse) * (s - lse) for s in row if s > -math.inf)
            assert stats.max[b, h, i].item() == pytest.approx(max(row), rel=1e-5, abs=1e-5)
            assert stats.argmax[b, h, i] == start + row.index(max(row))
            assert stats.entropy[b, h, i].item() == pytest.approx(entropy, rel=1e-5, abs=1e-5)


@everywhere
@in_every_case
@pytest.mark.parametrize("reduce", ["none", "mean_heads"])
def test_submap_is_the_whole_map_at_rows_and_columns(case, dtype, impl, reduce):
    p = problem(case, dtype)
    generator = torch.Generator().manual_seed(2)
    shared = torch.randint(case.queries, (4,), generator=generator), torch.randint(case.keys, (5,), generator=generator)
    own = (
        torch.randint(case.queries, (2, 3), generator=generator),
        torch.randint(case.keys, (2, 6), generator=generator),
    )
    for rows, columns in [(None, None), shared, own, (shared[0], None), (None, own[1]), (own[0], shared[1])]:
        actual = softmax_map.submap(p.query, p.key, rows, columns, reduce=reduce, impl=impl, **p.rule)
        picked = []
        for b in range(2):
            i = range(case.queries) if rows is None else rows.expand(2, -1)[b].tolist()
            j = range(case.keys) if columns is None else columns.expand(2, -1)[b].tolist()
            picked.append(torch.stack([torch.stack([p.map[b, :, x, y] for y in j], -1) for x in i], -2))
        expected = torch.stack(picked)
        assert_close(actual, expected if reduce == "none" else sum(expected.unbind(1)) / case.heads, length=p.length)


@everywhere
@in_every_case
def test_mean_map_is_the_mean_over_heads(case, dtype, impl):
    p = problem(case, dtype)
    actual = softmax_map.mean_map(p.query, p.key, impl=impl, **p.rule)
    assert_close(actual, sum(p.map[:, h] for h in range(case.heads)) / case.heads, length=p.length)


@everywhere
@in_every_case
@pytest.mark.parametrize("block_size", [1, 4, (2, 5), (5, 3), 100])
def test_tile_stats_are_those_of_each_tile(case, dtype, impl, block_size):
    p = problem(case, dtype)
    eps = 0.0837  # no probability of the cases is within rounding of it
    lse = lse_of(p.logits).to(torch.promote_types(dtype, torch.float32))
    height, width = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    expected = [[[], [], [], []] for _ in range(math.ceil(case.queries / height))]
    for row, fields in enumerate(expected):
        for column in range(math.ceil(case.keys / width)):
            window = (..., slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            tile, seen = p.map[window].flatten(2), p.logits[window].flatten(2) > -math.inf
            values = tile.sum(-1), tile.amax(-1), ((tile < eps) & seen).sum(-1), seen.sum(-1)
            for field, value in zip(fields, values, strict=True):
                field.append(value)
    total, highest, below, visible = (torch.stack([torch.stack(row[f], -1) for row in expected], -2) for f in range(4))
    for given in (None, lse):
        stats = softmax_map.tile_stats(p.query, p.key, block_size=block_size, eps=eps, lse=given, impl=impl, **p.rule)
        assert_close(stats.sum, total, length=p.length)
        assert_close(stats.max, highest, length=p.length)
        assert torch.equal(stats.below, below)
        assert torch.equal(stats.visible, visible)


@everywhere
@in_every_case
@pytest.mark.parametrize("edges", [(0,), (0, 1, 3), (2, 5)])
def test_mass_and_logit_by_distance_sum_and_average_over_the_pairs_of_a_band(case, dtype, impl, edges):
    p = problem(case, dtype)
    places = [None] if case.queries > case.keys else [None, torch.arange(case.keys) // 3 - 1]
    for of_key in places:
        mass = torch.zeros(*p.query.shape[:3], len(edges), dtype=torch.float64)
        pairs = [[[] for _ in edges] for _ in range(2 * case.heads)]
        for i in range(case.queries):
            for j in range(case.keys):
                x, y = i + case.keys - case.queries, j
                if of_key is not None:
                    x, y = of_key[x].item(), of_key[y].item()
                    if x < 0 or y < 0:
                        continue
                bands = [b for b in range(len(edges)) if edges[b] <= abs(x - y) < (*edges[1:], math.inf)[b]]
                for band in bands:
                    mass[:, :, i, band] += p.map[:, :, i, j]
                    for head, logit in enumerate(p.logits[:, :, i, j].flatten().tolist()):
                        if logit > -math.inf:
                            pairs[head][band].append(logit)
        lse = lse_of(p.logits).to(torch.promote_types(dtype, torch.float32))
        for given in (None, lse):
            actual = softmax_map.mass_by_distance(p.query, p.key, edges, places=of_key, lse=given, impl=impl, **p.rule)
            assert_close(actual, mass, length=p.length)
        means = [[sum(s) / len(s) if s else math.nan for s in bands] for bands in pairs]
        means = torch.tensor(means, dtype=torch.float64).view(2, case.heads, len(edges))
        actual = softmax_map.logit_by_distance(p.query, p.key, edges, places=of_key, impl=impl, **p.rule)
        assert torch.equal(actual.isnan(), means.isnan())
        largest = p.logits[p.logits.isfinite()].abs().max().item()
        torch.testing.assert_close(
            actual,
            means,
            rtol=0,
            atol=largest * (2e-6 if dtype != torch.float64 else 1e-14),
            check_dtype=False,
            equal_nan=True,
        )
