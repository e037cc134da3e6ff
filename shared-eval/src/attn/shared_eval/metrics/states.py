"""States that add up over batches and ranks: counts in int64 and sums in float64."""

import torch
from torch import Tensor
from torchmetrics import Metric


def add_counts(metric: Metric, *names: str, shape: tuple[int, ...] = ()) -> None:
    """Give a metric int64 states of the given shape that start at zero and are summed over ranks."""
    for name in names:
        metric.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")


def add_sums(metric: Metric, *names: str, shape: tuple[int, ...] = ()) -> None:
    """Give a metric float64 states of the given shape that start at zero and are summed over ranks."""
    for name in names:
        metric.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient in float64; NaN for 0 / 0."""
    return numerator.double() / denominator.double()


def require_equal_lengths(**sequences: object) -> None:
    """Check that arguments hold one entry a sample each.

    Raises:
        ValueError: if their lengths differ.
    """
    lengths = {name: len(values) for name, values in sequences.items()}  # type: ignore[arg-type]
    if len(set(lengths.values())) > 1:
        names = " and ".join(lengths)
        raise ValueError(f"{names} must be of equal length, got {', '.join(map(str, lengths.values()))}")
