"""linear_attention against its definition as float64 loops, and against what holds by mathematics."""

import copy
import itertools

import pytest
import torch

from attn.core_kernels import IMPLEMENTATIONS, LinearState, linear_attention, linear_attention_step
from attn.core_kernels.counting import peak_memory
from attn.core_kernels.replace.linear_attention.chunked import chunked_sums
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")

IMPLS = ["reference", "torch"]
DECAY = torch.tensor([0.0, 0.03, 0.7, 5.0], dtype=torch.float64)


def draw(tokens, *, batch=2, heads=4, key_heads=4, features=5, value_dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.rand(batch, heads, tokens, features, generator=generator, dtype=torch.float64)
    key = torch.rand(batch, key_heads, tokens, features, generator=generator, dtype=torch.float64)
    value = torch.randn(batch, key_heads, tokens, value_dim, generator=generator, dtype=torch.float64)
    return [x.to(dtype) for x in (query, key, value)]


def draw_state(batch=2, heads=4, features=5, value_dim=3):
    generator = torch.Generator().manual_seed(9)
    key_value = torch.randn(batch, heads, features, value_dim, generator=generator, dtype=torch.float64)
    return LinearState(key_value, torch.rand(batch, heads, features, generator=generator, dtype=torch.float64))


def draw_mask(tokens, batch=2):
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(4)) > 0.4
    mask[-1, : tokens // 2] = False
    return mask


def equations(query, key, value, *, causal=True, decay=None, normalize=True, eps=1e-12, key_mask=None, state=None):
    """The definition, token by token and pair by pair; hidden tokens are taken out and put back as zeros."""
    query, key, value = (x.double() for x in (query, key, value))
    batch, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    out = torch.zeros(batch, heads, tokens, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        seen = [t for t in range(tokens) if key_mask is None or key_mask[b, t]]
        for h in range(heads):
            keep = 1.0 if decay is None else torch.exp(-decay[h].double())
            for i, row in enumerate(seen):
                total, weights = torch.zeros(value.shape[-1], dtype=torch.float64), 0.0
                for j, column in enumerate(seen):
                    if causal and j > i:
                        continue
                    weight = keep ** (i - j) * (query[b, h, row] * key[b, h // groups, column]).sum()
                    total, weights = total + weight * value[b, h // groups, column], weights + weight
                if state is not None:
                    total = total + keep ** (i + 1) * (query[b, h, row, :, None] * state.key_value[b, h]).sum(0)
                    weights = weights + keep ** (i + 1) * (query[b, h, row] * state.key[b, h]).sum()
                out[b, h, row] = total / (weights + eps) if normalize else total
    return out


def final_state(key, value, *, heads, decay=None, key_mask=None, state=None):
    """The state's recurrence: it fades, then takes in a token."""
    batch, key_heads, tokens, features = key.shape
    groups = heads // key_heads
    key_value = torch.zeros(batch, heads, features, value.shape[-1], dtype=torch.float64)
    key_sum = torch.zeros(batch, heads, features, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            if state is not None:
                key_value[b, h], key_sum[b, h] = state.key_value[b, h], state.key[b, h]
            for t in range(tokens):
                if key_mask is None or key_mask[b, t]:
                    keep = 1.0 if decay is None else torch.exp(-decay[h].double())
                    row = key[b, h // groups, t]
                    key_value[b, h] = keep * key_value[b, h] + row[:, None] * value[b, h // groups, t]
                    key_sum[b, h] = keep * key_sum[b, h] + row
    return LinearState(key_value, key_sum)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("tokens", [1, 3, 4, 14])
def test_equals_the_definition(impl, key_heads, masked, with_state, decay, tokens):
    query, key, value = draw(tokens, key_heads=key_heads)
    state = draw_state() if with_state else None
    options = {"decay": decay, "key_mask": draw_mask(tokens) if masked else None, "state": state}
    out, after = linear_attention(query, key, value, **options, return_state=True, chunk_size=4, impl=impl)
    assert_equal(out, equations(query, key, value, **options))
    assert_equal(after, final_state(key, value, heads=4, **options))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_bidirectional_equals_the_definition(impl, masked, tokens):
    inputs = draw(tokens, key_heads=2)
    options = {"causal": False, "key_mask": draw_mask(tokens) if masked else None}
    assert_equal(linear_attention(*inputs, **options, chunk_size=4, impl=impl), equations(*inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_without_the_denominator(impl):
    inputs = draw(9)
    options = {"decay": DECAY, "normalize": False}
    assert_equal(linear_attention(*inputs, **options, chunk_size=4, impl=impl), equations(*inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_eps_is_added_to_the_denominator(impl):
    inputs = draw(5)
    expected = equations(*inputs, eps=0.5)
    assert_equal(linear_attention(*inputs, eps=0.5, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("features", "value_dim"), [(1, 1), (7, 16), (33, 5)])
def test_odd_widths(impl, features, value_dim):
    inputs = draw(7, features=features, value_dim=value_dim)
    assert_equal(linear_attention(*inputs, chunk_size=3, impl=impl), equations(*inputs))


@pytest.mark.parametrize("chunk_size", [1, 5, 15, 16, 17, 64])
@pytest.mark.parametrize("decay", [None, DECAY])
def test_chunk_size_changes_rounding_only(chunk_size, decay):
    inputs = draw(16)
    expected = linear_attention(*inputs, decay=decay, impl="reference")
    assert_equal(linear_attention(*inputs, decay=decay, chunk_size=chunk_size, impl="torch"), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("cut", [1, 4, 7])
def test_two_segments_with_carried_state_are_one(impl, cut):
    inputs = draw(11)
    options = {"decay": DECAY, "return_state": True, "chunk_size": 4, "impl": impl}
    whole, after = linear_attention(*inputs, **options)
    first, state = linear_attention(*(x[:, :, :cut] for x in inputs), **options)
    second, end = linear_attention(*(x[:, :, cut:] for x in inputs), state=state, **options)
    assert_equal(torch.cat([first, second], dim=2), whole)
    assert_equal(end, after)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("key_heads", [4, 1])
def test_steps_are_the_parallel_form(normalize, decay, key_heads):
    inputs = draw(9, key_heads=key_heads)
    whole, after = linear_attention(*inputs, decay=decay, normalize=normalize, return_state=True)
    state = None
    for t in range(9):
        before = copy.deepcopy(state)
        out, new = linear_attention_step(*(x[:, :, t : t + 1] for x in inputs), state, decay=decay, normalize=normalize)
        assert_equal(out, whole[:, :, t : t + 1])
        if state is not None:
            assert all(map(torch.equal, state, before))
        state = new
    assert_equal(state, after)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_batch_row_alone_is_bitwise_the_row_in_the_batch(impl):
    inputs = draw(13)
    options = {"decay": DECAY, "chunk_size": 4, "impl": impl}
    together = linear_attention(*inputs, **options)
    assert torch.equal(linear_attention(*(x[1:] for x in inputs), **options), together[1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_later_tokens_change_nothing(impl):
    inputs = draw(13)
    changed = [torch.cat([x[:, :, :6], 1e3 * x[:, :, 6:]], dim=2) for x in inputs]
    before, after = (linear_attention(*x, decay=DECAY, chunk_size=4, impl=impl)[:, :, :6] for x in (inputs, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rubbish", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 2)])
def test_padding_changes_neither_rows_nor_state_nor_gradients(impl, causal, rubbish, left, right):
    leaves = [x.requires_grad_() for x in draw(9)]
    padded = [torch.nn.functional.pad(x, (0, 0, left, right), value=rubbish) for x in leaves]
    mask = torch.nn.functional.pad(torch.ones(2, 9, dtype=torch.bool), (left, right))
    decay, return_state = (DECAY, True) if causal else (None, False)
    options = {"causal": causal, "decay": decay, "return_state": return_state, "chunk_size": 4, "impl": impl}
    expected = linear_attention(*leaves, **options)
    actual = linear_attention(*padded, key_mask=mask, **options)
    if return_state:
        (expected, expected_state), (actual, state) = expected, actual
        assert_equal(state, expected_state)
    assert_equal(actual[:, :, left : left + 9], expected)
    assert (actual[:, :, ~mask[0]] == 0).all()
    weight = torch.randn_like(actual)
    grads = torch.autograd.grad((actual * weight).sum(), leaves)
    expected_grads = torch.autograd.grad((expected * weight[:, :, left : left + 9]).sum(), leaves)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_equal(grad, expected_grad)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_fully_masked_batch_row_is_zero(impl, causal):
    mask = torch.tensor([[True] * 6, [False] * 6])
    leaves = [x.requires_grad_() for x in draw(6)]
    out = linear_attention(*leaves, causal=causal, key_mask=mask, impl=impl)
    assert (out[1] == 0).all()
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad.isfinite().all()
        assert (grad[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [{"tokens": 0}, {"tokens": 5, "batch": 0}])
def test_nothing_in_nothing_out(impl, shape):
    leaves = [x.requires_grad_() for x in draw(**shape)]
    out, after = linear_attention(*leaves, decay=DECAY, return_state=True, impl=impl)
    assert out.shape == (*leaves[0].shape[:3], 3)
    assert (after.key == 0).all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bounds", [[0, 9], [0, 1, 9], [0, 4, 4, 9], [0, 0, 5, 9]])
def test_packed_sequences_do_not_see_each_other(impl, causal, bounds):
    inputs = draw(9, batch=1, key_heads=2)
    mask = draw_mask(9, batch=1)
    decay = DECAY if causal else None
    options = {"causal": causal, "decay": decay, "chunk_size": 3, "impl": impl}
    parts = [(*(x[:, :, a:b] for x in inputs), mask[:, a:b]) for a, b in itertools.pairwise(bounds)]
    expected = torch.cat([linear_attention(*x, key_mask=m, **options) for *x, m in parts], dim=2)
    offsets = torch.tensor(bounds)
    actual = linear_attention(*inputs, key_mask=mask, offsets=offsets, **options)
    assert_equal(actual, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_have_a_state_each(impl):
    leaves = [x.requires_grad_() for x in draw(9, batch=1)]
    bounds = [0, 4, 4, 9]
    before = LinearState(*(x.requires_grad_() for x in draw_state(batch=3)))
    options = {"decay": DECAY, "return_state": True, "chunk_size": 3, "impl": impl}
    out, after = linear_attention(*leaves, offsets=torch.tensor(bounds, dtype=torch.int32), state=before, **options)
    loss, expected_loss = out.square().sum() + sum(x.square().sum() for x in after), 0.0
    for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
        alone = LinearState(*(x[row : row + 1] for x in before))
        part, end = linear_attention(*(x[:, :, start:stop] for x in leaves), state=alone, **options)
        assert_equal(out[:, :, start:stop], part)
        assert_equal(LinearState(*(x[row : row + 1] for x in after)), end)
        expected_loss = expected_loss + part.square().sum() + sum(x.square().sum() for x in end)
    targets = (*leaves, *before)
    actual, expected = (torch.autograd.grad(x, targets) for x in (loss, expected_loss))
    for a, b in zip(actual, expected, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("decay", [None, DECAY[1:3]])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(impl, tokens, decay, masked):
    small = {"batch": 1, "heads": 2, "features": 2, "value_dim": 1}
    leaves = [x.requires_grad_() for x in (*draw(tokens, key_heads=1, **small), *draw_state(**small))]
    mask = torch.arange(tokens)[None] % 3 != 1 if masked else None

    def operator(query, key, value, key_value, key_sum):
        state = LinearState(key_value, key_sum)
        options = {"decay": decay, "key_mask": mask, "return_state": True, "chunk_size": 2, "impl": impl}
        out, after = linear_attention(query, key, value, state=state, **options)
        return out, *after

    assert torch.autograd.gradcheck(operator, leaves)


@pytest.mark.parametrize("impl", IMPLS)
def test_bidirectional_gradients_match_finite_differences(impl):
    leaves = [x.requires_grad_() for x in draw(5, heads=2, key_heads=1, features=2, value_dim=2)]
    mask = draw_mask(5)
    assert torch.autograd.gradcheck(
        lambda *x: linear_attention(*x, causal=False, key_mask=mask, chunk_size=2, impl=impl), leaves
    )


def test_step_gradients_match_finite_differences():
    leaves = [x.requires_grad_() for x in (*draw(1, heads=2, key_heads=1), *draw_state(heads=2))]
    decay = DECAY[1:3]

    def step(query, key, value, *state):
        out, after = linear_attention_step(query, key, value, LinearState(*state), decay=decay)
        return out, *after

    assert torch.autograd.gradcheck(step, leaves)


def test_a_second_derivative_is_refused_where_there_is_none():
    leaves = [x.requires_grad_() for x in draw(5)]
    (grad, *_) = torch.autograd.grad(linear_attention(*leaves).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd formula"):
        grad.sum().backward()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
def test_low_precision_is_within_the_formats_tolerance(impl, dtype, causal):
    inputs = [x.requires_grad_() for x in draw(150, features=8, value_dim=8, key_heads=2, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    decay = DECAY if causal else None
    out = linear_attention(*inputs, causal=causal, decay=decay, impl=impl)
    expected = linear_attention(*exact, causal=causal, decay=decay, impl="reference")
    assert out.dtype == dtype
    assert_close(out, expected, length=150)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads = torch.autograd.grad(out, inputs, weight)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected, exact, weight.double()), strict=True):
        assert grad.dtype == dtype
        assert_close(grad, expected_grad, length=150)


@pytest.mark.parametrize("impl", IMPLS)
def test_dtypes_of_results(impl):
    for dtype, sums in [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)]:
        out, state = linear_attention(*draw(3, dtype=dtype), return_state=True, impl=impl)
        assert (out.dtype, state.key_value.dtype, state.key.dtype) == (dtype, sums, sums)
    query, key, value = draw(3, dtype=torch.float32)
    out, state = linear_attention(query, key, value.bfloat16(), return_state=True, impl=impl)
    assert (out.dtype, state.key.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e4, 1e15])
def test_normalised_rows_do_not_depend_on_the_size_of_features(impl, size):
    query, key, value = draw(40, dtype=torch.float32)
    eps = 1e-38
    expected = linear_attention(query.double(), key.double(), value.double(), eps=eps, impl="reference")
    assert_close(linear_attention(query, key * size, value, eps=eps, impl=impl), expected, length=40)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_fast_decay_keeps_the_token_itself_and_a_slow_one_is_exact(impl):
    query, key, value = draw(70, heads=1, key_heads=1)
    fast = linear_attention(query, key, value, decay=torch.tensor([1e4]), impl=impl)
    assert_equal(fast, value * ((query * key).sum(-1) / ((query * key).sum(-1) + 1e-12))[..., None])
    slow = torch.tensor([1e-7], dtype=torch.float32)
    expected = equations(query[:1], key[:1], value[:1], decay=slow, normalize=False)
    assert_equal(linear_attention(query, key, value, decay=slow, normalize=False, impl=impl)[:1], expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_call_twice_is_bitwise_the_same(impl):
    inputs = [x.requires_grad_() for x in draw(100, dtype=torch.float32)]
    first, second = (linear_attention(*inputs, impl=impl) for _ in range(2))
    assert torch.equal(first, second)
    assert all(map(torch.equal, *(torch.autograd.grad(x.sum(), inputs) for x in (first, second))))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 4, 9])])
@pytest.mark.parametrize("causal", [True, False])
def test_the_registered_operator_passes_opcheck(decay, offsets, causal):
    query, key, value = draw(9, batch=1, key_heads=2)
    state = draw_state(batch=1 if offsets is None else 2).key_value
    age = torch.arange(1, 10)[None]
    leaves = [x.requires_grad_() for x in (query, key, value, state)]
    for before, return_state in [(state, True), (None, True), (state, False)] if causal else [(None, False)]:
        torch.library.opcheck(chunked_sums, (*leaves[:3], before, decay, age, offsets, causal, return_state, 4))


@pytest.mark.parametrize("causal", [True, False])
def test_compiles_without_graph_breaks(causal):
    mask = draw_mask(9)
    decay, state = (DECAY, draw_state()) if causal else (None, None)

    def operator(*inputs):
        out = linear_attention(*inputs, causal=causal, decay=decay, key_mask=mask, state=state, chunk_size=4)
        return out.square()

    leaves = [x.requires_grad_() for x in draw(9, key_heads=2)]
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    expected, actual = operator(*leaves), compiled(*leaves)
    assert_equal(actual, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (actual, expected)), strict=True):
        assert_equal(a, b)


def test_the_step_compiles_without_graph_breaks():
    compiled = torch.compile(linear_attention_step, fullgraph=True, backend="aot_eager")
    inputs = draw(1)
    actual, expected = (step(*inputs, draw_state(), decay=DECAY) for step in (compiled, linear_attention_step))
    assert_equal(actual, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_does_not_lower_the_precision_of_the_sums(impl):
    inputs = [x.requires_grad_() for x in draw(50, dtype=torch.float32)]
    expected = linear_attention(*inputs, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = linear_attention(*inputs, impl=impl)
        grads = torch.autograd.grad(actual.sum(), inputs)
        step, _ = linear_attention_step(*(x[:, :, :1] for x in inputs), None)
    assert torch.equal(actual, expected)
    assert_close(step, expected[:, :, :1].double(), length=5)
    if impl == "torch":
        assert all(map(torch.equal, grads, torch.autograd.grad(expected.sum(), inputs)))


def test_float32_features_with_bfloat16_values_are_accepted_as_autocast_makes_them():
    query, key, value = draw(6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = value @ torch.eye(3)
        out = linear_attention(query, key, value)
    assert value.dtype == out.dtype == torch.bfloat16
    assert torch.equal(out, linear_attention(query, key, value.float()).bfloat16())


def peak(tokens, impl):
    leaves = [x.requires_grad_() for x in draw(tokens, heads=2, key_heads=2, batch=1, dtype=torch.float32)]
    return peak_memory(lambda: linear_attention(*leaves, decay=DECAY[:2], chunk_size=128, impl=impl).sum().backward())


def test_memory_of_forward_and_backward_is_linear_in_tokens():
    rows = 4 * 2 * (5 + 5 + 3)  # bytes of one token of query, key and value
    assert peak(4096, "torch") < 4 * rows * 4096 + (1 << 20)
    assert peak(8192, "torch") / peak(4096, "torch") < 2.1
    assert peak(1024, "reference") / peak(512, "reference") > 3.5


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_serves_what_the_table_says(impl, dtype):
    serves = IMPLEMENTATIONS["linear_attention"][impl]
    assert dtype in serves.dtypes
    leaves = [x.requires_grad_() for x in draw(5, features=300, dtype=dtype)]
    linear_attention(*leaves, impl=impl).sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


INPUTS = dict(zip(("query", "key", "value"), draw(3), strict=True))
ONE = LinearState(*draw_state())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"key": INPUTS["key"][:, :, :2]}, ValueError, "key must have query's 3 tokens, got 2"),
        ({"value": INPUTS["value"][:, :2]}, ValueError, "value must have key's batch, heads and tokens"),
        ({"causal": False, "decay": DECAY}, ValueError, "causal must be True with decay, got False"),
        ({"causal": False, "state": ONE}, ValueError, "causal must be True with state, got False"),
        ({"causal": False, "return_state": True}, ValueError, "causal must be True with return_state, got False"),
        ({"decay": 0.5}, TypeError, "decay must be a floating-point tensor, got float"),
        ({"decay": torch.ones(4, dtype=torch.int64)}, TypeError, "decay must be a floating-point .* torch.int64"),
        ({"decay": DECAY[:3]}, ValueError, r"decay must have shape \[heads\] = \[4\], got \[3\]"),
        ({"decay": DECAY.to("meta")}, ValueError, "decay must be on query's device cpu, got meta"),
        ({"decay": -DECAY}, ValueError, "decay must be finite and at least 0, got"),
        ({"decay": DECAY * torch.inf}, ValueError, "decay must be finite and at least 0, got"),
        ({"decay": DECAY.clone().requires_grad_()}, ValueError, "decay must be a constant"),
        ({"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
        ({"key_mask": torch.ones(2, 3)}, TypeError, "key_mask must be a boolean tensor"),
        ({"offsets": [0, 3]}, TypeError, "offsets must be an int32 or int64 tensor, got list"),
        ({"offsets": torch.tensor([0.0, 3.0])}, TypeError, "offsets must be an int32 or int64 .* torch.float32"),
        ({"offsets": torch.tensor([0])}, ValueError, r"offsets must have shape \[sequences \+ 1\], got \[1\]"),
        ({"offsets": torch.tensor([0, 3])}, ValueError, "query must have batch size 1 with offsets, got 2"),
        ({"state": tuple(ONE)}, TypeError, "state must be a LinearState, got tuple"),
        ({"state": ONE._replace(key=ONE.key.float())}, TypeError, "state.key must have dtype torch.float64"),
        (
            {"state": ONE._replace(key_value=ONE.key_value[:1])},
            ValueError,
            r"state.key_value must have shape \[2, 4, 5, 3\], got \[1, 4, 5, 3\]",
        ),
        ({"state": ONE._replace(key=ONE.key.to("meta"))}, ValueError, "state.key must be on query's device cpu"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"impl": "eager"}, ValueError, "impl must be"),
    ],
)
def test_an_error_names_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        linear_attention(**INPUTS | wrong)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bounds", [[0, 2], [1, 3], [0, 2, 1, 3]])
def test_offsets_must_cover_the_tokens(impl, bounds):
    inputs = draw(3, batch=1)
    with pytest.raises(ValueError, match="offsets must run from 0 to 3 without decreasing, got"):
        linear_attention(*inputs, offsets=torch.tensor(bounds), impl=impl)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "query must have 1 token, got 3"),
        ({name: x[:, :, :1] for name, x in INPUTS.items()} | {"decay": -DECAY}, "decay must be finite and at least 0"),
    ],
)
def test_an_error_of_a_step_names_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        linear_attention_step(**INPUTS | {"state": None} | wrong)
