"""CLIP score: cosines by hand."""

import math

import pytest
import torch

from attn.shared_eval.metrics import ClipScore


def test_a_hundred_times_the_mean_cosine():
    metric = ClipScore()
    metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))  # 24 / 25
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[-1.0, 0.0], [0.0, 5.0]]))
    assert float(metric.compute()) == pytest.approx(100 * (0.96 - 1 + 1) / 3)


def test_lengths_change_nothing_and_the_mean_is_cut_at_zero():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 5, 8, generator=generator)
    metric, scaled, opposite = ClipScore(), ClipScore(), ClipScore()
    metric.update(images, images + texts)
    scaled.update(7 * images, 0.1 * (images + texts))
    assert 0 < float(metric.compute()) == pytest.approx(float(scaled.compute()))
    opposite.update(images, -images)
    assert float(opposite.compute()) == 0


def test_errors_and_nothing():
    metric = ClipScore()
    metric.update(torch.ones(0, 3), torch.ones(0, 3))
    assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match=r"must have one shape \(pairs, features\), got \(2, 3\) and \(1, 3\)"):
        ClipScore().update(torch.ones(2, 3), torch.ones(1, 3))
