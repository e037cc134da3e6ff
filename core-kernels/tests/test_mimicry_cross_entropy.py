"""mimicry_cross_entropy against its definition as float64 loops, and against what holds by mathematics."""

import math

import pytest
import torch

from attn.core_kernels import IMPLEMENTATIONS, mimicry_cross_entropy
from attn.core_kernels.counting import peak_memory
from attn.core_kernels.observe.mimicry_cross_entropy.row_blocks import row_entropies
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")

IMPLS = ["reference", "torch"]


def draw(tokens, *, batch=2, heads=4, key_heads=4, feature_heads=4, width=5, features=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def rows(count, columns, sample):
        return sample(batch, count, tokens, columns, generator=generator, dtype=torch.float64).to(dtype)

    teacher = [2 * rows(count, width, torch.randn) for count in (heads, key_heads)]
    return [*teacher, *(rows(count, features, torch.rand) ** 3 for count in (heads, feature_heads))]


def draw_mask(tokens, batch=2):
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(4)) > 0.4
    mask[-1, : tokens // 2] = False
    return mask


def equations(query, key, query_features, key_features, *, scale=None, causal=True, key_mask=None, eps=1e-12):
    """Both maps, entry by entry."""
    batch, heads, tokens, width = query.shape
    scale = width**-0.5 if scale is None else scale
    cross = torch.zeros(batch, heads, tokens, dtype=torch.float64)
    entropy = torch.zeros_like(cross)
    for b in range(batch):
        seen = [t for t in range(tokens) if key_mask is None or key_mask[b, t]]
        for h in range(heads):
            k = key[b, h * key.shape[1] // heads]
            phi_k = key_features[b, h * key_features.shape[1] // heads]
            for i in seen:
                columns = [j for j in seen if j <= i or not causal]
                scores = [scale * float(query[b, h, i] @ k[j]) for j in columns]
                products = [float(query_features[b, h, i] @ phi_k[j]) for j in columns]
                largest = max(scores)
                normaliser = sum(math.exp(score - largest) for score in scores)
                for score, product in zip(scores, products, strict=True):
                    a = math.exp(score - largest) / normaliser
                    s = product / sum(products) if sum(products) else 0.0
                    cross[b, h, i] -= a * math.log(max(s, eps))
                    entropy[b, h, i] -= a * math.log(a) if a else 0.0
    return cross, entropy


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("key_heads", "feature_heads"), [(4, 4), (2, 4), (1, 2)])
@pytest.mark.parametrize("tokens", [1, 3, 4, 14])
def test_equals_the_definition(impl, causal, masked, key_heads, feature_heads, tokens):
    inputs = draw(tokens, key_heads=key_heads, feature_heads=feature_heads)
    options = {"causal": causal, "key_mask": draw_mask(tokens) if masked else None}
    actual = mimicry_cross_entropy(*inputs, **options, row_chunk=4, impl=impl)
    assert_equal(actual, equations(*inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_scale_is_the_teachers(impl, scale):
    inputs = draw(6)
    assert_equal(mimicry_cross_entropy(*inputs, scale=scale, impl=impl), equations(*inputs, scale=scale))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_small_weights_are_held_at_eps(impl, eps):
    inputs = draw(9)
    assert (equations(*inputs, eps=eps)[0] < equations(*inputs)[0]).any()
    assert_equal(mimicry_cross_entropy(*inputs, eps=eps, row_chunk=4, impl=impl), equations(*inputs, eps=eps))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("eps", [1e-12, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(impl, causal, eps, masked):
    query, key, *features = draw(5, batch=1, heads=2, key_heads=1, feature_heads=1, features=2)
    leaves = [x.requires_grad_() for x in features]
    mask = torch.tensor([[True, True, False, True, True]]) if masked else None

    def operator(*features):
        options = {"causal": causal, "key_mask": mask, "eps": eps, "row_chunk": 2, "impl": impl}
        return mimicry_cross_entropy(query, key, *features, **options).cross_entropy

    assert torch.autograd.gradcheck(operator, leaves)


def test_the_row_blocks_gradient_is_the_references_where_weights_are_held():
    query, key, *features = draw(13, key_heads=2, feature_heads=2)
    leaves = [x.requires_grad_() for x in features]
    weight = torch.rand(2, 4, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for eps in (1e-12, 0.05, 0.2, 2.0):
        rows = [mimicry_cross_entropy(query, key, *leaves, eps=eps, row_chunk=4, impl=impl) for impl in IMPLS]
        assert_equal(*(torch.autograd.grad((x.cross_entropy * weight).sum(), leaves) for x in rows))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_teacher_is_a_constant(impl):
    inputs = [x.requires_grad_() for x in draw(5)]
    rows = mimicry_cross_entropy(*inputs, impl=impl)
    assert not rows.teacher_entropy.requires_grad
    grads = torch.autograd.grad(rows.cross_entropy.sum(), inputs, allow_unused=True)
    assert [grad is None for grad in grads] == [True, True, False, False]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
def test_is_the_entropy_for_a_perfect_student_and_above_it_for_any_other(impl, causal):
    tokens = 7
    query, key, query_features, key_features = draw(tokens)
    other = mimicry_cross_entropy(query, key, query_features, key_features, causal=causal, impl=impl)
    assert (other.cross_entropy > other.teacher_entropy - 1e-12).all()
    scores = query @ key.mT * query.shape[-1] ** -0.5  # features whose products are the exponentials themselves
    one_hot = torch.eye(tokens, dtype=torch.float64).expand(2, 4, tokens, tokens)
    perfect = mimicry_cross_entropy(query, key, scores.exp(), one_hot, causal=causal, impl=impl)
    assert_equal([perfect.cross_entropy], [perfect.teacher_entropy])


@pytest.mark.parametrize("row_chunk", [1, 5, 12, 13, 14, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_row_chunk_changes_rounding_only(row_chunk, causal):
    inputs = draw(13)
    expected = mimicry_cross_entropy(*inputs, causal=causal, impl="reference")
    assert_equal(mimicry_cross_entropy(*inputs, causal=causal, row_chunk=row_chunk, impl="torch"), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rubbish", [1e30, math.nan, math.inf])
@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 2)])
def test_padding_changes_neither_rows_nor_gradients(impl, causal, rubbish, left, right):
    inputs = draw(9)
    leaves = [x.requires_grad_() for x in inputs[2:]]
    padded = [torch.nn.functional.pad(x, (0, 0, left, right), value=rubbish) for x in inputs]
    mask = torch.nn.functional.pad(torch.ones(2, 9, dtype=torch.bool), (left, right))
    options = {"causal": causal, "row_chunk": 4, "impl": impl}
    expected = mimicry_cross_entropy(*inputs, **options)
    actual = mimicry_cross_entropy(*padded, key_mask=mask, **options)
    assert_equal([x[:, :, left : left + 9] for x in actual], expected)
    assert all((x[:, :, ~mask[0]] == 0).all() for x in actual)
    assert_equal(*(torch.autograd.grad(x.cross_entropy.square().sum(), leaves) for x in (actual, expected)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_fully_masked_batch_row_is_zero(impl, causal):
    query, key, *features = draw(6)
    leaves = [x.requires_grad_() for x in features]
    mask = torch.tensor([[True] * 6, [False] * 6])
    rows = mimicry_cross_entropy(query, key, *leaves, causal=causal, key_mask=mask, impl=impl)
    assert all((x[1] == 0).all() for x in rows)
    for grad in torch.autograd.grad(rows.cross_entropy.sum(), leaves):
        assert grad.isfinite().all()
        assert (grad[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_student_row_of_zeros_costs_log_eps_and_has_no_gradient(impl):
    query, key, query_features, key_features = draw(6)
    query_features[:, :, 3] = 0
    leaves = [x.requires_grad_() for x in (query_features, key_features)]
    rows = mimicry_cross_entropy(query, key, *leaves, impl=impl)
    torch.testing.assert_close(
        rows.cross_entropy[:, :, 3], torch.full_like(rows.cross_entropy[:, :, 3], -math.log(1e-12))
    )
    grad_query, grad_key = torch.autograd.grad(rows.cross_entropy.sum(), leaves)
    assert (grad_query[:, :, 3] == 0).all()
    assert grad_key.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_stay_finite(impl, scale):
    query, key, *features = draw(20, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in features]
    rows = mimicry_cross_entropy(query, key, *leaves, scale=scale, impl=impl)
    exact = equations(*(x.detach().double() for x in (query, key, *features)), scale=scale)
    assert all(x.isfinite().all() for x in rows)
    assert all(x.isfinite().all() for x in torch.autograd.grad(rows.cross_entropy.sum(), leaves))
    assert_close(rows.cross_entropy, exact[0], length=20)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [{"tokens": 0}, {"tokens": 5, "batch": 0}])
def test_nothing_in_nothing_out(impl, shape):
    query, key, *features = draw(**shape)
    leaves = [x.requires_grad_() for x in features]
    rows = mimicry_cross_entropy(query, key, *leaves, impl=impl)
    assert rows.cross_entropy.shape == rows.teacher_entropy.shape == query.shape[:3]
    assert all(x.numel() == 0 for x in torch.autograd.grad(rows.cross_entropy.sum(), leaves))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_within_the_formats_tolerance(impl, dtype):
    query, key, *features = draw(150, features=8, key_heads=2, feature_heads=2, dtype=dtype)
    leaves = [x.requires_grad_() for x in features]
    exact = [x.detach().double().requires_grad_() for x in (query, key, *features)]
    rows = mimicry_cross_entropy(query, key, *leaves, impl=impl)
    expected = mimicry_cross_entropy(*exact, impl="reference")
    assert rows.cross_entropy.dtype == rows.teacher_entropy.dtype == torch.float32
    for a, b in zip(rows, expected, strict=True):
        assert_close(a, b, length=150)
    grads = torch.autograd.grad(rows.cross_entropy.sum(), leaves)
    for a, b in zip(grads, torch.autograd.grad(expected.cross_entropy.sum(), exact[2:]), strict=True):
        assert a.dtype == dtype
        assert_close(a, b, length=150)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_batch_row_alone_and_a_second_call_are_bitwise_the_same(impl):
    inputs = draw(13)
    together, again = (mimicry_cross_entropy(*inputs, row_chunk=4, impl=impl) for _ in range(2))
    alone = mimicry_cross_entropy(*(x[1:] for x in inputs), row_chunk=4, impl=impl)
    assert all(map(torch.equal, together, again))
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_later_tokens_change_nothing(impl):
    inputs = draw(13)
    changed = [torch.cat([x[:, :, :6], 3 * x[:, :, 6:]], dim=2) for x in inputs]
    before, after = (mimicry_cross_entropy(*x, row_chunk=4, impl=impl) for x in (inputs, changed))
    assert_equal([x[:, :, :6] for x in before], [x[:, :, :6] for x in after])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_the_registered_operator_passes_opcheck(masked, causal):
    query, key, *features = draw(7, key_heads=2, feature_heads=2)
    leaves = [x.requires_grad_() for x in features]
    mask = draw_mask(7) if masked else None
    torch.library.opcheck(row_entropies, (query, key, *leaves, mask, 0.4, causal, 1e-12, 3))


def test_compiles_without_graph_breaks():
    query, key, *features = draw(9)
    leaves = [x.requires_grad_() for x in features]
    mask = draw_mask(9)

    def operator(*features):
        rows = mimicry_cross_entropy(query, key, *features, key_mask=mask, row_chunk=4)
        return (rows.cross_entropy - rows.teacher_entropy).square()

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    expected, actual = operator(*leaves), compiled(*leaves)
    assert_equal([actual], [expected])
    assert_equal(*(torch.autograd.grad(x.sum(), leaves) for x in (actual, expected)))


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_does_not_lower_the_precision(impl):
    query, key, *features = draw(30, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in features]
    expected = mimicry_cross_entropy(query, key, *leaves, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = mimicry_cross_entropy(query, key, *leaves, impl=impl)
        mimicry_cross_entropy(query.bfloat16(), key.bfloat16(), *leaves, impl=impl)
    assert all(map(torch.equal, actual, expected))


def test_memory_of_forward_and_backward_is_linear_in_tokens():
    def peak(tokens, impl):
        query, key, *features = draw(tokens, batch=1, heads=1, key_heads=1, feature_heads=1, dtype=torch.float32)
        leaves = [x.requires_grad_() for x in features]
        rows = 16
        return peak_memory(
            lambda: mimicry_cross_entropy(query, key, *leaves, row_chunk=rows, impl=impl).cross_entropy.sum().backward()
        )

    assert peak(2048, "torch") / peak(1024, "torch") < 2.1
    assert peak(1024, "reference") / peak(512, "reference") > 3.5
    assert peak(1024, "torch") < peak(1024, "reference") / 20


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_serves_what_the_table_says(impl, dtype):
    serves = IMPLEMENTATIONS["mimicry_cross_entropy"][impl]
    assert dtype in serves.dtypes
    query, key, *features = draw(5, width=300, features=300, dtype=dtype)
    leaves = [x.requires_grad_() for x in features]
    mimicry_cross_entropy(query, key, *leaves, impl=impl).cross_entropy.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


INPUTS = dict(zip(("query", "key", "query_features", "key_features"), draw(3), strict=True))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"key": INPUTS["key"][:, :, :2]}, ValueError, "key must have query's 3 tokens, got 2"),
        ({"key_features": INPUTS["key"]}, ValueError, "key_features must have query_features's width 6"),
        (
            {name: INPUTS[name][:, :2] for name in ("query_features", "key_features")},
            ValueError,
            r"query_features must have query's batch, heads and tokens \[2, 4, 3\], got \[2, 2, 3, 6\]",
        ),
        (
            {name: INPUTS[name].to("meta") for name in ("query_features", "key_features")},
            ValueError,
            "query_features must be on query's device cpu, got meta",
        ),
        ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
        ({"key_mask": torch.ones(2, 3)}, TypeError, "key_mask must be a boolean tensor"),
        ({"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
        ({"row_chunk": 0}, ValueError, "row_chunk must be at least 1, got 0"),
        (
            {"impl": "triton"},
            NotImplementedError,
            "impl='triton' of mimicry_cross_entropy does not exist; impl='torch'",
        ),
    ],
)
def test_an_error_names_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        mimicry_cross_entropy(**INPUTS | wrong)
