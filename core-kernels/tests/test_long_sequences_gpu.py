"""Operators on a CUDA device at 131072 tokens: results against float64, memory against a straight line."""

import pytest
import torch

from attn.core_kernels import LinearState, key_mass, linear_attention, row_stats
from attn.core_kernels.testing import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENS = 131072


def draw(tokens, dtype, *, batch=1, heads=2, features=64, value_dim=64):
    """Positive features, so that no sum cancels, and values; all need gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda"}
    query, key = (torch.rand(batch, heads, tokens, features, **options).to(dtype) for _ in range(2))
    value = torch.randn(batch, heads, tokens, value_dim, **options).to(dtype)
    return [x.requires_grad_() for x in (query, key, value)]


def peak_bytes(call):
    """Most bytes held beyond what was there before, at the second call."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def train(tokens, dtype, **options):
    leaves = draw(tokens, dtype)

    def call():
        torch.autograd.grad(linear_attention(*leaves, **options).float().square().mean(), leaves)

    return call


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("decay", [None, [0.0, 0.01]])
def test_linear_attention_and_its_gradients(dtype, decay):
    leaves = draw(TOKENS, dtype)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    options = {"decay": None if decay is None else torch.tensor(decay, device="cuda"), "return_state": True}
    out, after = linear_attention(*leaves, impl="triton", **options)
    expected, expected_after = linear_attention(*exact, impl="torch", **options)
    assert_close(out, expected, length=TOKENS, dtype=dtype)
    for actual, wanted in zip(after, expected_after, strict=True):
        assert_close(actual, wanted, length=TOKENS, dtype=dtype)
    weight = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(dtype)
    grads = torch.autograd.grad(out, leaves, weight)
    for actual, wanted in zip(grads, torch.autograd.grad(expected, exact, weight.double()), strict=True):
        assert_close(actual, wanted, length=TOKENS, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_memory_of_training_grows_with_tokens_alone(dtype):
    half, whole = (peak_bytes(train(tokens, dtype, impl="triton")) for tokens in (TOKENS // 2, TOKENS))
    assert whole <= 2.05 * half
    arguments = sum(x.numel() * x.element_size() for x in draw(TOKENS, dtype))
    assert whole <= 12 * arguments  # the weights alone would take a thousand times as much


def test_offsets_beyond_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    leaves = [x.detach() for x in draw(TOKENS, torch.bfloat16, batch=2, heads=160)]
    assert leaves[0].numel() > 2**31
    out, after = linear_attention(*leaves, return_state=True, impl="triton")
    last = [x[-1:, -1:].contiguous() for x in leaves]
    expected, state = linear_attention(*last, return_state=True, impl="triton")
    assert torch.equal(out[-1:, -1:], expected)
    assert all(map(torch.equal, LinearState(*(x[-1:, -1:] for x in after)), state))


def test_more_rows_than_a_grid_axis_of_65535():
    leaves = draw(1, torch.bfloat16, batch=40_000, features=16, value_dim=16)
    out = linear_attention(*leaves, impl="triton")
    assert_close(out, leaves[2].detach().double(), length=16, dtype=torch.bfloat16)  # of one token, its own value


@pytest.mark.parametrize("causal", [True, False])
def test_observe_at_full_length(causal):
    query, key, _ = (x.detach() for x in draw(TOKENS, torch.bfloat16))
    mass = key_mass(query, key, causal=causal, impl="triton")
    stats = row_stats(query, key, causal=causal, impl="triton")
    # Rows sum to one, so the masses sum to the number of rows.
    assert_close(mass.sum(-1), torch.full((1, 2), float(TOKENS), dtype=torch.float64, device="cuda"), length=TOKENS)
    rows = torch.arange(0, TOKENS, 8191, device="cuda")
    logits = query[:, :, rows].double() @ key.double().mT * query.shape[-1] ** -0.5
    if causal:
        logits = logits.masked_fill(torch.arange(TOKENS, device="cuda") > rows[:, None], -torch.inf)
    assert_close(stats.lse[:, :, rows], logits.logsumexp(-1), length=TOKENS, dtype=torch.bfloat16)
    half, whole = (
        peak_bytes(lambda n=n: key_mass(query[:, :, :n], key[:, :, :n], causal=causal, impl="triton"))
        for n in (TOKENS // 2, TOKENS)
    )
    assert whole <= 2.05 * half + 2**20
