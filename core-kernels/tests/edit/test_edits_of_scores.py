"""The edits before the softmax against their equations as float64 loops, and against what holds by mathematics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attn.core_kernels import attention_with_lse, boost_keys, decay_outside_window
from attn.core_kernels.counting import peak_memory
from attn.core_kernels.edit.scores import blockwise
from attn.core_kernels.observe.softmax_map import tiles
from attn.core_kernels.testing import assert_close
from attn.core_kernels.visibility import make_visibility

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

BOTH = ["reference", "torch"]
SHAPES = [  # queries, keys, heads, key_heads, head_dim, causal, window, padded
    (1, 1, 2, 2, 16, False, None, False),
    (1, 9, 4, 1, 40, True, None, False),
    (7, 7, 2, 2, 64, True, None, False),
    (8, 8, 4, 2, 72, False, None, True),
    (9, 9, 6, 2, 80, True, None, True),
    (5, 9, 2, 2, 96, True, 4, False),
    (8, 8, 2, 1, 128, False, 3, False),
    (7, 7, 3, 1, 256, True, 1, True),
    (9, 5, 2, 2, 16, True, None, True),
]
in_every_case = pytest.mark.parametrize(
    ("shape", "dtype", "impl"),
    [(shape, torch.float64, impl) for shape in SHAPES for impl in BOTH]
    + [(shape, torch.float32, impl) for shape in SHAPES[2:6] for impl in (*BOTH, "flex")]
    + [(shape, dtype, impl) for shape in SHAPES[3:6] for dtype in (torch.bfloat16, torch.float16) for impl in BOTH],
    ids=str,
)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 64)
    monkeypatch.setattr(tiles, "FEWEST_ROWS", 2)
    monkeypatch.setattr(tiles, "MOST_ROWS", 3)


def draw(queries=9, keys=9, *, batch=2, heads=4, key_heads=2, head_dim=8, value_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries, head_dim), (batch, key_heads, keys, head_dim), (batch, key_heads, keys, value_dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def problem(shape, dtype):
    queries, keys, heads, key_heads, head_dim, causal, window, padded = shape
    inputs = draw(queries, keys, heads=heads, key_heads=key_heads, head_dim=head_dim, value_dim=head_dim, dtype=dtype)
    key_mask = None
    if padded:  # the first row is padded on the left, the last sees no key
        key_mask = torch.ones(2, keys, dtype=torch.bool)
        key_mask[0, : keys // 2] = False
        key_mask[1] = False
        inputs[1:] = (x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in inputs[1:])
    return inputs, {"causal": causal, "window": window, "key_mask": key_mask}


def equations(inputs, rule, edit):
    """Softmax attention over ``edit(score, b, h, i, j)``, as loops."""
    query, key, value = (x.double() for x in inputs)
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    group, offset = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        scores = {}
        for j in range(key.shape[2]):
            ahead = j - i - offset
            if (rule["causal"] and ahead > 0) or (rule["window"] is not None and abs(ahead) >= rule["window"]):
                continue
            if rule["key_mask"] is None or rule["key_mask"][b, j]:
                score = torch.dot(query[b, h, i], key[b, h // group, j]).item() / math.sqrt(query.shape[3])
                scores[j] = edit(score, b, h, i, j)
        for j, s in scores.items():
            total = sum(math.exp(x - s) for x in scores.values())
            out[b, h, i] += value[b, h // group, j] / total
    return out


DECAYS = [
    {"half_window": 2, "alpha": 0.3},
    {"half_window": 0, "alpha": 0.0},
    {"half_window": 1, "alpha": 1.4},
    {"half_window": 1, "alpha": 0.9, "period": 3, "risk_half_width": 1, "beta": 0.1},
    {"half_window": 1, "alpha": 0.5, "period": 2.5, "risk_half_width": 0.5, "beta": 0.0},
]


@in_every_case
@pytest.mark.parametrize("decay", DECAYS, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_decay_multiplies_positive_scores_beyond_the_window(shape, dtype, impl, decay):
    inputs, rule = problem(shape, dtype)
    queries, keys = shape[:2]
    for places in [None] if queries > keys else [None, torch.arange(keys) // 2 - 1]:

        def edit(score, b, h, i, j, places=places):
            x, y = i + keys - queries, j
            if places is not None:
                x, y = places[x].item(), places[y].item()
            distance, period = abs(x - y), decay.get("period")
            if score < 0 or distance <= decay["half_window"] or (places is not None and min(x, y) < 0):
                return score
            zones = [m * period for m in range(1, 20)] if period else []
            at_risk = any(abs(distance - zone) <= decay["risk_half_width"] for zone in zones)
            return score * (decay["beta"] if at_risk else decay["alpha"])

        out = decay_outside_window(*inputs, **decay, places=places, impl=impl, **rule)
        assert out.dtype == dtype
        assert_close(out, equations(inputs, rule, edit), length=sum(shape[:2]) + shape[4])


@pytest.mark.parametrize("impl", ["reference", "torch", "flex"])
def test_decay_of_a_part_of_the_queries_is_that_part_of_the_whole(impl):
    query, key, value = draw(9, 9, dtype=torch.float32)
    whole = decay_outside_window(query, key, value, 1, 0.5, impl=impl)
    part = decay_outside_window(query[:, :, 3:5], key, value, 1, 0.5, query_places=torch.tensor([3, 4]), impl=impl)
    assert_close(part, whole[:, :, 3:5].double(), length=26)
    misplaced = decay_outside_window(query[:, :, 3:5], key, value, 1, 0.5, impl=impl)
    assert not torch.allclose(misplaced, part)


@in_every_case
@pytest.mark.usefixtures("small_tiles")
def test_boost_adds_a_share_of_the_magnitude_at_chosen_keys_and_rows(shape, dtype, impl):
    inputs, rule = problem(shape, dtype)
    queries, keys, heads = shape[:3]
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(2, heads, keys, generator=generator) > 0.4
    per_key = (torch.rand(2, 1, keys, generator=generator) * 3 - 1.5).to(torch.promote_types(dtype, torch.float32))
    per_sample = torch.tensor([[queries - 1], [0]])
    for gain, rows in [
        (0.5, None),
        (torch.linspace(-1, 1, heads), None),
        (per_key, torch.tensor([queries - 1])),
        (1.0, per_sample),
    ]:
        full = gain if isinstance(gain, torch.Tensor) else torch.tensor([[[gain]]])
        full = (full[None, :, None] if full.ndim == 1 else full).double().expand(2, heads, keys)
        edited = [list(range(queries))] * 2 if rows is None else rows.expand(2, -1).tolist()

        def edit(score, b, h, i, j, full=full, edited=edited):
            return score + full[b, h, j].item() * abs(score) if chosen[b, h, j] and i in edited[b] else score

        out = boost_keys(*inputs, chosen, gain, rows=rows, impl=impl, **rule)
        assert out.dtype == dtype
        assert_close(out, equations(inputs, rule, edit), length=queries + keys + shape[4])


def test_scores_of_the_example():
    """Scores 2, -2 and 0 with gain 0.5 become 3, -1 and 0."""
    query, value = torch.ones(1, 1, 1, 1).double(), torch.eye(3).double()[None, None]
    key = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)[None, None, :, None]
    out = boost_keys(query, key, value, torch.ones(1, 1, 3, dtype=torch.bool), 0.5, scale=1.0)
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0, -1.0, 0.0]).double().softmax(0))


def all_edits(query, key, value, impl="torch", **rule):
    keys = (torch.arange(key.shape[2]) % 3 == 1)[None, None]
    yield decay_outside_window(query, key, value, 2, 0.4, impl=impl, **rule)
    yield decay_outside_window(
        query,
        key,
        value,
        1,
        0.4,
        period=4,
        risk_half_width=1,
        beta=0.1,
        places=torch.arange(key.shape[2]) // 2,
        impl=impl,
        **rule,
    )
    yield boost_keys(query, key, value, keys, 0.7, impl=impl, **rule)
    if query.shape[2]:
        yield boost_keys(query, key, value, keys, 0.7, rows=torch.tensor([query.shape[2] - 1]), impl=impl, **rule)


@pytest.mark.parametrize("impl", [*BOTH, "flex"])
@pytest.mark.parametrize("rule", [{}, {"causal": True}, {"key_mask": torch.arange(18).view(2, 9) % 4 > 0}], ids=str)
def test_with_the_knob_off_the_result_is_plain_attention(rule, impl):
    inputs = draw(dtype=torch.float32)
    plain, _ = attention_with_lse(*inputs, **rule)
    every = torch.ones(1, 1, 9, dtype=torch.bool)
    for out in (
        decay_outside_window(*inputs, 1, 1.0, impl=impl, **rule),
        decay_outside_window(*inputs, 1, 1.0, period=2, beta=1.0, impl=impl, **rule),
        boost_keys(*inputs, every, 0.0, impl=impl, **rule),
        boost_keys(*inputs, ~every, 0.5, impl=impl, **rule),
    ):
        if impl == "reference":
            torch.testing.assert_close(out, plain)
        else:
            assert torch.equal(out, plain)
    everything_inside = decay_outside_window(*inputs, 9, 0.0, impl=impl, **rule)
    torch.testing.assert_close(everything_inside, plain)


@given(
    queries=st.integers(1, 14),
    extra=st.integers(0, 6),
    groups=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    batch=st.integers(0, 2),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 14),
    masked=st.none() | st.integers(0, 100),
    entries=st.integers(1, 200),
    runs=st.integers(0, 8),
)
@settings(max_examples=40, deadline=None)
def test_the_blockwise_form_equals_the_reference(queries, extra, groups, batch, causal, window, masked, entries, runs):
    inputs = draw(queries, queries + extra, batch=batch, heads=groups[0], key_heads=groups[1], value_dim=3)
    rule = {"causal": causal, "window": window, "key_mask": None}
    if masked is not None:
        rule["key_mask"] = torch.rand(batch, queries + extra, generator=torch.Generator().manual_seed(masked)) > 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ENTRIES", entries)
        patch.setattr(tiles, "FEWEST_ROWS", 1)
        patch.setattr(blockwise, "MOST_RUNS", runs)
        for mine, theirs in zip(all_edits(*inputs, **rule), all_edits(*inputs, "reference", **rule), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("impl", [*BOTH, "flex"])
def test_padding_changes_nothing_even_if_it_is_not_a_number(impl):
    inputs = draw(dtype=torch.float32)
    keys = (torch.arange(9) % 3 == 1)[None, None]
    pad = torch.nn.functional.pad
    query, key, value = (pad(x, (0, 0, 4, 0), value=math.nan) for x in inputs)
    mask = pad(torch.ones(2, 9, dtype=torch.bool), (4, 0))
    padded = query.nan_to_num(3.0), key, value
    for mine, theirs in [
        (decay_outside_window(*padded, 2, 0.4, key_mask=mask, impl=impl), decay_outside_window(*inputs, 2, 0.4)),
        (
            boost_keys(*padded, pad(keys, (4, 0), value=True), 0.7, key_mask=mask, impl=impl),
            boost_keys(*inputs, keys, 0.7),
        ),
    ]:
        torch.testing.assert_close(mine[:, :, 4:], theirs)


@pytest.mark.parametrize("impl", [*BOTH, "flex"])
def test_a_query_that_sees_no_key_has_output_zero(impl):
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    for out in all_edits(*draw(dtype=torch.float32), impl, causal=True, key_mask=mask):
        assert not out[0, :, :3].any()
        assert out[0, :, 3:].any()


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("magnitude", [1e3, 1e-30])
def test_extreme_scores_give_numbers(magnitude, impl):
    query, key, value = draw(dtype=torch.float32)
    exact = all_edits((query * magnitude).double(), key.double(), value.double(), "reference", scale=1.0)
    for mine, theirs in zip(all_edits(query * magnitude, key, value, impl, scale=1.0), exact, strict=True):
        # a score of magnitude m has a rounding error of m times the format's, and its exponential as well
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("size", [{"batch": 0}, {"queries": 0}])
def test_nothing_in_gives_nothing_out(size, impl):
    inputs = draw(**size, value_dim=3)
    for out in all_edits(*inputs, impl):
        assert out.shape == (*inputs[0].shape[:3], 3)


@pytest.mark.parametrize("rule", [{}, {"causal": True}, {"window": 2, "key_mask": torch.tensor([[True, False, True]])}])
def test_gradients_match_finite_differences(rule, monkeypatch):
    monkeypatch.setattr(tiles, "MOST_ROWS", 2)
    leaves = [x.requires_grad_() for x in draw(3, 3, batch=1, heads=2, key_heads=1, head_dim=3, value_dim=2)]
    for impl in BOTH:
        assert torch.autograd.gradcheck(lambda *x, i=impl: tuple(all_edits(*x, i, **rule)), leaves)


def test_the_gradient_of_the_gain_is_the_references_alone():
    gain = torch.ones(4, dtype=torch.float64, requires_grad=True)
    every = torch.ones(1, 1, 9, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match=r"has no gradient of gain.*impl='reference' serves it"):
        boost_keys(*draw(), every, gain)
    assert torch.autograd.gradcheck(lambda g: boost_keys(*draw(), every, g, impl="reference"), gain)


@pytest.mark.parametrize(
    "edit",
    [
        lambda *x: decay_outside_window(*x, 1, impl="flex"),
        lambda *x: boost_keys(*x, torch.ones(1, 1, 9, dtype=torch.bool), 0.5, impl="flex"),
    ],
)
def test_flex_refuses_a_gradient_off_cuda(edit):
    query, key, value = draw(dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="serves device cuda, got cpu; impl='torch' serves this call"):
        edit(query.requires_grad_(), key, value)


def test_flex_takes_other_numbers_in_every_call():
    inputs = draw(dtype=torch.float32)
    every = torch.ones(1, 1, 9, dtype=torch.bool)
    for step in range(1, 5):
        rule = {"scale": 0.1 * step, "window": 2 * step}
        for impl in ("flex", "torch"):
            decayed = [decay_outside_window(*inputs, step, 0.2 * step, impl=i, **rule) for i in (impl, "reference")]
            boosted = [boost_keys(*inputs, every, 0.2 * step, impl=i, **rule) for i in (impl, "reference")]
            torch.testing.assert_close(*decayed)
            torch.testing.assert_close(*boosted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("rule", [{}, {"causal": True, "window": 3, "key_mask": torch.arange(10).view(2, 5) % 4 > 0}])
def test_registered_operators_are_sound(rule):
    query, key, value = (x.requires_grad_() for x in draw(5, 5, value_dim=3))
    rule = make_visibility(query, key, **{"causal": False, "window": None, "key_mask": None} | rule).as_arguments()
    places = torch.arange(5)
    for period in (None, 2.0):
        arguments = (query, key, value, places, places, 1, 0.5, period, 0.0, 0.3, 0.4, *rule)
        torch.library.opcheck(blockwise.decay_outside_window, arguments)
    torch.library.opcheck(blockwise.boost_keys, (query, key, value, torch.rand(1, 4, 5), 0.4, *rule))


def test_compiled_without_a_graph_break_they_give_the_same():
    inputs = draw(dtype=torch.float32)
    compiled = torch.compile(lambda *x: list(all_edits(*x, causal=True)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), list(all_edits(*inputs, causal=True)))


@pytest.mark.parametrize("impl", BOTH)
def test_autocast_changes_nothing(impl):
    inputs = draw(dtype=torch.float32)
    expected = list(all_edits(*inputs, impl))
    with torch.autocast("cpu", torch.bfloat16):
        for mine, theirs in zip(all_edits(*inputs, impl), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_memory_is_far_below_the_map():
    query, key, value = draw(1024, 1024, batch=1, dtype=torch.float32)
    entries = 4 * 1024**2 * 4  # bytes of the map of four heads
    every = torch.ones(1, 1, 1024, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ENTRIES", 2**14)
        assert peak_memory(lambda: decay_outside_window(query, key, value, 100, 0.5)) < entries / 8
        assert peak_memory(lambda: boost_keys(query, key, value, every, 0.5)) < entries / 8
    assert peak_memory(lambda: boost_keys(query, key, value, every, 0.5, impl="reference")) > entries
