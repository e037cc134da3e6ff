"""The edits after the softmax against their equations as float64 loops, and against what holds by mathematics."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attn.core_kernels import attention_with_lse, edit_map, mix_values, remap_columns, scale_keys, swap_map
from attn.core_kernels.counting import floating_point_operations, peak_memory
from attn.core_kernels.edit.probabilities import composition
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")

everywhere = pytest.mark.parametrize("impl", ["reference", "torch"])
IDENTITIES = ["value", "own_logit", "own_mass"]
TARGETS = [*IDENTITIES, "uniform", "mean_query", "argmax"]


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
    Case(1, 9, heads=4, key_heads=1, head_dim=40, causal=True),
    Case(7, 7, head_dim=64, causal=True),
    Case(8, 8, heads=4, key_heads=2, head_dim=72, padded=True),
    Case(9, 9, heads=6, key_heads=2, head_dim=80, causal=True, padded=True),
    Case(5, 9, head_dim=96, causal=True, window=3),
    Case(8, 8, head_dim=128, window=2),
    Case(7, 7, heads=3, key_heads=1, head_dim=256, causal=True, window=1, padded=True),
    Case(9, 5, causal=True, padded=True),
]
in_every_case = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float64) for case in CASES]
    + [(case, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16) for case in CASES[3:6]],
    ids=str,
)


def draw(queries=9, keys=9, *, batch=2, heads=4, key_heads=2, head_dim=8, value_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries, head_dim), (batch, key_heads, keys, head_dim), (batch, key_heads, keys, value_dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


class Problem(NamedTuple):
    case: Case
    inputs: list
    rule: dict
    map: torch.Tensor  # float64 [batch, heads, queries, keys]
    seen: torch.Tensor

    def map_of(self, query):
        """The map of other queries, as loops."""
        case, key = self.case, self.inputs[1].double()
        probability = torch.zeros_like(self.map)
        for b, h, i in torch.cartesian_prod(*map(torch.arange, self.map.shape[:3])).tolist():
            visible = self.seen[b, h, i].nonzero()[:, 0].tolist()
            of_key = key[b, h // (case.heads // case.key_heads)]
            logits = [torch.dot(query[b, h, i], of_key[j]).item() / math.sqrt(case.head_dim) for j in visible]
            exponentials = [math.exp(s - max(logits)) for s in logits]
            for j, e in zip(visible, exponentials, strict=True):
                probability[b, h, i, j] = e / sum(exponentials)
        return probability

    def apply(self, probability):
        """A map times the values, as loops over keys."""
        out = 0
        for j in range(self.case.keys):
            of_key = self.inputs[2][:, :, j].double().repeat_interleave(self.case.heads // self.case.key_heads, 1)
            hidden = ~self.rule["key_mask"][:, j, None, None] if self.case.padded else torch.tensor(False)
            out = out + probability[..., j, None] * of_key.masked_fill(hidden, 0)[:, :, None]
        return out

    @property
    def length(self):
        return self.case.queries + self.case.keys + self.case.head_dim


@functools.cache
def problem(case, dtype, batch=2):
    inputs = draw(
        *case[:2],
        batch=batch,
        heads=case.heads,
        key_heads=case.key_heads,
        head_dim=case.head_dim,
        value_dim=case.head_dim,
        dtype=dtype,
    )
    key_mask = None
    if case.padded:  # the first row is padded on the left, the last sees no key
        key_mask = torch.ones(batch, case.keys, dtype=torch.bool)
        key_mask[0, : case.keys // 2] = False
        key_mask[-1] = False
        inputs[1:] = (x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in inputs[1:])
    seen = torch.ones(batch, case.heads, case.queries, case.keys, dtype=torch.bool)
    for i in range(case.queries):
        for j in range(case.keys):
            ahead = j - (i + case.keys - case.queries)
            if (case.causal and ahead > 0) or (case.window is not None and abs(ahead) >= case.window):
                seen[:, :, i, j] = False
            elif key_mask is not None:
                seen[:, :, i, j] = key_mask[:, None, j]
    rule = {"causal": case.causal, "window": case.window, "key_mask": key_mask}
    p = Problem(case, inputs, rule, torch.zeros(seen.shape, dtype=torch.float64), seen)
    return p._replace(map=p.map_of(inputs[0].double()))


def target_map(p, target, rows):
    """The map that heads are mixed with, as loops."""
    case, other = p.case, torch.zeros_like(p.map)
    if target == "mean_query":
        mean = sum(p.inputs[0][:, :, i].double() for i in rows) / len(rows)
        if p.inputs[0].dtype.itemsize == 2:
            mean = mean.to(p.inputs[0].dtype).double()
        return p.map_of(mean[:, :, None].expand(*p.map.shape[:3], -1))
    for b, h, i in torch.cartesian_prod(*map(torch.arange, p.map.shape[:3])).tolist():
        row, visible = p.map[b, h, i], p.seen[b, h, i].nonzero()[:, 0].tolist()
        if target == "value" and i + case.keys - case.queries in visible:
            other[b, h, i, i + case.keys - case.queries] = 1
        own, edited = i + case.keys - case.queries, [r + case.keys - case.queries for r in rows]
        if target == "own_logit":
            kept = [j for j in visible if j == own or j not in edited]
            for j in kept:
                other[b, h, i, j] = row[j] / sum(row[k] for k in kept)
        if target == "own_mass":
            for j in visible:
                if j not in edited:
                    other[b, h, i, j] = row[j]
                elif own in visible:
                    other[b, h, i, own] += row[j]
        if target == "uniform":
            for j in visible:
                other[b, h, i, j] = 1 / len(visible)
        if target == "argmax" and visible:
            other[b, h, i, max(visible, key=lambda j, row=row: row[j].item())] = 1
    return other


@everywhere
@in_every_case
@pytest.mark.parametrize("target", TARGETS)
def test_mix_values_interpolates_between_the_map_and_its_target(case, dtype, impl, target):
    p = problem(case, dtype)
    if target in IDENTITIES and case.queries > case.keys:  # a query without a key level with it has no own value
        with pytest.raises(ValueError, match=f"query must have at most .* {case.keys}.*got {case.queries}"):
            mix_values(*p.inputs, torch.ones(case.heads), target=target, impl=impl, **p.rule)
        return
    every = list(range(case.queries))
    some = every[::2]
    per_head = torch.linspace(0, 1, case.heads)
    per_sample = torch.stack([torch.linspace(1, 0.25, case.heads), torch.ones(case.heads)])
    for mix, rows in [(per_head, None), (per_sample, None), (per_sample, some), (torch.ones(case.heads), None)]:
        other = target_map(p, target, rows or every)
        mixed = p.map.clone()
        for i in rows or every:
            u = mix.double().expand(2, -1)[..., None]
            mixed[:, :, i] = (1 - u) * p.map[:, :, i] + u * other[:, :, i]
        chosen = None if rows is None else torch.tensor(rows)
        out = mix_values(*p.inputs, mix, target=target, rows=chosen, impl=impl, **p.rule)
        assert out.dtype == dtype
        assert_close(out, p.apply(mixed), length=p.length)


@everywhere
@in_every_case
@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("few_keys", [64, 1])
def test_scale_keys_gives_what_chosen_keys_lose_to_the_others(case, dtype, impl, beta, few_keys, monkeypatch):
    monkeypatch.setattr(composition, "FEW_KEYS", few_keys)
    p = problem(case, dtype)
    generator = torch.Generator().manual_seed(1)
    sets = [
        torch.rand(b, h, case.keys, generator=generator) > 0.6 for b, h in [(2, case.heads), (1, 1), (1, case.heads)]
    ]
    sets[2][:, 0] = False  # a head that is not edited
    for keys in sets:
        scaled = torch.zeros_like(p.map)
        for b, h, i in torch.cartesian_prod(*map(torch.arange, p.map.shape[:3])).tolist():
            row = p.map[b, h, i].tolist()
            chosen = keys.expand(2, case.heads, -1)[b, h].tolist()
            others = sum(a for a, c in zip(row, chosen, strict=True) if not c)
            freed = (1 - beta) * sum(a for a, c in zip(row, chosen, strict=True) if c)
            for j, (a, c) in enumerate(zip(row, chosen, strict=True)):
                scaled[b, h, i, j] = a if others == 0 else beta * a if c else a + freed * a / others
        torch.testing.assert_close(scaled.sum(-1), p.map.sum(-1))
        assert_close(scale_keys(*p.inputs, keys, beta, impl=impl, **p.rule), p.apply(scaled), length=p.length)


@everywhere
@in_every_case
def test_swap_map_applies_the_map_of_the_source(case, dtype, impl):
    p = problem(case, dtype)
    for source in ([1, 0], [0, 0], [0, 1]):
        out = swap_map(*p.inputs, torch.tensor(source), impl=impl, **p.rule)
        assert_close(out, p.apply(torch.stack([p.map[s] for s in source])), length=p.length)


@everywhere
@in_every_case
def test_remap_columns_moves_blends_and_weights_columns(case, dtype, impl):
    p = problem(case, dtype)
    generator = torch.Generator().manual_seed(1)
    keys = case.keys

    def positive(*shape):
        return torch.rand(shape, generator=generator).to(torch.promote_types(dtype, torch.float32))

    options = [
        {},
        {"mapping": positive(2, keys, keys)},
        {"mapping": positive(1, keys, keys), "blend": positive(2, keys)},
        {"blend": positive(1, keys), "weights": 3 * positive(2, keys) - 1},
        {"weights": positive(1, keys)},
    ]
    for option in options:
        edited = torch.zeros_like(p.map)
        for b, j in torch.cartesian_prod(torch.arange(2), torch.arange(keys)).tolist():
            column = p.map[0, :, :, j]
            if "mapping" in option:
                matrix = option["mapping"].double().expand(2, -1, -1)[b]
                column = sum(p.map[0, :, :, n] * matrix[n, j] for n in range(keys))
            if "blend" in option:
                w = option["blend"].double().expand(2, -1)[b, j]
                column = w * column + (1 - w) * p.map[b, :, :, j]
            if "weights" in option:
                column = column * option["weights"].double().expand(2, -1)[b, j]
            edited[b, :, :, j] = column
        out = remap_columns(*p.inputs, torch.tensor([0, 0]), impl=impl, **option, **p.rule)
        assert_close(out, p.apply(edited), length=p.length)


@in_every_case
def test_edit_map_applies_what_the_function_returns(case, dtype):
    p = problem(case, dtype)
    out = edit_map(*p.inputs, lambda probability: probability.square(), **p.rule)
    assert_close(out, p.apply(p.map.square()), length=p.length)


# --- what holds by mathematics


def neutral_edits(query, key, value, impl, **rule):
    """Every edit with a knob that is off."""
    batch, heads, keys = *query.shape[:2], key.shape[2]
    some, own = torch.arange(keys) % 3 == 0, torch.arange(batch)
    for target in TARGETS:
        yield mix_values(query, key, value, torch.zeros(heads), target=target, impl=impl, **rule)
    yield scale_keys(query, key, value, some[None, None], 1.0, impl=impl, **rule)
    yield scale_keys(query, key, value, torch.zeros(1, heads, keys, dtype=torch.bool), 0.3, impl=impl, **rule)
    yield swap_map(query, key, value, own, impl=impl, **rule)
    yield remap_columns(query, key, value, own, impl=impl, **rule)


def all_edits(query, key, value, impl, **rule):
    """Every edit with a knob that is on, each row of the batch from itself alone."""
    batch, heads, keys = *query.shape[:2], key.shape[2]
    token = torch.arange(keys)
    for target in TARGETS:
        yield mix_values(query, key, value, torch.linspace(0, 1, heads), target=target, impl=impl, **rule)
    yield scale_keys(query, key, value, (token % 3 == 1)[None, None], 0.4, impl=impl, **rule)
    own = torch.arange(batch)
    matrix = (token[:, None] - token == 1)[None].double()
    blend = (token % 2)[None].double()
    yield remap_columns(query, key, value, own, matrix, blend=blend, weights=1 + blend, impl=impl, **rule)


RULES = [{}, {"causal": True}, {"window": 3}, {"key_mask": torch.tensor([[True] * 9, [False] * 4 + [True] * 5])}]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_with_the_knob_off_the_result_is_plain_attention_bit_for_bit(rule, dtype):
    inputs = draw(dtype=dtype)
    plain, _ = attention_with_lse(*inputs, **rule)
    for out in neutral_edits(*inputs, "torch", **rule):
        assert torch.equal(out, plain)
    assert len(list(neutral_edits(*inputs, "torch"))) == 10
    for out in neutral_edits(*(x.double() for x in inputs), "reference", **rule):
        torch.testing.assert_close(out, attention_with_lse(*(x.double() for x in inputs), **rule)[0])


def test_heads_that_are_not_edited_are_plain_attention_bit_for_bit():
    inputs = draw(dtype=torch.float32)
    plain, _ = attention_with_lse(*inputs, causal=True)
    keys = torch.zeros(1, 4, 9, dtype=torch.bool)
    keys[:, 1, 2] = True
    scaled = scale_keys(*inputs, keys, 0.4, causal=True)
    mixed = mix_values(*inputs, torch.tensor([0.0, 0.5, 0.0, 1.0]), target="argmax", causal=True)
    for out, edited in [(scaled, [1]), (mixed, [1, 3])]:
        for head in range(4):
            assert torch.equal(out[:, head], plain[:, head]) == (head not in edited)


def test_heads_of_full_mix_skip_the_map():
    inputs = draw(64, 64, dtype=torch.float32)

    def operations(mix):
        return floating_point_operations(lambda: mix_values(*inputs, torch.tensor(mix), window=64))

    none, half, all_mapped = (operations(mix) for mix in ([1.0] * 4, [1.0, 0.0, 1.0, 0.0], [0.5] * 4))
    map_of_a_head = 4 * 2 * 64 * 64 * 8
    assert none < map_of_a_head / 4
    assert half == pytest.approx(2 * map_of_a_head, rel=0.2)
    assert all_mapped == pytest.approx(4 * map_of_a_head, rel=0.2)


@everywhere
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_padding_changes_nothing_even_if_it_is_not_a_number(rule, impl):
    inputs = draw()
    rule = {"key_mask": torch.ones(2, 9, dtype=torch.bool)} | rule
    expected = list(all_edits(*inputs, impl, **rule))
    padded = [torch.nn.functional.pad(x, (0, 0, 4, 0), value=math.nan) for x in inputs]
    padded[0] = padded[0].nan_to_num(7.0)  # a padded query is computed like any other
    mask = torch.nn.functional.pad(rule["key_mask"], (4, 0))
    # the columns of the edits count from the first key
    shifted = [x[:, :, 4:] for x in edits_of_the_last(*padded, impl, 4, **rule | {"key_mask": mask})]
    for mine, theirs in zip(shifted, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def edits_of_the_last(query, key, value, impl, first, **rule):
    """`all_edits` with sets and columns counted from key ``first`` on, and those queries alone chosen."""
    heads, keys = query.shape[1], key.shape[2]
    token = torch.arange(keys) - first
    rows = torch.arange(first, query.shape[2])
    for target in TARGETS:
        yield mix_values(query, key, value, torch.linspace(0, 1, heads), target=target, rows=rows, impl=impl, **rule)
    yield scale_keys(query, key, value, (token % 3 == 1)[None, None], 0.4, impl=impl, **rule)
    matrix = (token[:, None] - token == 1)[None].double()
    blend = (token % 2)[None].double()
    own = torch.arange(query.shape[0])
    yield remap_columns(query, key, value, own, matrix, blend=blend, weights=1 + blend, impl=impl, **rule)


@everywhere
def test_samples_do_not_mix(impl):
    inputs = draw(batch=3)
    mask = torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) > 0.3
    together = list(all_edits(*inputs, impl, key_mask=mask))
    for b in range(3):
        alone = all_edits(*(x[b : b + 1] for x in inputs), impl, key_mask=mask[b : b + 1])
        for mine, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(mine, theirs[b : b + 1], rtol=1e-12, atol=1e-14)


@everywhere
def test_constant_values_stay_constant_where_rows_sum_to_one(impl):
    query, key, value = draw()
    keys = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(2)) > 0.5
    ones = torch.ones_like(value)
    outs = [mix_values(query, key, ones, torch.linspace(0, 1, 4), target=t, causal=True, impl=impl) for t in TARGETS]
    outs += [scale_keys(query, key, ones, keys, 0.4, causal=True, impl=impl)]
    outs += [swap_map(query, key, ones, torch.tensor([1, 0]), causal=True, impl=impl)]
    for out in outs:
        torch.testing.assert_close(out, torch.ones_like(out))


@everywhere
@pytest.mark.parametrize("few_keys", [64, 1])
def test_scale_keys_at_the_ends_of_its_domain(impl, few_keys, monkeypatch):
    monkeypatch.setattr(composition, "FEW_KEYS", few_keys)
    query, key, value = draw(dtype=torch.float32)
    plain, _ = attention_with_lse(query, key, value)
    every = torch.ones(1, 1, 9, dtype=torch.bool)
    torch.testing.assert_close(scale_keys(query, key, value, every, 0.0, impl=impl), plain)
    # almost the whole mass on the chosen key: exp(-80) of it is left for the others
    query[..., 0], key[..., 0] = 80 * 8**0.5, 0
    key[:, :, 4, 0] = 1
    only = torch.zeros(1, 1, 9, dtype=torch.bool)
    only[..., 4] = True
    out = scale_keys(query, key, value, only, 0.4, impl="torch")
    exact = scale_keys(query.double(), key.double(), value.double(), only, 0.4, impl="reference")
    assert_close(out, exact, length=32)
    # masses of 60 % become 24 %, and the rest is multiplied by 76 / 40 = 1.9
    halves = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    out = scale_keys(
        torch.ones(1, 1, 1, 1).double(),
        halves.log()[None, None, :, None],
        torch.eye(3).double()[None, None],
        torch.tensor([[[True, False, False]]]),
        0.4,
        scale=1.0,
        impl=impl,
    )
    torch.testing.assert_close(out.flatten(), torch.tensor([0.24, 0.38, 0.38], dtype=torch.float64))


@everywhere
@pytest.mark.parametrize("magnitude", [1e4, 1e-30])
def test_extreme_scores_give_numbers(magnitude, impl):
    query, key, value = draw(dtype=torch.float32)
    query = query * magnitude
    exact = all_edits(query.double(), key.double(), value.double(), "reference", scale=1.0)
    for mine, theirs in zip(all_edits(query, key, value, impl, scale=1.0), exact, strict=True):
        assert_close(mine, theirs, length=64)


@everywhere
def test_a_query_that_sees_no_key_has_output_zero(impl):
    inputs = draw()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    for out in all_edits(*inputs, impl, causal=True, key_mask=mask):
        assert not out[0, :, :3].any()
        assert out[0, :, 3:].any()


@everywhere
@pytest.mark.parametrize("size", [{"batch": 0}, {"queries": 0}])
def test_nothing_in_gives_nothing_out(size, impl):
    inputs = draw(**size, value_dim=3)
    for out in [*all_edits(*inputs, impl), *neutral_edits(*inputs, impl)]:
        assert out.shape == (*inputs[0].shape[:3], 3)


@given(
    queries=st.integers(1, 12),
    extra=st.integers(0, 6),
    groups=st.sampled_from([(1, 1), (3, 1), (4, 2), (2, 2)]),
    batch=st.integers(1, 3),
    value_dim=st.sampled_from([8, 3]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 14),
    masked=st.none() | st.integers(0, 100),
    few_keys=st.integers(0, 6),
)
@settings(max_examples=40, deadline=None)
def test_the_compositions_equal_the_reference(
    queries, extra, groups, batch, value_dim, causal, window, masked, few_keys
):
    inputs = draw(queries, queries + extra, batch=batch, heads=groups[0], key_heads=groups[1], value_dim=value_dim)
    rule = {"causal": causal, "window": window, "key_mask": None}
    if masked is not None:
        rule["key_mask"] = torch.rand(batch, queries + extra, generator=torch.Generator().manual_seed(masked)) > 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "FEW_KEYS", few_keys)
        for mine, theirs in zip(*(all_edits(*inputs, impl, **rule) for impl in ("torch", "reference")), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rule", [{}, {"causal": True}, {"window": 2, "key_mask": torch.tensor([[True, False, True]])}])
@pytest.mark.parametrize("few_keys", [64, 0])
def test_gradients_match_finite_differences(rule, few_keys, monkeypatch):
    monkeypatch.setattr(composition, "FEW_KEYS", few_keys)
    leaves = [x.requires_grad_() for x in draw(3, 3, batch=1, heads=2, key_heads=1, head_dim=3, value_dim=3)]
    mix = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    for target in TARGETS:
        assert torch.autograd.gradcheck(lambda *x, t=target: mix_values(*x, target=t, **rule), (*leaves, mix))
    keys = torch.tensor([[[False, True, False], [True, False, False]]])
    assert torch.autograd.gradcheck(lambda *x: scale_keys(*x, keys, 0.4, **rule), leaves)
    own = torch.zeros(1, dtype=torch.int64)
    columns = [
        torch.rand(shape, generator=torch.Generator().manual_seed(4)).double().requires_grad_()
        for shape in [(1, 3, 3), (1, 3), (1, 3)]
    ]

    def remapped(query, key, value, mapping, blend, weights):
        return remap_columns(query, key, value, own, mapping, blend=blend.clamp(0, 1), weights=weights, **rule)

    assert torch.autograd.gradcheck(remapped, (*leaves, *columns))
    assert torch.autograd.gradcheck(lambda *x: swap_map(*x, own, **rule), leaves)
    assert torch.autograd.gradcheck(lambda *x: edit_map(*x, torch.sin, **rule), leaves)


def test_a_mix_of_one_that_needs_a_gradient_has_one():
    query, key, value = draw()
    mix = torch.ones(4, dtype=torch.float64, requires_grad=True)
    by_torch, by_reference = (
        torch.autograd.grad(mix_values(query, key, value, mix, impl=impl).square().sum(), mix)[0]
        for impl in ("torch", "reference")
    )
    torch.testing.assert_close(by_torch, by_reference)
    assert by_torch.any()


def test_swapping_equals_storing_the_map():
    query, key, value = draw()
    source = torch.tensor([1, 1])
    stored = edit_map(query, key, value, lambda probability: probability[source])
    torch.testing.assert_close(swap_map(query, key, value, source), stored)


def test_word_swap_and_refinement_of_prompt_to_prompt():
    query, key, value = draw(queries=6, keys=4)
    source = torch.tensor([0, 0])
    torch.testing.assert_close(remap_columns(query, key, value, source), swap_map(query, key, value, source))
    # the target's prompt has a new second word: columns 0, 1, 2 of the source become 0, 2, 3, column 1 is its own
    mapping = torch.zeros(2, 4, 4, dtype=torch.float64)
    mapping[0] = torch.eye(4)
    for old, new in [(0, 0), (1, 2), (2, 3)]:
        mapping[1, old, new] = 1
    blend = torch.tensor([[1.0] * 4, [1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)

    def refine(probability):
        target = torch.stack([probability[0, ..., 0], probability[1, ..., 1], *probability[0, ..., 1:3].unbind(-1)], -1)
        return torch.stack([probability[0], target])

    out = remap_columns(query, key, value, source, mapping, blend=blend)
    torch.testing.assert_close(out, edit_map(query, key, value, refine))


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_far_below_the_map(causal):
    query, key, value = draw(1024, 1024, batch=1, dtype=torch.float32)
    entries = 4 * 1024**2 * 4  # bytes of the map of four heads
    sinks = (torch.arange(1024) % 200 == 7)[None, None]
    many = (torch.arange(1024) % 2 == 0)[None, None]
    own = torch.zeros(1, dtype=torch.int64)
    for run in (
        *(lambda t=t: mix_values(query, key, value, torch.full((4,), 0.5), target=t, causal=causal) for t in TARGETS),
        lambda: scale_keys(query, key, value, sinks, 0.4, causal=causal),
        lambda: scale_keys(query, key, value, many, 0.4, causal=causal),
        lambda: swap_map(query, key, value, own, causal=causal),
    ):
        assert peak_memory(run) < entries / 4
    assert peak_memory(lambda: scale_keys(query, key, value, sinks, 0.4, causal=causal, impl="reference")) > entries


@pytest.mark.parametrize("rule", [{}, {"causal": True, "key_mask": torch.tensor([[True] * 9, [False] + [True] * 8])}])
def test_compiled_without_a_graph_break_they_give_the_same(rule):
    inputs = draw(dtype=torch.float32)
    compiled = torch.compile(lambda *x: list(all_edits(*x, "torch", **rule)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), list(all_edits(*inputs, "torch", **rule)))


@everywhere
def test_autocast_changes_nothing(impl):
    inputs = draw(dtype=torch.float32)
    expected = list(all_edits(*inputs, impl))
    with torch.autocast("cpu", torch.bfloat16):
        for mine, theirs in zip(all_edits(*inputs, impl), expected, strict=True):
            assert torch.equal(mine, theirs)
