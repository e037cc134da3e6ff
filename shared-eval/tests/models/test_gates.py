"""Gates: bands with one side or two, quick forms, figures that are not numbers."""

import math

import pytest
import torch
from torch import nn

from attn.shared_eval.models.gates import Figure, Gate, evaluate


def figure(value, low=None, high=None):
    return Figure(name="accuracy", value=value, low=low, high=high, samples=1)


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (0.8, 0.8, 0.9, True),
        (0.9, 0.8, 0.9, True),
        (0.79, 0.8, 0.9, False),
        (0.91, 0.8, 0.9, False),
        (0.99, 0.99, None, True),
        (0.98, 0.99, None, False),
        (0.3, None, 0.35, True),
        (0.4, None, 0.35, False),
        (math.nan, 0.8, 0.9, False),
        (math.nan, 0.8, None, False),
        (math.nan, None, 0.9, False),
    ],
)
def test_a_figure_passes_within_its_band_only(value, low, high, passed):
    assert figure(value, low, high).passed is passed


@pytest.mark.parametrize(
    ("low", "high", "band"), [(0.8, 0.9, "0.8 .. 0.9"), (0.99, None, ">= 0.99"), (None, 0.35, "<= 0.35")]
)
def test_a_band_reads_as_text(low, high, band):
    assert figure(0.5, low, high).band == band


def test_the_quick_form_takes_fewer_samples_and_a_wider_band():
    gate = Gate(name="n", measure=lambda _, n: n, low=10, high=20, samples=15, quick_samples=7, quick_slack=3)
    full, quick = (evaluate([gate], nn.Identity(), seed=0, quick=quick)[0] for quick in (False, True))
    assert (full.value, full.low, full.high, full.passed) == (15, 10, 20, True)
    assert (quick.value, quick.low, quick.high, quick.passed) == (7, 7, 23, True)


def test_measures_see_an_evaluating_model_and_their_own_seed():
    model = nn.Dropout(0.5)
    gate = Gate(name="mean", measure=lambda m, n: (m(torch.ones(n)) * torch.rand(n)).mean(), low=0.0)
    before = torch.get_rng_state()
    first, second = (evaluate([gate, gate], model, seed=3) for _ in range(2))
    assert first == second
    assert first[0].value == first[1].value
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "gate 'g' must have a low or a high end, got neither"),
        ({"low": 0.9, "high": 0.8}, "low of gate 'g' must be at most high 0.8, got 0.9"),
        ({"low": math.nan, "high": 0.8}, "low of gate 'g' must be at most high"),
        ({"low": 0.9, "samples": 0}, "samples of gate 'g' must be positive"),
        ({"low": 0.9, "quick_samples": 0}, "samples of gate 'g' must be positive"),
    ],
)
def test_a_gate_without_a_sensible_band_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Gate(name="g", measure=lambda _, n: n, **wrong)
