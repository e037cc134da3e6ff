"""block_sparse_attention against its equation as float64 loops, and against what holds by mathematics."""

import math
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from attn.core_kernels import BlockLayout, attention_with_lse, block_sparse_attention
from attn.core_kernels.counting import floating_point_operations, peak_memory
from attn.core_kernels.sparsify import mask_rules
from attn.core_kernels.sparsify.block_sparse import gathered
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A few blocks at a time, so that a dozen lists take several chunks."""
    monkeypatch.setattr(gathered, "ENTRIES_AT_ONCE", 200)


def mixed(b, h, i, j):
    """Some blocks of four whole, some in part, some not at all, different in every head and batch row."""
    kind = (i // 4 + 2 * (j // 4) + h + b) % 3
    return (kind == 0) | ((kind == 1) & ((i + j) % 2 == 0))


def gaps(_b, h, i, j):
    """Queries that see nothing among others that see single keys."""
    return (i % 3 != 1) & ((i * 5 + j + h) % 4 == 0)


class Case(NamedTuple):
    queries: int
    keys: int
    heads: int = 2
    key_heads: int = 2
    layout_heads: int = 1
    layout_batch: int = 1
    block_size: tuple = (4, 4)
    rule: object = mixed
    causal: bool = False
    window: int | None = None
    padded: bool = False

    def __str__(self):  # without the rule's address: every worker of a parallel run must find the same names
        chosen = {name: value for name, value in self._asdict().items() if value != self._field_defaults.get(name)}
        return " ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in chosen.items())


CASES = [
    Case(1, 1),
    Case(1, 13, causal=True),
    Case(13, 1, block_size=(4, 3)),
    Case(12, 12, layout_heads=2, causal=True),
    Case(13, 17, heads=4, key_heads=2, causal=True),
    Case(17, 13, heads=4, key_heads=2, layout_heads=4, layout_batch=2, causal=True),
    Case(11, 19, heads=4, key_heads=1, layout_heads=2, layout_batch=2, window=5, padded=True),
    Case(18, 18, heads=6, key_heads=3, layout_heads=2, block_size=(8, 4), padded=True, causal=True),
    Case(15, 14, heads=4, key_heads=4, layout_heads=2, block_size=(3, 5), rule=gaps),
    Case(9, 20, heads=3, key_heads=1, rule=gaps, causal=True, window=6, padded=True),
]

everywhere = pytest.mark.parametrize("impl", ["reference", "torch"])
in_every_case = pytest.mark.parametrize("case", CASES, ids=str)


def draw(case, dtype=torch.float64, batch=2, head_dim=6, value_dim=3):
    generator = torch.Generator().manual_seed(0)
    widths = (case.heads, case.queries, head_dim), (case.key_heads, case.keys, head_dim)
    shapes = [*widths, (case.key_heads, case.keys, value_dim)]
    rows = [torch.randn(batch, *s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    key_mask = None
    if case.padded:  # the first row is padded on the left, the last sees no key
        key_mask = torch.ones(batch, case.keys, dtype=torch.bool)
        key_mask[0, : case.keys // 3] = False
        key_mask[-1] = False
    return rows, {"causal": case.causal, "window": case.window, "key_mask": key_mask}


def layout_of(case):
    return BlockLayout.from_rule(
        case.rule,
        case.queries,
        case.keys,
        block_size=case.block_size,
        heads=case.layout_heads,
        batch=case.layout_batch,
    )


def visible_keys(case, key_mask, b, h, i):
    position = i + case.keys - case.queries
    of_layout = h // (case.heads // case.layout_heads)
    return [
        j
        for j in range(case.keys)
        if case.rule(b if case.layout_batch > 1 else 0, of_layout, position, j)
        and not (case.causal and j > position)
        and not (case.window is not None and abs(j - position) >= case.window)
        and (key_mask is None or key_mask[b, j])
    ]


def equation(case, query, key, value, key_mask):
    """Output and log-sum-exp, row by row; differentiable."""
    outs, lses = [], []
    for b in range(query.shape[0]):
        for h in range(case.heads):
            of_key = h // (case.heads // case.key_heads)
            for i in range(case.queries):
                seen = visible_keys(case, key_mask, b, h, i)
                if not seen:
                    outs.append(value.new_zeros(value.shape[-1]))
                    lses.append(value.new_full((), -math.inf))
                    continue
                logits = torch.stack([query[b, h, i] @ key[b, of_key, j] for j in seen]) / math.sqrt(query.shape[-1])
                weights = logits.exp() / logits.exp().sum()
                outs.append(sum(w * value[b, of_key, j] for w, j in zip(weights, seen, strict=True)))
                lses.append(logits.exp().sum().log())
    lead = query.shape[:3]
    return torch.stack(outs).view(*lead, -1), torch.stack(lses).view(lead)


def gradients(leaves, out, lse):
    """Gradients of a sum of outputs and finite log-sum-exps with fixed weights."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse)]
    total = (out.double() * weights[0]).sum()
    total = total + (lse.double() * weights[1]).masked_fill(lse == -math.inf, 0).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


@everywhere
@in_every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_equation(case, dtype, impl):
    rows, rule = draw(case, dtype)
    exact = [x.double().requires_grad_() for x in rows]
    out, lse = equation(case, *exact, rule["key_mask"])
    expected = [out, lse, *(gradients(exact, out, lse) if out.requires_grad else map(torch.zeros_like, exact))]
    if case.padded:  # what is stored at masked keys never matters
        hidden = ~rule["key_mask"][:, None, :, None]
        rows = [rows[0], *(x.masked_fill(hidden, math.nan) for x in rows[1:])]
    leaves = [x.requires_grad_() for x in rows]
    actual = block_sparse_attention(*leaves, layout_of(case), return_lse=True, impl=impl, **rule)
    assert actual[0].dtype == dtype
    assert actual[1].dtype == torch.promote_types(dtype, torch.float32)
    for a, e in zip([*actual, *gradients(leaves, *actual)], expected, strict=True):
        # bfloat16 rounds out before its product with dout is taken
        assert_close(a, e, length=case.keys + 6, dtype=dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", [21, 5])
def test_a_full_layout_is_dense_attention(causal, queries):
    case = Case(queries, 21, heads=4, key_heads=2, causal=causal)
    rows, rule = draw(case)
    layout = BlockLayout.from_blocks(torch.ones(-(-queries // 8), 3, dtype=torch.bool), queries, 21, block_size=8)
    actual = block_sparse_attention(*rows, layout, return_lse=True, **rule)
    for a, e in zip(actual, attention_with_lse(*rows, impl="reference", **rule), strict=True):
        assert_close(a, e, length=21)


@pytest.mark.parametrize("case", [CASES[3], CASES[7]], ids=str)
def test_equals_sdpa_under_the_expanded_mask(case):
    rows, rule = draw(case, value_dim=6)
    layout = layout_of(case)
    dense = layout.to_dense().repeat_interleave(case.heads // case.layout_heads, 1)
    dense = dense & torch.ones(case.queries, case.keys, dtype=torch.bool).tril()
    if case.padded:
        dense = dense & rule["key_mask"][:, None, None]
    expected = F.scaled_dot_product_attention(*rows, attn_mask=dense, enable_gqa=True)
    expected = expected.masked_fill(~dense.any(-1, keepdim=True), 0)
    assert_close(block_sparse_attention(*rows, layout, **rule), expected, length=case.keys)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[8]._replace(layout_heads=4)], ids=str)
def test_equals_flex_attention_with_the_block_mask(case):
    rows, _ = draw(case._replace(causal=False), dtype=torch.float32)
    layout = layout_of(case)
    out, aux = flex_attention(*rows, block_mask=layout.to_block_mask(), return_aux=AuxRequest(lse=True))
    actual = block_sparse_attention(*rows, layout, return_lse=True)
    assert_close(actual[0], out.double(), length=case.keys)
    assert_close(actual[1], aux.lse.double(), length=case.keys)


@pytest.mark.parametrize("layout_heads", [1, 4])
def test_gradients_match_finite_differences(layout_heads):
    case = Case(6, 7, heads=4, key_heads=2, layout_heads=layout_heads, block_size=(2, 3), causal=True)
    leaves = [x.requires_grad_() for x in draw(case, batch=1, head_dim=2, value_dim=2)[0]]
    layout = layout_of(case)
    sees = layout.to_dense() & torch.ones(6, 7, dtype=torch.bool).tril(1)
    sees = sees.any(-1).repeat_interleave(4 // layout_heads, 1)

    def call(*rows):
        out, lse = block_sparse_attention(*rows, layout, causal=True, return_lse=True)
        return out, lse[sees]

    assert torch.autograd.gradcheck(call, leaves)


def test_what_lies_in_other_blocks_never_matters():
    case = Case(16, 16, causal=False)
    (query, key, value), _ = draw(case)
    blocks = torch.eye(4, dtype=torch.bool)
    blocks[2] = torch.tensor([True, True, False, False])
    layout = BlockLayout.from_blocks(blocks, 16, 16, block_size=4)
    expected = block_sparse_attention(query, key, value, layout)
    key[:, :, 8:12], value[:, :, 8:12] = math.nan, math.nan
    assert torch.equal(block_sparse_attention(query, key, value, layout), expected)


def test_rows_of_a_batch_are_computed_alike_in_any_order_and_company():
    case = CASES[6]
    rows, rule = draw(case, batch=2)
    layout = layout_of(case._replace(layout_batch=1))
    order = torch.tensor([1, 0])
    out = block_sparse_attention(*rows, layout, **rule)
    turned = block_sparse_attention(*(x[order] for x in rows), layout, **rule | {"key_mask": rule["key_mask"][order]})
    alone = block_sparse_attention(*(x[:1] for x in rows), layout, **rule | {"key_mask": rule["key_mask"][:1]})
    assert_close(turned[order], out, length=case.keys)
    assert_close(alone, out[:1], length=case.keys)


def test_parts_of_the_keys_merge_by_their_log_sum_exp():
    case = Case(16, 16)
    rows, _ = draw(case)
    layout = layout_of(case)
    whole = block_sparse_attention(*rows, layout)
    parts = []
    for part in (slice(0, 8), slice(8, 16)):
        kept = BlockLayout.from_rule(lambda b, h, i, j, s=part.start: mixed(b, h, i + 8, j + s), 16, 8, block_size=4)
        parts.append(block_sparse_attention(rows[0], *(x[:, :, part] for x in rows[1:]), kept, return_lse=True))
    lse = torch.stack([part[1] for part in parts])
    weights = lse.softmax(0).nan_to_num(0)[..., None]
    assert_close((weights * torch.stack([part[0] for part in parts])).sum(0), whole, length=16)


def test_the_second_call_and_transposed_arguments_give_the_same_bits():
    case = CASES[5]
    rows, rule = draw(case, dtype=torch.float32)
    runs = []
    for leaves in (rows, rows, [x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows]):
        leaves = [x.detach().requires_grad_() for x in leaves]
        actual = block_sparse_attention(*leaves, layout_of(case), return_lse=True, **rule)
        runs.append([*actual, *gradients(leaves, *actual)])
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


def test_extreme_scores_stay_finite():
    case = Case(12, 12, causal=True)
    (query, key, value), rule = draw(case, dtype=torch.float32)
    leaves = [(3e3 * query).requires_grad_(), key.requires_grad_(), value.requires_grad_()]
    out = block_sparse_attention(*leaves, layout_of(case), **rule)
    assert all(x.isfinite().all() for x in (out, *torch.autograd.grad(out.sum(), leaves)))


def test_an_empty_layout_and_an_empty_batch_give_zeros():
    case = Case(9, 9)
    rows, _ = draw(case)
    leaves = [x.requires_grad_() for x in rows]
    layout = BlockLayout.from_blocks(torch.zeros(3, 3, dtype=torch.bool), 9, 9, block_size=4)
    out, lse = block_sparse_attention(*leaves, layout, return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()
    assert not any(x.any() for x in torch.autograd.grad(out.sum(), leaves))
    assert block_sparse_attention(*(x[:0] for x in rows), layout).shape == (0, 2, 9, 3)


def test_autocast_changes_nothing():
    case = CASES[4]
    rows, rule = draw(case, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in rows]
    plain = block_sparse_attention(*leaves, layout_of(case), **rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = block_sparse_attention(*leaves, layout_of(case), **rule)
        grads = torch.autograd.grad(cast.sum(), leaves)
    assert torch.equal(cast, plain)
    assert all(map(torch.equal, grads, torch.autograd.grad(plain.sum(), leaves)))


def test_work_falls_with_density_and_memory_does_not_grow_with_the_square(monkeypatch):
    monkeypatch.setattr(gathered, "ENTRIES_AT_ONCE", 2**14)
    flops, memory = [], []
    for blocks, band in ((32, 32), (32, 3), (64, 3)):
        index = torch.arange(blocks)
        near = (index[:, None] - index).abs() < band // 2 + 1 if band < blocks else index[:, None] >= 0
        layout = BlockLayout.from_blocks(near.expand(blocks, blocks), 16 * blocks, 16 * blocks, block_size=16)
        rows = draw(Case(16 * blocks, 16 * blocks, heads=1, key_heads=1), batch=1, head_dim=16, value_dim=16)[0]
        leaves = [x.float().requires_grad_() for x in rows]

        def call(leaves=leaves, layout=layout):
            block_sparse_attention(*leaves, layout).sum().backward()

        flops.append(floating_point_operations(call))
        memory.append(peak_memory(call))
    assert flops[1] < 1.2 * flops[0] * layout_density(32, 3)
    assert memory[2] < 2.2 * memory[1]


def layout_density(blocks, band):
    return (blocks * band - 2) / blocks**2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("case", [CASES[3], CASES[6]], ids=str)
def test_the_registered_operator_passes_opcheck(case):
    rows, rule = draw(case, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in rows]
    layout = layout_of(case)
    arguments = rule["key_mask"], list(layout.tables()), list(layout.block_size), layout.batch, layout.heads
    torch.library.opcheck(
        gathered.block_sparse_attention, (*leaves, *arguments, 0.5, case.causal, case.window), atol=1e-5, rtol=1e-5
    )


def test_compiles_in_one_graph():
    case = CASES[5]
    rows, rule = draw(case)
    layout = layout_of(case)

    def call(query, key, value):
        return block_sparse_attention(query, key, value, layout, **rule)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in rows]
    expected = call(*leaves)
    actual = compiled(*leaves)
    assert torch.equal(actual, expected)
    for a, e in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (actual, expected)), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"layout": "causal"}, TypeError, "layout must be a BlockLayout, got str"),
        ({"queries": 9}, ValueError, "layout must be made for 9 queries and 12 keys, got one for 12 and 12"),
        ({"keys": 16}, ValueError, "layout must be made for 12 queries and 16 keys, got one for 12 and 12"),
        ({"layout_heads": 3}, ValueError, "layout must have a number of heads that divides 2, got 3"),
        ({"layout_batch": 3}, ValueError, "layout must have batch 1 or 2, got 3"),
        ({"device": "meta"}, ValueError, "layout must be on query's device cpu, got meta"),
        ({"return_lse": 1}, TypeError, "return_lse must be a bool, got int"),
        ({"causal": 1}, TypeError, "causal must be a bool, got int"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
    ],
)
def test_an_error_names_the_argument(wrong, error, message):
    sizes = {name: wrong.pop(name) for name in ("layout_heads", "layout_batch") if name in wrong}
    layout = wrong.pop("layout", None) or layout_of(Case(12, 12, **sizes)).to(wrong.pop("device", "cpu"))
    rows, _ = draw(Case(wrong.pop("queries", 12), wrong.pop("keys", 12)))
    with pytest.raises(error, match=message):
        block_sparse_attention(*rows, layout, **wrong)


def test_causal_is_a_rule_and_an_argument():
    rows, _ = draw(Case(13, 13))
    by_rule = BlockLayout.from_rule(mask_rules.causal, 13, 13, block_size=4)
    whole = BlockLayout.from_blocks(torch.ones(4, 4, dtype=torch.bool), 13, 13, block_size=4)
    expected = block_sparse_attention(*rows, whole, causal=True)
    assert_close(block_sparse_attention(*rows, by_rule), expected, length=13)
