"""By which factor the decay multiplies a positive score: the rule of distance that all its forms follow."""

from typing import NamedTuple

import torch
from torch import Tensor


class Decay(NamedTuple):
    """The factor of a positive score by the distance between query and key.

    Args:
        half_window: the largest distance at which a score is kept.
        alpha: factor beyond it.
        period: distance from one risk zone to the next, the first being one period away; None for no risk zones.
        risk_half_width: the largest deviation from a multiple of the period within a zone.
        beta: factor in a risk zone beyond the window.
    """

    half_window: int
    alpha: float
    period: float | None
    risk_half_width: float
    beta: float

    def numbers(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The fields in their order as one tensor, 0 for no period."""
        fields = self._replace(period=self.period or 0.0)
        return torch.tensor(list(fields), dtype=dtype, device=device)

    def factor(self, of_query: Tensor, of_key: Tensor, numbers: Tensor) -> Tensor:
        """The factor between places that broadcast, in the dtype of ``numbers``; 1 where either place is negative."""
        half_window, factor, period, risk_half_width, beta = (numbers[field] for field in range(5))
        distance = (of_query - of_key).abs()
        if self.period is not None:
            turns = (distance / period).round()
            at_risk = (turns >= 1) & ((distance - turns * period).abs() <= risk_half_width)
            factor = torch.where(at_risk, beta, factor)
        kept = (distance <= half_window) | (of_query < 0) | (of_key < 0)
        return torch.where(kept, torch.ones_like(half_window), factor)

    @property
    def is_neutral(self) -> bool:
        """Whether every factor is 1."""
        return self.alpha == 1 and (self.period is None or self.beta == 1)
