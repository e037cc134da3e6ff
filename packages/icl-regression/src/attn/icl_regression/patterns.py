"""How far the circuits of a trained model show the paper's patterns, with one task and with several."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attn.icl_regression.circuits import Circuits

__all__ = ["MultiTaskReport", "PatternReport", "multi_task_report", "pattern_report", "scales"]

ACTIVE = 0.05  # a head is active from this share of the largest product of omega and mu


def scales(circuits: Circuits) -> tuple[Tensor, Tensor]:
    """Omega and mu of every head, ``[heads]``: mean query-key diagonal on the covariates, and the label's entry.

    Args:
        circuits: of a model with one label.
    """
    d = circuits.query_key.shape[-1] - 1
    return circuits.query_key.diagonal(dim1=-2, dim2=-1)[:, :d].mean(-1), circuits.output_value[:, 0, -1]


@dataclass(frozen=True)
class PatternReport:
    """The patterns of a model with one label.

    Attributes:
        omega: mean of the query-key diagonal on the covariates, ``[heads]``.
        mu: the label's entry of the output-value circuit, ``[heads]``.
        active: whether ``|omega * mu|`` exceeds 0.05 of the largest, bool ``[heads]``; the others are dummies.
        diagonal: share of the squared query-key circuit on the diagonal, mean over active heads. The column of the
            query's label, which is zero, does not count.
        homogeneity: standard deviation of the diagonal over its mean's size, mean over active heads.
        last_entry: the label's share of the squared output-value circuit, mean over active heads.
        zero_sum: absolute sum of mu over the largest of them; 0 is perfect.
        sign_match: share of the active heads whose omega and mu have one sign.
        equal_scale: largest over smallest ``|omega|`` of the active heads.
        step: sum of omega * mu, the size of the step of gradient descent.
    """

    omega: Tensor
    mu: Tensor
    active: Tensor
    diagonal: float
    homogeneity: float
    last_entry: float
    zero_sum: float
    sign_match: float
    equal_scale: float
    step: float

    @property
    def opposite(self) -> bool:
        """Whether there are active heads of both signs."""
        signs = self.mu[self.active].sign()
        return bool((signs > 0).any() and (signs < 0).any())

    @property
    def head_types(self) -> list[str]:
        """``"positive"``, ``"negative"`` or ``"dummy"`` for each head."""
        names = ["positive" if mu > 0 else "negative" for mu in self.mu.tolist()]
        return [name if active else "dummy" for name, active in zip(names, self.active.tolist(), strict=True)]

    @property
    def complete(self) -> bool:
        """All patterns: diagonal and last_entry >= 0.95, homogeneity <= 0.1, zero_sum <= 0.05, heads of both signs."""
        shares = self.diagonal >= 0.95 and self.homogeneity <= 0.1 and self.last_entry >= 0.95
        return shares and self.zero_sum <= 0.05 and self.opposite


def pattern_report(circuits: Circuits) -> PatternReport:
    """Measure the patterns of one model.

    Args:
        circuits: of a model with one label, as `MultiHeadICL.circuits_of` gives them.

    Raises:
        ValueError: if there is more than one label.
    """
    query_key, output_value = circuits
    if output_value.shape[1] != 1:
        raise ValueError(f"circuits must be of a model with one label, got {output_value.shape[1]}")
    omega, mu = scales(circuits)
    product = (omega * mu).abs()
    active = product > ACTIVE * product.max()
    covariates = query_key[active][..., :-1]  # the query's label is zero
    diagonal = covariates.diagonal(dim1=-2, dim2=-1)
    values = output_value[active][:, 0]
    size = omega[active].abs()
    return PatternReport(
        omega=omega,
        mu=mu,
        active=active,
        diagonal=float((diagonal.square().sum(-1) / covariates.square().sum((-2, -1))).mean()),
        homogeneity=float((diagonal.std(-1, correction=0) / diagonal.mean(-1).abs()).mean()),
        last_entry=float((values[:, -1].square() / values.square().sum(-1)).mean()),
        zero_sum=float(mu.sum().abs() / mu.abs().max()),
        sign_match=float((omega[active].sign() == mu[active].sign()).float().mean()),
        equal_scale=float(size.max() / size.min()),
        step=float((omega * mu).sum()),
    )


@dataclass(frozen=True)
class MultiTaskReport:
    """The patterns of a model with several labels.

    Attributes:
        diagonals: query-key diagonal on the covariates, ``[heads, d]``.
        mu: entry of each label in the output of its own task, ``[heads, tasks]``.
        active: whether a head's share in the predictions exceeds 0.05 of the largest head's, bool ``[heads]``.
        participation: tasks that a head serves, mean over active heads: (sum c)^2 / sum c^2 for c of a task ``|mu|``
            times the mean size of the diagonal on its coordinates; between 1 and the number of tasks.
        projector: correlation of a head's diagonal, up to its sign, with the indicator of the coordinates of the task
            that it serves most, mean over active heads.
        cross: largest entry of one task's label in the output of another, over the largest of all.
        zero_sum: absolute sum of mu over heads over its largest entry, for the worst task.
    """

    diagonals: Tensor
    mu: Tensor
    active: Tensor
    participation: float
    projector: float
    cross: float
    zero_sum: float


def multi_task_report(circuits: Circuits, indicators: Tensor) -> MultiTaskReport:
    """Measure the patterns of one model with several labels.

    Args:
        circuits: of the model.
        indicators: 1 where a coordinate belongs to a task, ``[tasks, d]``, as `MultiTaskRegression.indicators`.

    Raises:
        ValueError: if there are not as many labels as tasks.
    """
    query_key, output_value = circuits
    tasks, d = indicators.shape
    if output_value.shape[1:] != (tasks, d + tasks):
        raise ValueError(
            f"circuits must be of a model with {tasks} labels and {d} covariates, "
            f"got output_value {tuple(output_value.shape)}"
        )
    indicators = indicators.to(query_key)
    diagonals = query_key.diagonal(dim1=-2, dim2=-1)[:, :d]
    labels = output_value[..., d:]  # [heads, outputs, labels]
    mu = labels.diagonal(dim1=-2, dim2=-1)
    shares = mu.abs() * (diagonals.abs() @ indicators.mT / indicators.sum(-1))
    active = shares.sum(-1) > ACTIVE * shares.sum(-1).max()
    served = indicators[shares.argmax(-1)]
    foreign = labels.masked_fill(torch.eye(tasks, dtype=torch.bool, device=labels.device), 0)
    return MultiTaskReport(
        diagonals=diagonals,
        mu=mu,
        active=active,
        participation=float((shares.sum(-1).square() / shares.square().sum(-1))[active].mean()),
        projector=float(_correlation(diagonals, served).abs()[active].mean()),
        cross=float(foreign.abs().max() / labels.abs().max()),
        zero_sum=float((mu.sum(0).abs() / mu.abs().amax(0)).max()),
    )


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
