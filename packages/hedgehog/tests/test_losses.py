"""Distillation losses against dense brute force in float64."""

import math

import pytest
import torch

from attn.hedgehog.losses import attention_cross_entropy, output_mse

HEADS, HEAD_DIM, TOKENS = 2, 4, 6


def draw(key_value_heads=HEADS):
    generator = torch.Generator().manual_seed(0)
    query, key, query_features, key_features = (
        torch.randn(2, heads, TOKENS, HEAD_DIM, generator=generator).double()
        for heads in (HEADS, key_value_heads, HEADS, HEADS)
    )
    return query, key, query_features.exp(), key_features.exp()


def brute_force(query, key, query_features, key_features, causal, scale, key_mask):
    """Mean cross-entropy and teacher entropy, one row at a time."""
    losses, entropies = [], []
    groups = HEADS // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(HEADS):
            for i in range(TOKENS):
                if not key_mask[b, i]:
                    continue
                visible = [j for j in range(i + 1 if causal else TOKENS) if key_mask[b, j]]
                scores = [scale * float(query[b, h, i] @ key[b, h // groups, j]) for j in visible]
                teacher = [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]
                products = [query_features[b, h, i] @ key_features[b, h, j] for j in visible]
                losses.append(-sum(a * (p / sum(products)).log() for a, p in zip(teacher, products, strict=True)))
                entropies.append(-sum(a * math.log(a) for a in teacher))
    return torch.stack(losses).mean(), sum(entropies) / len(entropies)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("key_value_heads", "scale"), [(HEADS, None), (1, 0.3)])
@pytest.mark.parametrize("padded", [False, True])
def test_cross_entropy_and_its_gradients_equal_brute_force(causal, key_value_heads, scale, padded):
    query, key, query_features, key_features = draw(key_value_heads)
    key_mask = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        key_mask[0, -2:] = False
        key_mask[1, :1] = False
    leaves = [query_features.requires_grad_(), key_features.requires_grad_()]
    loss = attention_cross_entropy(
        query, key, *leaves, scale=scale, causal=causal, key_mask=key_mask if padded else None
    )
    expected, entropy = brute_force(query, key, *leaves, causal, scale or HEAD_DIM**-0.5, key_mask)
    torch.testing.assert_close(loss.cross_entropy, expected)
    torch.testing.assert_close(float(loss.teacher_entropy), entropy)
    torch.testing.assert_close(loss.kl, (expected - entropy).detach())
    for ours, theirs in zip(
        torch.autograd.grad(loss.cross_entropy, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_divergence_is_zero_when_the_student_is_the_teacher():
    # One key per direction: features whose products are exp of the scores, so that the weights are softmax's.
    scores = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    identity = torch.eye(4, dtype=torch.float64).expand(1, 1, 4, 4)
    loss = attention_cross_entropy(scores, identity, scores.exp(), identity, scale=1.0)
    torch.testing.assert_close(loss.kl, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-10)
    assert attention_cross_entropy(scores, identity, scores.exp().flip(-1), identity, scale=1.0).kl > 0.1


def test_no_gradient_reaches_the_teacher():
    query, key, query_features, key_features = (x.requires_grad_() for x in draw())
    attention_cross_entropy(query, key, query_features, key_features).cross_entropy.backward()
    assert query.grad is None
    assert key.grad is None
    assert query_features.grad.any()


def test_output_mse_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    output, teacher = torch.randn(2, 2, HEADS, TOKENS, 3, generator=generator).double()
    torch.testing.assert_close(output_mse(output, teacher), 1000 * (output - teacher).pow(2).mean())
    row_mask = torch.ones(2, TOKENS, dtype=torch.bool)
    row_mask[0, 2:] = False
    kept = torch.cat([(output - teacher)[0, :, :2].flatten(), (output - teacher)[1].flatten()])
    torch.testing.assert_close(output_mse(output, teacher, factor=2.0, row_mask=row_mask), 2 * kept.pow(2).mean())


def test_an_error_names_the_argument():
    with pytest.raises(ValueError, match=r"teacher_output must have output's shape \(1, 1, 2, 3\), got \(1, 1, 2, 4\)"):
        output_mse(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 4))
