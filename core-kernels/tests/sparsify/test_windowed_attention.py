"""windowed_attention against its equation as float64 loops, and against what holds by mathematics."""

import math

import pytest
import torch
from torch.nn import functional as F

from attn.core_kernels import BlockLayout, block_sparse_attention, windowed_attention
from attn.core_kernels.counting import floating_point_operations, peak_memory
from attn.core_kernels.sparsify import mask_rules
from attn.core_kernels.testing import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def draw(queries, keys, *, heads=4, key_heads=2, head_dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries, head_dim), (key_heads, keys, head_dim), (key_heads, keys, 3)
    return [torch.randn(2, *s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def equation(query, key, value, window, causal, key_mask):
    rows = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            k = h // (query.shape[1] // key.shape[1])
            for i in range(query.shape[2]):
                p = i + key.shape[2] - query.shape[2]
                reach = range(max(p - window + 1, 0), min(p if causal else p + window - 1, key.shape[2] - 1) + 1)
                seen = [j for j in reach if key_mask is None or key_mask[b, j]]
                weights = [torch.exp(query[b, h, i] @ key[b, k, j] / math.sqrt(query.shape[3])) for j in seen]
                zero = value.new_zeros(value.shape[3])
                rows.append(sum((w * value[b, k, j] for w, j in zip(weights, seen, strict=True)), zero))
                if seen:
                    rows[-1] = rows[-1] / sum(weights)
    return torch.stack(rows).view(*query.shape[:3], -1)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("queries", "keys", "window"), [(1, 1, 1), (9, 9, 1), (11, 11, 4), (3, 11, 4), (11, 6, 30)])
def test_outputs_and_gradients_are_those_of_the_equation(queries, keys, window, causal, padded, impl):
    rows = draw(queries, keys)
    key_mask = None
    if padded:
        key_mask = torch.ones(2, keys, dtype=torch.bool)
        key_mask[0, : keys // 2] = False
        key_mask[1] = False
    exact = [x.clone().requires_grad_() for x in rows]
    expected = equation(*exact, window, causal, key_mask)
    leaves = [x.requires_grad_() for x in rows]
    actual = windowed_attention(*leaves, window, causal=causal, key_mask=key_mask, impl=impl)
    assert_close(actual, expected, length=keys)
    weights = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # Together, for those of a single key are roundings of zero.
    grads = [torch.autograd.grad((x * weights).sum(), y) for x, y in ((actual, leaves), (expected, exact))]
    assert_close(*(torch.cat([x.flatten() for x in g]) for g in grads), length=keys)


def test_equals_sdpa_under_the_banded_mask():
    rows = draw(33, 33, dtype=torch.float32)
    band = torch.ones(33, 33, dtype=torch.bool).tril().triu(-6)
    expected = F.scaled_dot_product_attention(*(x.double() for x in rows), attn_mask=band, enable_gqa=True)
    assert_close(windowed_attention(*rows, 7, causal=True), expected, length=33)


@pytest.mark.parametrize("causal", [False, True])
def test_equals_block_sparse_attention_with_the_rule(causal):
    rows = draw(10, 14)
    layout = BlockLayout.from_rule(mask_rules.sliding_window(5, causal=causal), 10, 14, block_size=4)
    assert_close(windowed_attention(*rows, 5, causal=causal), block_sparse_attention(*rows, layout), length=14)


def test_a_window_beyond_the_keys_is_plain_attention():
    rows = draw(8, 8)
    expected = F.scaled_dot_product_attention(*rows, enable_gqa=True)
    assert_close(windowed_attention(*rows, 8), expected, length=8)


def test_tokens_out_of_reach_change_nothing():
    query, key, value = draw(12, 12)
    out = windowed_attention(query, key, value, 3, causal=True)
    key[:, :, :4], value[:, :, :4] = 1e3, 1e3
    assert torch.equal(windowed_attention(query, key, value, 3, causal=True)[:, :, 6:], out[:, :, 6:])


def test_work_and_memory_grow_with_the_tokens_alone():
    flops, memory = [], []
    for tokens in (1024, 2048):
        leaves = [x.requires_grad_() for x in draw(tokens, tokens, heads=1, key_heads=1, dtype=torch.float32)]

        def call(leaves=leaves):
            windowed_attention(*leaves, 16, causal=True).sum().backward()

        flops.append(floating_point_operations(call))
        memory.append(peak_memory(call))
    assert flops[1] < 2.2 * flops[0]
    assert memory[1] < 2.2 * memory[0]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": None}, TypeError, "window must be an integer, got NoneType"),
        ({"causal": None}, TypeError, "causal must be a bool, got NoneType"),
        ({"key_mask": torch.ones(2, 4)}, TypeError, "key_mask must be a boolean tensor, got torch.float32"),
        ({"impl": "cuda"}, ValueError, "impl must be 'auto', "),
    ],
)
def test_an_error_names_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        windowed_attention(*draw(4, 4), **{"window": 2} | wrong)
