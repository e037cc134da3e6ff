"""Gates: the measured figures that decide whether a checkpoint may be shipped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class Figure(BaseModel):
    """What one gate measured, and the band in which it had to lie."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")

    name: str
    value: float
    low: float | None
    high: float | None
    samples: int

    @property
    def passed(self) -> bool:
        """Whether the value lies in the band, ends included; NaN does not."""
        above = self.value >= (-torch.inf if self.low is None else self.low)
        below = self.value <= (torch.inf if self.high is None else self.high)
        return above and below

    @property
    def band(self) -> str:
        """The band as text, such as ``0.8 .. 0.9`` or ``>= 0.99``."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} .. {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure that a model must reach, with one side or two: several papers need an imperfect model.

    Args:
        name: what is measured, such as ``accuracy``.
        measure: takes the model, in evaluation mode, and the number of samples; returns the figure. It may draw from
            torch's global generator, which is seeded before every call.
        low, high: ends of the band; at least one.
        samples: samples of the full form, which decides.
        quick_samples: samples of the quick form, which CI runs on the shipped file.
        quick_slack: how much the quick form widens the band on each side, in units of the figure.
        rounding: largest change of the figure that storing the weights in half precision may cause; the default is
            0.1 points of a proportion.

    Raises:
        ValueError: if the band has no end, is empty, or a number of samples is not positive.
    """

    name: str
    measure: Callable[[nn.Module, int], float]
    low: float | None = None
    high: float | None = None
    samples: int = 1000
    quick_samples: int = 128
    quick_slack: float = 0.05
    rounding: float = 0.001

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"gate {self.name!r} must have a low or a high end, got neither")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low of gate {self.name!r} must be at most high {self.high}, got {self.low}")
        if self.samples < 1 or self.quick_samples < 1:
            raise ValueError(f"samples of gate {self.name!r} must be positive, got {self.samples, self.quick_samples}")


def evaluate(gates: Sequence[Gate], model: nn.Module, *, seed: int, quick: bool = False) -> list[Figure]:
    """The figures of all gates: full, or quick with fewer samples and a wider band.

    Puts the model in evaluation mode. Seeds torch's global generator before each gate and restores it.
    """
    model.eval()
    figures = []
    for gate in gates:
        samples, slack = (gate.quick_samples, gate.quick_slack) if quick else (gate.samples, 0.0)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            value = float(gate.measure(model, samples))
        low = None if gate.low is None else gate.low - slack
        high = None if gate.high is None else gate.high + slack
        figures.append(Figure(name=gate.name, value=value, low=low, high=high, samples=samples))
    return figures
