"""Diagnostics on weights whose entropy and order are known."""

import math

import pytest
import torch

from attn.hedgehog.diagnostics import largest_projection, monotonicity, smallest_normalizer, spikiness
from attn.hedgehog.feature_maps import EluFeatureMap, HedgehogFeatureMap


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spikiness_of_one_key_and_of_uniform_weights():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(spikiness(weights), torch.tensor([0.0, math.log(4), math.log(2)]))


def test_softmax_agrees_with_its_scores_on_every_pair():
    scores = draw(2, 3, 5, 7)
    assert torch.equal(monotonicity(scores, scores.softmax(dim=-1)), torch.ones(2, 3, 5))
    assert torch.equal(monotonicity(scores, (-scores).softmax(dim=-1)), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("masked", [False, True])
def test_monotonicity_equals_a_count_of_pairs(masked):
    scores, weights = draw(2, 4, 6), draw(2, 4, 6, seed=1).softmax(dim=-1)
    weights[..., 1] = weights[..., 2]
    mask = draw(2, 4, 6, seed=2) > -0.5 if masked else torch.ones(2, 4, 6, dtype=torch.bool)
    for b in range(2):
        for i in range(4):
            keys = [j for j in range(6) if mask[b, i, j]]
            pairs = [(j, m) for j in keys for m in keys if j < m]
            score, weight = scores[b, i].tolist(), weights[b, i].tolist()
            agreeing = [
                (score[j] > score[m]) - (score[j] < score[m]) == (weight[j] > weight[m]) - (weight[j] < weight[m])
                for j, m in pairs
            ]
            ours = monotonicity(scores, weights, mask=mask if masked else None)[b, i]
            assert ours == pytest.approx(sum(agreeing) / len(pairs))


def test_a_row_without_pairs_is_undefined():
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    scores = draw(3, 3)
    agreement = monotonicity(scores, scores, mask=causal)
    assert agreement[0].isnan()
    assert torch.equal(agreement[1:], torch.ones(2))


def test_largest_projection_is_the_maximum_of_each_head():
    phi, x = HedgehogFeatureMap(2, 3), draw(4, 2, 5, 3)
    with torch.no_grad():
        phi.projection.weight[1] *= -10
    expected = torch.tensor([x[:, 0].abs().max(), 10 * x[:, 1].abs().max()])
    torch.testing.assert_close(largest_projection(phi, x), expected, check_dtype=False)
    torch.testing.assert_close(largest_projection(EluFeatureMap(2, 3), x)[0], x[:, 0].abs().max())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_smallest_normalizer_is_the_minimum_over_visible_rows(causal, padded):
    query, key = draw(2, 3, 5, 4).exp(), draw(2, 3, 5, 4, seed=1).exp()
    key_mask = torch.ones(2, 5, dtype=torch.bool)
    if padded:
        key_mask[1, :2] = False
    expected = [
        min(
            sum(float(query[b, h, i] @ key[b, h, j]) for j in range(i + 1 if causal else 5) if key_mask[b, j])
            for b in range(2)
            for i in range(5)
            if key_mask[b, i]
        )
        for h in range(3)
    ]
    smallest = smallest_normalizer(query, key, causal=causal, key_mask=key_mask if padded else None)
    torch.testing.assert_close(smallest, torch.tensor(expected, dtype=torch.float64))


def test_an_error_names_the_argument():
    with pytest.raises(ValueError, match=r"weights must have scores' shape \(2, 3\), got \(3, 2\)"):
        monotonicity(torch.ones(2, 3), torch.ones(3, 2))
