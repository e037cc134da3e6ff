"""What trained models are compared with: functions of a prompt's covariates, labels and query, and their risks.

Covariates are ``[batch, L, d]``, labels ``[batch, L]``, queries ``[batch, d]``, and predictions ``[batch]``.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attn.icl_regression.task import Prompts, Task, random_stream

__all__ = [
    "debiased_gradient_descent",
    "gradient_descent",
    "preconditioned_gradient_descent",
    "ridge",
    "risks",
    "softmax_heads",
    "split_prompts",
]

CHUNK = 4096  # prompts that are held at once


def gradient_descent(covariates: Tensor, labels: Tensor, query: Tensor, *, step: float) -> Tensor:
    """One step of gradient descent from zero: step / L * sum_l y_l <x_l, x_q>."""
    return step * (labels * _scores(covariates, query)).mean(-1)


def debiased_gradient_descent(covariates: Tensor, labels: Tensor, query: Tensor, *, step: float) -> Tensor:
    """The same on covariates less their mean over the prompt: step / L * sum_l y_l <x_l - mean x, x_q>."""
    return gradient_descent(covariates - covariates.mean(-2, keepdim=True), labels, query, step=step)


def preconditioned_gradient_descent(
    covariates: Tensor, labels: Tensor, query: Tensor, *, preconditioner: Tensor
) -> Tensor:
    """1 / L * sum_l y_l <x_l, Gamma x_q> for Gamma ``[d, d]``."""
    return gradient_descent(covariates, labels, query @ preconditioner.mT.to(query), step=1.0)


def ridge(covariates: Tensor, labels: Tensor, query: Tensor, *, noise_var: float) -> Tensor:
    """The Bayes predictor <x_q, (X^T X + sigma^2 d I)^-1 X^T y>; noise_var is sigma^2."""
    d = covariates.shape[-1]
    identity = torch.eye(d, dtype=covariates.dtype, device=covariates.device)
    moments = covariates.mT @ covariates + noise_var * d * identity
    return (torch.linalg.solve(moments, covariates.mT @ labels[..., None])[..., 0] * query).sum(-1)


def softmax_heads(covariates: Tensor, labels: Tensor, query: Tensor, *, omega: Tensor, mu: Tensor) -> Tensor:
    """The model with the patterns exactly: sum_h mu_h <y, softmax(omega_h X x_q)>, omega and mu ``[heads]``."""
    scores = _scores(covariates, query)[..., None, :] * omega.to(query)[:, None]
    return (scores.softmax(-1) @ labels[..., None])[..., 0] @ mu.to(query)


def split_prompts(prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """Covariates, labels and query of prompts with one label.

    Raises:
        ValueError: if there are several labels.
    """
    if prompts.target.shape[-1] != 1:
        raise ValueError(f"prompts must have one label, got {prompts.target.shape[-1]}")
    return prompts.context[..., :-1], prompts.context[..., -1], prompts.query[..., :-1]


Predictor = Callable[[Prompts], Tensor]


@torch.no_grad()
def risks(
    predictors: Mapping[str, Predictor],
    task: Task,
    count: int,
    *,
    seed: int = 0,
    length: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Mean squared errors on the same fresh prompts.

    Args:
        predictors: functions from prompts to predictions ``[..., batch, n_out]``.
        task: what draws the prompts.
        count: number of prompts.
        seed: of the prompts.
        length: tokens of a context; None is the task's.
        device: where to compute.

    Returns: for each predictor, float64 ``[...]`` on the CPU; the mean over prompts and labels.
    """
    sums: dict[str, Tensor] = {}
    for number, start in enumerate(range(0, count, CHUNK)):
        drawn = task.prompts(min(CHUNK, count - start), random_stream(seed, "test", number), length=length)
        prompts = Prompts(*(part.to(device) for part in drawn))
        for name, predict in predictors.items():
            errors = (predict(prompts) - prompts.target).double().square().mean(-1).sum(-1).cpu()
            sums[name] = sums[name] + errors if name in sums else errors
    return {name: total / count for name, total in sums.items()}


def _scores(covariates: Tensor, query: Tensor) -> Tensor:
    return (covariates @ query[..., None])[..., 0]
