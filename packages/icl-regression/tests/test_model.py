"""attention against its equation as float64 loops, and against what holds by mathematics."""

import pytest
import torch

from attn.icl_regression import attention


def draw(heads, key_heads, tokens, keys):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, tokens, 4), (key_heads, keys, 4), (key_heads, keys, 3)
    return [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def equation(query, key, value, visible):
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            g = h * key.shape[1] // query.shape[1]
            for i in range(query.shape[2]):
                seen = [j for j in range(key.shape[2]) if visible(i, j)]
                scores = torch.stack([query[b, h, i] @ key[b, g, j] / 4**0.5 for j in seen]).exp()
                out[b, h, i] = sum(w * value[b, g, j] for w, j in zip(scores / scores.sum(), seen, strict=True))
    return out


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (3, 3), (4, 2)])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_equals_the_equation(tokens, heads, key_heads):
    inputs = draw(heads, key_heads, tokens, tokens)
    torch.testing.assert_close(attention(*inputs), equation(*inputs, lambda i, j: True))
    torch.testing.assert_close(attention(*inputs, causal=True), equation(*inputs, lambda i, j: j <= i))


def test_keys_behind_the_mask_change_nothing():
    query, key, value = draw(2, 2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False, True]])
    changed = [torch.where(mask.mT, x, 1e3 * x) for x in (key, value)]
    assert torch.equal(attention(query, key, value, mask=mask), attention(query, *changed, mask=mask))


def test_gradients_match_finite_differences():
    leaves = [x.requires_grad_() for x in draw(2, 1, 3, 3)]
    assert torch.autograd.gradcheck(attention, leaves)
