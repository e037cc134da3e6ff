"""Means over seeds with their confidence intervals."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["CONFIDENCE", "Estimate", "t_interval"]

CONFIDENCE = 0.95


class Estimate(BaseModel):
    """A figure over seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)

    mean: float
    """Mean over the seeds."""
    low: float | None
    """Lower end of the two-sided 95 % t-interval of the mean; null with one seed."""
    high: float | None
    """Upper end of that interval."""
    values: list[float]
    """One value per seed, in the order of the seeds."""


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean of the values and its two-sided 95 % interval by Student's t with ``len(values) - 1`` degrees of freedom.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("values must hold at least one number, got none")
    numbers = [float(value) for value in values]
    count = len(numbers)
    if not all(map(math.isfinite, numbers)):
        return Estimate(mean=sum(numbers) / count, low=math.nan, high=math.nan, values=numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return Estimate(mean=mean, low=None, high=None, values=numbers)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (count - 1))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=numbers)
