"""The Triton kernels of linear_attention against the float64 reference, in the interpreter or on a GPU."""

import pytest
import torch

from attn.core_kernels import LinearState, linear_attention
from attn.core_kernels.testing import assert_close

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DECAY = torch.tensor([0.0, 0.03, 0.7, 50.0])


def draw(tokens, device, *, batch=2, key_heads=4, features=5, value_dim=3, dtypes=(torch.float32,) * 3, states=2):
    """Rows and a state that need gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 4, tokens, features), (batch, key_heads, tokens, features), (batch, key_heads, tokens, value_dim)]
    samples = [torch.rand, torch.rand, torch.randn]
    rows = [f(s, generator=generator).to(device, t) for f, s, t in zip(samples, shapes, dtypes, strict=True)]
    state = [torch.randn(states, 4, features, value_dim, generator=generator), torch.rand(states, 4, features)]
    return [x.requires_grad_() for x in (*rows, *(x.to(device) for x in state))]


def results(leaves, *, with_state, impl, exact, chunk_size=16, **options):
    """Outputs and gradients, in float64 by the definition if ``exact``."""
    if exact:
        leaves = [x.detach().double().requires_grad_() for x in leaves]
    *rows, key_value, key_sum = leaves
    if with_state:
        state = LinearState(key_value, key_sum)
        out, after = linear_attention(
            *rows, state=state, return_state=True, chunk_size=chunk_size, impl=impl, **options
        )
        outputs, leaves = (out, *after), leaves
    else:
        outputs, leaves = (linear_attention(*rows, chunk_size=chunk_size, impl=impl, **options),), rows
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def assert_as_defined(leaves, *, tokens, with_state=True, **options):
    actual = results(leaves, with_state=with_state, impl="triton", exact=False, **options)
    expected = results(leaves, with_state=with_state, impl="reference", exact=True, **options)
    coarsest = max((x.dtype for x in leaves), key=lambda dtype: torch.finfo(dtype).eps)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, length=tokens, dtype=coarsest)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 35])
def test_equals_the_definition(device, key_heads, decay, masked, tokens):
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(4)) > 0.4
    mask[1, : tokens // 2] = False
    options = {"decay": None if decay is None else decay.to(device), "key_mask": mask.to(device) if masked else None}
    assert_as_defined(draw(tokens, device, key_heads=key_heads), tokens=tokens, **options)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "normalize"), [(1, False), (16, True), (35, True)])  # of 1 normalised, no gradient
def test_bidirectional_equals_the_definition(device, masked, tokens, normalize):
    mask = (torch.arange(tokens) % 3 != 1).expand(2, -1).to(device) if masked else None
    leaves = draw(tokens, device, key_heads=2)
    assert_as_defined(leaves, tokens=tokens, with_state=False, causal=False, key_mask=mask, normalize=normalize)


@pytest.mark.parametrize(("features", "value_dim"), [(1, 1), (16, 64), (70, 65), (128, 16)])
def test_widths_of_one_and_of_several_tiles(device, features, value_dim):
    leaves = draw(20, device, batch=1, features=features, value_dim=value_dim, states=1)
    assert_as_defined(leaves, tokens=20 + features, decay=DECAY.to(device), normalize=features > 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bounds", [[0, 50], [0, 1, 17, 50], [0, 16, 16, 32, 50], [0, 0, 7, 7, 50, 50]])
def test_packed_sequences_do_not_see_each_other(device, causal, bounds):
    leaves = draw(50, device, batch=1, key_heads=2, states=len(bounds) - 1)
    options = {"causal": causal, "offsets": torch.tensor(bounds, device=device)}
    if causal:
        mask = (torch.arange(50) % 4 != 1)[None].to(device)
        options |= {"decay": DECAY.to(device), "key_mask": mask}
    assert_as_defined(leaves, tokens=50, with_state=causal, **options)


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,) * 3, (torch.float16,) * 3, (torch.float32, torch.float32, torch.bfloat16)],
)
def test_low_precision_is_within_the_formats_tolerance(device, dtypes):
    leaves = draw(40, device, features=16, value_dim=16, dtypes=dtypes)
    assert_as_defined(leaves, tokens=40, decay=DECAY.to(device))


def test_half_precision_sums_may_exceed_its_range(device):
    query, key, value, *_ = draw(64, device, dtypes=(torch.float16,) * 3)
    out = linear_attention(query, 6e4 * key, value, impl="triton")
    expected = linear_attention(query.double(), (6e4 * key).double(), value.double(), impl="reference")
    assert_close(out, expected, length=64)


@pytest.mark.parametrize("shape", [{"tokens": 0}, {"tokens": 5, "batch": 0, "states": 0}])
def test_nothing_in_nothing_out(device, shape):
    leaves = draw(device=device, **shape)
    for actual, given in zip(results(leaves, with_state=True, impl="triton", exact=False)[3:], leaves, strict=True):
        assert actual.shape == given.shape
        assert actual.isfinite().all()


def test_transposed_arguments_and_the_second_call_give_the_same_bits(device):
    leaves = draw(40, device)
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in leaves[:3]] + leaves[3:]
    runs = [results(x, with_state=True, impl="triton", exact=False) for x in (leaves, leaves, turned)]
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("causal", [True, False])
def test_the_registered_operator_passes_opcheck(device, causal):
    from attn.core_kernels.replace.linear_attention.launch import fused

    leaves = draw(20, device, key_heads=2)
    age = torch.arange(1, 21, device=device).expand(2, -1).contiguous()
    torch.library.opcheck(fused, (*leaves, DECAY.to(device), age, None, causal, causal, 1e-12, 16))
