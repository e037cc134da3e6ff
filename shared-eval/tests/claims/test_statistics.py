"""Intervals against the tables of Student's t."""

import math

import pytest

from attn.shared_eval.claims.statistics import t_interval


def test_the_interval_of_three_values_is_that_of_the_t_table():
    estimate = t_interval([1.0, 2.0, 4.0])
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    half = 4.302653 * deviation / math.sqrt(3)  # 97.5 % quantile of t with two degrees of freedom
    assert estimate.mean == pytest.approx(7 / 3)
    assert estimate.low == pytest.approx(7 / 3 - half, rel=1e-6)
    assert estimate.high == pytest.approx(7 / 3 + half, rel=1e-6)


def test_one_value_has_no_interval():
    assert (t_interval([3.0]).low, t_interval([3.0]).high) == (None, None)


def test_equal_values_have_an_interval_of_no_width():
    estimate = t_interval([0.1] * 7)
    assert estimate.low == estimate.mean == estimate.high == pytest.approx(0.1)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_an_interval_of_what_is_not_finite_is_nan(odd):
    assert math.isnan(t_interval([1.0, odd]).low)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="values must hold at least one number"):
        t_interval([])
