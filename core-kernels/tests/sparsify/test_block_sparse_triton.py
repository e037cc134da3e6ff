"""The Triton kernels of block-sparse attention against the float64 reference, in the interpreter or on a GPU."""

import math
from typing import NamedTuple

import pytest
import torch

from attn.core_kernels import BlockLayout, attention_with_lse, block_sparse_attention, windowed_attention
from attn.core_kernels.sparsify import mask_rules
from attn.core_kernels.testing import assert_close

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 rows and columns, so that blocks of more are computed in parts."""
    from attn.core_kernels.sparsify.block_sparse import launch

    small = {key: tuple(x._replace(block_m=16, block_n=16) for x in entry) for key, entry in launch.TUNING.items()}
    monkeypatch.setattr(launch, "TUNING", small)


def mixed(b, h, i, j):
    """Some regions of eight whole, some in part, some not at all, different in every head and batch row."""
    kind = (i // 8 + 2 * (j // 8) + h + b) % 3
    return (kind == 0) | ((kind == 1) & ((i + j) % 2 == 0))


def gaps(_b, h, i, j):
    """Queries that see nothing, whole blocks of them too, among others that see single keys."""
    return (i % 3 != 1) & (i // 20 != 1) & ((i * 5 + j + h) % 4 == 0)


class Case(NamedTuple):
    queries: int = 37
    keys: int = 37
    heads: int = 2
    key_heads: int = 1
    layout_heads: int = 1
    layout_batch: int = 1
    block_size: tuple = (16, 16)
    rule: object = mixed
    causal: bool = False
    window: int | None = None
    padded: bool = False

    def __str__(self):
        chosen = {name: value for name, value in self._asdict().items() if value != self._field_defaults.get(name)}
        return " ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in chosen.items()) or "plain"


CASES = [
    Case(),
    Case(1, 1),
    Case(keys=45, causal=True, block_size=(32, 16)),
    Case(20, 45, heads=4, key_heads=2, layout_heads=4, layout_batch=2, block_size=(16, 32)),
    Case(45, 20, heads=4, key_heads=2, layout_heads=2, causal=True),  # the first 25 queries see nothing
    Case(40, 34, layout_heads=2, block_size=(20, 7), window=9, padded=True),
    Case(causal=True, window=18, padded=True, block_size=(32, 32)),
    Case(45, 30, heads=4, key_heads=4, layout_heads=2, rule=gaps),
]


def draw(case, device="cpu", *, dtype=torch.float32, head_dim=16, value_dim=24):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (case.heads, case.queries, head_dim),
        (case.key_heads, case.keys, head_dim),
        (case.key_heads, case.keys, value_dim),
    )
    return [torch.randn(2, *shape, generator=generator).to(device, dtype) for shape in shapes]


def layout_of(case, device="cpu"):
    return BlockLayout.from_rule(
        case.rule,
        case.queries,
        case.keys,
        block_size=case.block_size,
        heads=case.layout_heads,
        batch=case.layout_batch,
        device=device,
    )


def rule_of(case, device):
    key_mask = None
    if case.padded:  # row 0 is padded on the left, row 1 sees no key
        key_mask = torch.arange(case.keys, device=device) >= torch.tensor([[case.keys // 3], [case.keys]]).to(device)
    return {"causal": case.causal, "window": case.window, "key_mask": key_mask}


def results(rows, layout, impl, **rule):
    """Output, log-sum-exp and the gradients of query, key and value; in float64 for the reference."""
    leaves = [x.detach().to(torch.float64 if impl == "reference" else x.dtype).requires_grad_() for x in rows]
    out, lse = block_sparse_attention(*leaves, layout, return_lse=True, impl=impl, **rule)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in (out, lse)]
    return [out, lse, *torch.autograd.grad((out, lse), leaves, upstream)]


def compare(rows, layout, *, length=128, **rule):
    actual, expected = (results(rows, layout, impl, **rule) for impl in ("triton", "reference"))
    assert actual[0].dtype == rows[0].dtype
    assert actual[1].dtype == torch.float32
    for a, e in zip(actual, expected, strict=True):
        finite = e.isfinite()
        assert torch.equal(a[~finite].double(), e[~finite])
        assert_close(a[finite], e[finite], length=length, dtype=rows[0].dtype)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_equal_the_definition(device, case):
    compare(draw(case, device), layout_of(case, device), **rule_of(case, device))


@pytest.mark.parametrize("head_dim", [1, 40, 72, 80, 96, 128, 256])
def test_widths_and_tiles_as_shipped(device, head_dim):
    case = Case(35, 40, heads=1, causal=True, block_size=(64, 32))
    rows = draw(case, device, head_dim=head_dim, value_dim=head_dim if head_dim != 96 else 256)
    compare([x[:1] for x in rows], layout_of(case, device), causal=True, length=128 + head_dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_the_formats_tolerance(device, dtype):
    case = Case(20, 40, causal=True)
    compare(draw(case, device, dtype=dtype), layout_of(case, device), causal=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("causal", [False, True])
def test_a_full_layout_is_dense_attention(device, causal):
    rows = draw(Case(21, 37), device)
    layout = BlockLayout.from_blocks(torch.ones(1, 2, dtype=torch.bool), 21, 37, block_size=32).to(device)
    actual = block_sparse_attention(*rows, layout, causal=causal, return_lse=True, impl="triton")
    expected = attention_with_lse(*(x.double() for x in rows), causal=causal, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, length=64)


@pytest.mark.usefixtures("small_tiles")
def test_what_is_hidden_or_in_other_blocks_and_how_rows_are_stored_change_no_bit(device):
    case = Case(causal=True, padded=True, rule=mask_rules.sliding_window(1))  # the diagonal blocks
    rows, layout, rule = draw(case, device), layout_of(case, device), rule_of(case, device)
    first = results(rows, layout, "triton", **rule)
    hidden = ~rule["key_mask"][:, None, :, None]
    poisoned = [rows[0], *(x.masked_fill(hidden, math.nan) for x in rows[1:])]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows]
    columns_first = [x.mT.contiguous().mT for x in rows]
    for others in (rows, poisoned, turned, columns_first):
        assert all(map(torch.equal, first, results(others, layout, "triton", **rule)))
    for x in rows[1:]:
        x[:, :, :16] = math.nan
    out = block_sparse_attention(*rows, layout, causal=True, impl="triton")
    assert out[:, :, 16:].isfinite().all()


@pytest.mark.usefixtures("small_tiles")
def test_scores_of_ten_thousand_stay_exact(device):
    case = Case(20, 20)
    query, key, value = draw(case, device)
    rows = query.round(), 2e3 * key.round(), value
    scale = math.log(2)  # logits in powers of two are integers
    actual, expected = (
        block_sparse_attention(*(x.to(dtype) for x in rows), layout_of(case, device), scale=scale, impl=impl)
        for dtype, impl in ((torch.float32, "triton"), (torch.float64, "reference"))
    )
    assert_close(actual, expected, length=64)
    assert all(x.isfinite().all() for x in results(rows, layout_of(case, device), "triton", scale=scale))


@pytest.mark.parametrize("size", [{"queries": 9, "keys": 9}, {"batch": 0}])
def test_an_empty_layout_and_an_empty_batch_give_zeros(device, size):
    rows = [x[: size.get("batch", 2)] for x in draw(Case(9, 9), device)]
    layout = BlockLayout.from_blocks(torch.zeros(1, 1, dtype=torch.bool), 9, 9, block_size=16).to(device)
    out, lse, *grads = results(rows, layout, "triton")
    assert out.shape == (*rows[0].shape[:3], 24)
    assert (lse == -math.inf).all()
    assert not any(x.any() for x in (out, *grads))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("causal", [False, True])
def test_windowed_attention_and_its_gradients(device, causal):
    rows = draw(Case(37, 40), device)
    grads = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in rows]
        out = windowed_attention(*leaves, 11, causal=causal, impl=impl)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        grads.append([out, *torch.autograd.grad(out, leaves, weights)])
    for a, e in zip(*grads, strict=True):
        assert_close(a, e, length=128)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
def test_the_registered_operator_passes_opcheck_and_compiles_in_one_graph(device):
    from attn.core_kernels.sparsify.block_sparse import launch

    case = Case(20, 20, causal=True)
    leaves, layout = [x.requires_grad_() for x in draw(case, device)], layout_of(case, device)
    arguments = None, list(layout.tables()), list(layout.block_size), layout.batch, layout.heads, 0.25, True, 30
    torch.library.opcheck(launch.block_sparse_attention, (*leaves, *arguments), atol=1e-5, rtol=1e-5)

    def call(*rows):
        return block_sparse_attention(*rows, layout, causal=True, impl="triton")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    outs = call(*leaves), compiled(*leaves)
    assert torch.equal(*outs)
    assert all(map(torch.equal, *(torch.autograd.grad(x.sin().sum(), leaves) for x in outs)))
