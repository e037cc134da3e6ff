"""The prompts: linear regression in context, with one task or several on overlapping coordinates."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["LinearRegressionTask", "MultiTaskRegression", "Prompts", "Task", "random_stream"]

Stream = Literal["train", "test"]


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        context: tokens ``[batch, L, d_token]``, each a covariate followed by its labels.
        query: ``[batch, d_token]``, a covariate followed by zeros.
        target: the query's labels, ``[batch, n_out]``.
    """

    context: Tensor
    query: Tensor
    target: Tensor


class Task(Protocol):
    """What draws prompts."""

    @property
    def d(self) -> int:
        """Number of covariates."""

    @property
    def length(self) -> int:
        """Tokens of a context, L."""

    @property
    def n_out(self) -> int:
        """Labels of a token."""

    def prompts(self, count: int, random: np.random.Generator, *, length: int | None = None) -> Prompts:
        """``count`` fresh prompts in float32, each with a task vector of its own.

        Args:
            count: number of prompts.
            random: what they are drawn from.
            length: tokens of the context; None is the task's.
        """


@dataclass(frozen=True)
class LinearRegressionTask:
    """Linear regression: x ~ N(0, Sigma), beta ~ N(0, I / d), y = <beta, x> + noise.

    The defaults are the paper's.

    Attributes:
        d: number of covariates.
        length: tokens of a context, L.
        noise_var: variance of the noise, sigma^2.
        correlation: rho; Sigma is rho to the power of the distance of two coordinates, and the identity for 0. The
            paper's anisotropic covariates have 0.5.
        noisy_query: whether the query's label, the target, has noise; without it a risk is an excess risk.

    Raises:
        ValueError: if d or length is not positive, noise_var negative, or correlation not in [0, 1).
    """

    d: int = 5
    length: int = 40
    noise_var: float = 0.1
    correlation: float = 0.0
    noisy_query: bool = True

    n_out = 1

    def __post_init__(self) -> None:
        for name in ("d", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.noise_var >= 0:
            raise ValueError(f"noise_var must be at least 0, got {self.noise_var}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must lie in [0, 1), got {self.correlation}")

    @property
    def covariance(self) -> Tensor:
        """Sigma, float64 ``[d, d]``."""
        places = torch.arange(self.d, dtype=torch.float64)
        return self.correlation ** (places[:, None] - places).abs()

    def prompts(self, count: int, random: np.random.Generator, *, length: int | None = None) -> Prompts:
        """``count`` fresh prompts in float32, each with a task vector of its own.

        Args:
            count: number of prompts.
            random: what they are drawn from.
            length: tokens of the context; None is the task's.
        """
        tokens = (self.length if length is None else length) + 1
        x, noise, beta = _normal(random, (count, tokens, self.d), (count, tokens, 1), (count, self.d, 1))
        if self.correlation:
            x = x @ torch.linalg.cholesky(self.covariance).mT.float()
        clean = x @ beta * self.d**-0.5
        y = clean + noise * self.noise_var**0.5
        return _as_prompts(x, y, (y if self.noisy_query else clean)[:, -1])


@dataclass(frozen=True)
class MultiTaskRegression:
    """Several regressions of the same covariates, each on coordinates of its own, which may overlap.

    x ~ N(0, I_d); of task t, beta_t ~ N(0, I) on its d_t coordinates and the noise has variance ``noise_var * d_t``.
    The query's targets are without noise. The defaults are the paper's: coordinates 1 to 4 and 3 to 6.

    Attributes:
        supports: the coordinates of each task, from 0.
        length: tokens of a context, L.
        noise_var: variance of the noise for each coordinate.

    Raises:
        ValueError: if a task has no coordinates or the same twice, length is not positive, or noise_var negative.
    """

    supports: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3), (2, 3, 4, 5))
    length: int = 48
    noise_var: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "supports", tuple(tuple(support) for support in self.supports))
        valid = all(support and len(set(support)) == len(support) and min(support) >= 0 for support in self.supports)
        if not (self.supports and valid):
            raise ValueError(f"supports must hold different coordinates for each task, got {self.supports}")
        if self.length < 1:
            raise ValueError(f"length must be positive, got {self.length}")
        if not self.noise_var >= 0:
            raise ValueError(f"noise_var must be at least 0, got {self.noise_var}")

    @property
    def d(self) -> int:
        """Number of covariates: one more than the largest coordinate."""
        return 1 + max(max(support) for support in self.supports)

    @property
    def n_out(self) -> int:
        """Number of tasks."""
        return len(self.supports)

    @property
    def indicators(self) -> Tensor:
        """1 where a coordinate belongs to a task, float32 ``[tasks, d]``."""
        indicators = torch.zeros(self.n_out, self.d)
        for row, support in zip(indicators, self.supports, strict=True):
            row[list(support)] = 1
        return indicators

    def prompts(self, count: int, random: np.random.Generator, *, length: int | None = None) -> Prompts:
        """``count`` fresh prompts in float32, each with task vectors of its own.

        Args:
            count: number of prompts.
            random: what they are drawn from.
            length: tokens of the context; None is the task's.
        """
        tokens = (self.length if length is None else length) + 1
        shapes = (count, tokens, self.d), (count, tokens, self.n_out), (count, self.d, self.n_out)
        x, noise, beta = _normal(random, *shapes)
        clean = x @ (beta * self.indicators.mT)
        return _as_prompts(x, clean + noise * (self.noise_var * self.indicators.sum(1)).sqrt(), clean[:, -1])


def random_stream(seed: int, stream: Stream, number: int) -> np.random.Generator:
    """The draws of a batch, a function of its number alone: any batch can be drawn again, by any process.

    Args:
        seed: of the run.
        stream: training and test prompts are independent.
        number: of the batch.
    """
    key = np.array([seed, ("train", "test").index(stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, number], dtype=np.uint64)))


def _normal(random: np.random.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Standard normal numbers of several shapes, drawn at once."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    drawn = torch.from_numpy(random.standard_normal(sum(sizes), dtype=np.float32))
    return [part.view(shape) for part, shape in zip(drawn.split(sizes), shapes, strict=True)]


def _as_prompts(x: Tensor, y: Tensor, target: Tensor) -> Prompts:
    tokens = torch.cat([x, y], dim=-1)
    query = torch.cat([x[:, -1], torch.zeros_like(y[:, -1])], dim=-1)
    return Prompts(tokens[:, :-1], query, target)
