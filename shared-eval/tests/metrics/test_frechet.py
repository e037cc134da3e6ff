"""Frechet distance: closed forms, scipy's matrix root, torchmetrics' own."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from attn.shared_eval.metrics import FrechetDistance, frechet_distance


def draw(count, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + seed


def measured(real, generated, width=4):
    metric = FrechetDistance(width)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


class Identity(torch.nn.Module):
    num_features = 4

    def forward(self, features):
        return features


def test_it_equals_scipy_and_torchmetrics():
    real, generated = draw(30), draw(25, seed=1)
    means = [x.numpy().mean(0) for x in (real, generated)]
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (real, generated)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    library = FrechetInceptionDistance(feature=Identity())
    library.update(real, real=True)
    library.update(generated, real=False)
    assert measured(real, generated) == pytest.approx(expected)
    assert measured(real, generated) == pytest.approx(float(library.compute()))


def test_a_shift_adds_its_square_and_the_same_set_is_at_no_distance():
    real = draw(30)
    assert measured(real, real) == pytest.approx(0, abs=1e-10)
    assert measured(real, real + 2) == pytest.approx(4 * 2**2)


def test_diagonal_covariances_have_a_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 1.0, 0.0]).double()
    zero = torch.zeros(3).double()
    distance = frechet_distance(zero, a.diag(), zero, b.diag())
    assert float(distance) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2)


def test_fewer_samples_than_features_are_no_obstacle():
    real, generated = draw(3), draw(2, seed=1)
    assert measured(real, generated) > 0


def test_it_is_undefined_with_one_sample():
    assert math.isnan(measured(draw(30), draw(1)))
    assert math.isnan(measured(draw(1), draw(30)))


def test_errors():
    with pytest.raises(ValueError, match="features must be positive, got 0"):
        FrechetDistance(0)
    with pytest.raises(ValueError, match=r"features must be of shape \(samples, 4\), got \(2, 3\)"):
        FrechetDistance(4).update(torch.zeros(2, 3), real=True)
