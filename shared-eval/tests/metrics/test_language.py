"""Likelihood against sums by hand and torchmetrics, needles by depth, RULER's scores of answers."""

import math

import pytest
import torch
from torchmetrics.text import Perplexity

from attn.shared_eval.metrics import NatsPerToken, NeedleAccuracy, TokenPerplexity, string_match_all, string_match_any


def test_likelihood_equals_a_sum_over_tokens_and_the_library():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, 3:] = -100
    nats, perplexity, library = NatsPerToken(), TokenPerplexity(), Perplexity(ignore_index=-100)
    for metric in (nats, perplexity, library):
        metric.update(logits[:2], labels[:2])
        metric.update(logits[2:], labels[2:])
    losses = [
        -math.log(math.exp(logits[b, i, labels[b, i]]) / sum(math.exp(x) for x in logits[b, i].tolist()))
        for b in range(3)
        for i in range(5)
        if labels[b, i] != -100
    ]
    assert float(nats.compute()) == pytest.approx(sum(losses) / 13, rel=1e-12)
    assert float(perplexity.compute()) == pytest.approx(float(library.compute()), rel=1e-5)


def test_an_unlikely_token_does_not_make_the_loss_infinite():
    metric = NatsPerToken()
    metric.update(torch.tensor([[[0.0, 200.0]]]), torch.tensor([[0]]))
    assert float(metric.compute()) == pytest.approx(200.0)


def test_without_tokens_the_loss_is_undefined():
    metric = TokenPerplexity()
    metric.update(torch.zeros(1, 2, 3), torch.full((1, 2), -100))
    assert math.isnan(metric.compute())


def test_needles_by_depth():
    metric = NeedleAccuracy(bins=4)
    metric.update([1, 0, 0.5, 1], [0.0, 0.24, 0.25, 1.0])
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert {name: figures[name] for name in ("accuracy", "worst", "depth_0", "depth_1", "depth_3")} == {
        "accuracy": 2.5 / 4,
        "worst": 0.5,
        "depth_0": 0.5,
        "depth_1": 0.5,
        "depth_3": 1.0,
    }
    assert math.isnan(figures["depth_2"])
    empty = NeedleAccuracy()
    empty.update([], [])
    assert math.isnan(empty.compute()["worst"])


def test_scores_of_answers():
    assert string_match_all("The codes are 12 and ABC.", ["12", "abc", "34"]) == pytest.approx(2 / 3)
    assert string_match_any("The codes are 12 and ABC.", ["abc", "34"]) == 1
    assert string_match_any("none", ["abc"]) == 0


def test_errors():
    with pytest.raises(ValueError, match=r"labels must be of shape \(1, 2\), got \(1, 3\)"):
        NatsPerToken().update(torch.zeros(1, 2, 4), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="bins must be positive, got 0"):
        NeedleAccuracy(0)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got nan"):
        NeedleAccuracy().update([math.nan], [0.5])
    with pytest.raises(ValueError, match=r"depths must lie in \[0, 1\], got 1.5"):
        NeedleAccuracy().update([1.0], [1.5])
    with pytest.raises(ValueError, match="scores and depths must be of equal length, got 1, 2"):
        NeedleAccuracy().update([1.0], [0.5, 0.5])
    for match in string_match_all, string_match_any:
        with pytest.raises(ValueError, match="references must hold at least one string, got none"):
            match("answer", [])
