"""The Triton kernels of the observe operators against the float64 reference, in the interpreter or on a GPU."""

import math

import pytest
import torch

from attn.core_kernels.observe import softmax_map
from attn.core_kernels.testing import assert_close

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

VISIBILITY = {  # and whether some keys are hidden one by one
    "all": ({}, False),
    "causal": ({"causal": True}, True),
    "window": ({"window": 5}, True),
    "causal window": ({"causal": True, "window": 18}, False),
}
STATISTICS = {
    "key_mass": {},
    "key_moments": {},
    "row_stats": {},
    "suffix_key_mass": {"block_size": 11},
    "tile_stats": {"block_size": (19, 6), "eps": 0.03},
    "mass_by_distance": {"edges": (0, 1, 9)},
    "logit_by_distance": {"edges": (0, 1, 9)},
    "mean_map": {},
    "attention_with_lse": {},
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 rows and columns, so that few tokens cross their borders."""
    from attn.core_kernels.observe.softmax_map import launch

    monkeypatch.setattr(launch, "LARGEST_BLOCK", 16)


def draw(
    device, *, queries=37, keys=37, heads=2, key_heads=1, head_dim=16, value_dim=None, dtype=torch.float32, seed=0
):
    """Query, key and value in standard normal numbers, of two batch rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries, head_dim), (key_heads, keys, head_dim), (key_heads, keys, value_dim or head_dim)
    return [torch.randn(2, *shape, generator=generator).to(device, dtype) for shape in shapes]


def padding(keys, device):
    """A mask that hides some keys, and of batch row 1 the first third."""
    mask = torch.arange(2 * keys).view(2, keys) % 4 != 1
    mask[1, : keys // 3] = False
    return mask.to(device)


def arguments_of(operator, query, key, value):
    return (query, key, value) if operator == "attention_with_lse" else (query, key)


def compare(operator, query, key, value, *, terms=None, **options):
    """A Triton result against the definition in float64; integers must be equal."""
    function = getattr(softmax_map, operator)
    actual = function(*arguments_of(operator, query, key, value), impl="triton", **options)
    doubles = [x.double() for x in arguments_of(operator, query, key, value)]
    options = {name: x.double() if name in ("row_weights", "lse") else x for name, x in options.items()}
    expected = function(*doubles, impl="reference", **options)
    pairs = zip(actual, expected, strict=True) if isinstance(actual, tuple) else [(actual, expected)]
    length = terms or key.shape[2] + query.shape[2] + key.shape[3]
    for a, b in pairs:
        infinite = ~b.isfinite() if b.is_floating_point() else torch.zeros_like(b, dtype=torch.bool)
        assert torch.equal(a[infinite].double().nan_to_num(nan=9.0), b[infinite].double().nan_to_num(nan=9.0))
        if b.dtype == torch.int64:
            assert torch.equal(a, b)
        else:
            assert_close(a[~infinite], b[~infinite], length=length)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("visibility", VISIBILITY)
@pytest.mark.parametrize("operator", STATISTICS)
def test_equals_the_definition(device, operator, visibility):
    options, padded = VISIBILITY[visibility]
    mask = padding(37, device) if padded else None
    compare(operator, *draw(device), **STATISTICS[operator], **options, key_mask=mask)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("operator", ["row_stats", "suffix_key_mass", "mean_map", "attention_with_lse"])
@pytest.mark.parametrize(("queries", "keys"), [(40, 5), (3, 35), (1, 1)])  # of 40 causal queries 35 see no key
def test_fewer_and_more_queries_than_keys(device, operator, queries, keys):
    rows = draw(device, queries=queries, keys=keys, heads=4, key_heads=2)
    compare(operator, *rows, **STATISTICS[operator], causal=True)


@pytest.mark.usefixtures("small_blocks")
def test_reduced_suffixes_known_lse_and_sets_of_weights(device):
    query, key, value = draw(device, heads=4, key_heads=2)
    options = {"causal": True, "window": 21}
    lse = softmax_map.attention_with_lse(query, key, value, **options, impl="triton")[1]
    compare("suffix_key_mass", query, key, value, block_size=20, reduce="mean_heads", lse=lse, **options)
    weights = torch.randn(2, 4, 19, 37, generator=torch.Generator().manual_seed(2)).to(device)
    compare("key_moments", query, key, value, row_weights=weights, lse=lse, **options)
    compare("key_mass", query, key, value, row_weights=weights[0, 0, 0], lse=lse, **options)


@pytest.mark.usefixtures("small_blocks")
def test_distance_is_measured_between_places(device):
    rows = draw(device, queries=20)
    places = torch.arange(37, device=device) // 5 - 1
    for operator in ("mass_by_distance", "logit_by_distance"):
        compare(operator, *rows, edges=(0, 1, 4), places=places, causal=True)


def gradients(operator, tensors, impl, **options):
    """Results and gradients of what is differentiable, in float64 for the reference."""
    leaves = [x.detach().to(torch.float64 if impl == "reference" else x.dtype).requires_grad_() for x in tensors]
    outputs = getattr(softmax_map, operator)(*leaves, impl=impl, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


def compare_gradients(operator, tensors, **options):
    actual, expected = (gradients(operator, tensors, impl, **options) for impl in ("triton", "reference"))
    for a, b in zip(actual, expected, strict=True):
        finite = b.isfinite()
        assert torch.equal(a[~finite].double(), b[~finite])
        assert_close(a[finite], b[finite], length=200, dtype=tensors[0].dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("visibility", VISIBILITY)
def test_gradients_of_attention_with_lse(device, visibility):
    options, padded = VISIBILITY[visibility]
    rows = draw(device, queries=35, heads=4, key_heads=2, value_dim=24)
    compare_gradients("attention_with_lse", rows, **options, key_mask=padding(37, device) if padded else None)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("chosen", "reduce"),
    [("all", "none"), ("all", "mean_heads"), ("rows", "none"), ("columns", "mean_heads"), ("both", "none")],
)
def test_gradients_of_submap(device, chosen, reduce):
    query, key, _ = draw(device, heads=4, key_heads=2)
    rows, columns = (
        torch.tensor(x, device=device) for x in ([[5, 36, 5, 0, 20], [0, 1, 2, 3, 4]], [[3, 30, 30], [36, 0, 9]])
    )
    options = {
        "all": {},
        "rows": {"rows": rows[0], "window": 9},
        "columns": {"columns": columns[0]},
        "both": {"rows": rows, "columns": columns, "causal": True, "key_mask": padding(37, device)},
    }[chosen]
    compare_gradients("submap", (query, key), reduce=reduce, **options)


@pytest.mark.parametrize("head_dim", [1, 40, 72, 80, 96, 128, 256])
def test_widths_and_blocks_as_shipped(device, head_dim):
    query, key, value = draw(device, queries=67, keys=70, heads=1, head_dim=head_dim)
    query, key, value = (x[:1] for x in (query, key, value))
    compare_gradients("attention_with_lse", (query, key, value), causal=True)
    compare("key_mass", query, key, value, causal=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_the_formats_tolerance(device, dtype):
    query, key, value = draw(device, dtype=dtype)
    compare_gradients("attention_with_lse", (query, key, value), causal=True)
    compare_gradients("submap", (query, key), columns=torch.tensor([4, 4, 30], device=device))
    for operator in ("key_moments", "row_stats", "tile_stats", "mass_by_distance"):
        compare(operator, query, key, value, **STATISTICS[operator])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("operator", STATISTICS)
def test_rows_that_see_no_key(device, operator):
    mask = torch.zeros(2, 37, dtype=torch.bool, device=device)
    mask[0, 20] = True
    compare(operator, *draw(device), **STATISTICS[operator], causal=True, key_mask=mask)


@pytest.mark.usefixtures("small_blocks")
def test_scores_of_ten_thousand_and_ties(device):
    query, key, value = draw(device)
    query, key = query.round(), 2e3 * key.round()
    compare("attention_with_lse", query, key, value, scale=math.log(2))  # logits in powers of two are integers
    stats = softmax_map.row_stats(query, key, scale=math.log(2), impl="triton")
    assert torch.equal(stats.argmax, (query @ key.mT).argmax(-1))
    # A log-sum-exp near ``largest`` is known to within its last place, and the map relatively to the same.
    largest = int((query @ key.mT).abs().max())
    compare("key_moments", query, key, value, scale=math.log(2), terms=largest**2)
    stats = softmax_map.row_stats(query, torch.ones_like(key), causal=True, window=20, impl="triton")
    assert torch.equal(stats.argmax[0, 0], (torch.arange(37, device=device) - 19).clamp(min=0))


@pytest.mark.usefixtures("small_blocks")
def test_what_hidden_keys_hold_and_how_rows_are_stored_change_no_bit(device):
    query, key, value = draw(device, heads=4, key_heads=2)
    mask = padding(37, device)
    poisoned = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (key, value)]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    columns_first = [x.mT.contiguous().mT for x in (query, key, value)]
    first, *others = (
        softmax_map.attention_with_lse(*rows, key_mask=mask, impl="triton")
        for rows in ((query, key, value), (query, *poisoned), turned, columns_first)
    )
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("batch", [0, 2])
def test_no_queries_or_no_batch(device, batch):
    query, key, value = (x[:batch] for x in draw(device, queries=0 if batch else 5, keys=5))
    for operator, options in STATISTICS.items():
        compare(operator, query, key, value, **options)
    compare_gradients("attention_with_lse", (query, key, value))
    compare_gradients("submap", (query, key), columns=torch.tensor([1], device=device))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
def test_the_registered_operators_pass_opcheck(device):
    from attn.core_kernels.observe.softmax_map import launch

    query, key, value = (x.requires_grad_() for x in draw(device, queries=3, keys=5))
    rule = 0.25, 2, True, None, None, None
    places = torch.arange(5, device=device)
    weights = torch.ones(1, 1, 1, 3, device=device)
    torch.library.opcheck(launch.attention_with_lse, (query, key, value, *rule))
    torch.library.opcheck(launch.submap, (query, key, torch.tensor([[1, 4]], device=device), True, *rule))
    query, key = query.detach(), key.detach()
    for operator, arguments in (
        (launch.key_moments, (weights, None, True)),
        (launch.row_stats, ()),
        (launch.suffix_key_mass, (2, True, None)),
        (launch.tile_stats, (2, 2, 0.1, None)),
        (launch.mass_by_distance, (places[2:], places, [0, 2], None)),
        (launch.logit_by_distance, (places[2:], places, [0, 2])),
    ):
        torch.library.opcheck(operator, (query, key, *arguments, *rule), test_utils=("test_schema", "test_faketensor"))
