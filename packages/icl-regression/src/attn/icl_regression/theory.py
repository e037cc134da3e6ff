"""Closed forms: the reduced loss of the two scales of each head, its minimizers and gradient flow, and risks.

Throughout, x ~ N(0, I_d) and beta ~ N(0, I / d), and risks are mean squared errors that include the noise of the
query's label.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "bayes_risk_limit",
    "best_mu",
    "best_preconditioner",
    "best_step",
    "gradient_descent_risk",
    "gradient_descent_risk_limit",
    "gradient_flow",
    "reduced_loss",
    "single_head_optimum",
]


def reduced_loss(omega: Tensor, mu: Tensor, *, d: int = 5, length: int = 40, noise_var: float = 0.1) -> Tensor:
    r"""Approximate risk of heads with circuits omega I and mu e_y, for L large against exp(d omega^2).

    .. math:: 1 + \sigma^2 - 2 \mu^\top \omega
        + \mu^\top \big[\omega \omega^\top + \tfrac{1 + \sigma^2}{L} \exp(d\, \omega \omega^\top)\big] \mu

    Args:
        omega: scale of each head's query-key circuit, ``[..., heads]``.
        mu: scale of its output-value circuit, ``[..., heads]``.
        d: number of covariates.
        length: tokens of a context, L.
        noise_var: sigma^2.

    Returns: ``[...]``. Differentiable.
    """
    gram = _gram(omega, d, length, noise_var)
    return 1 + noise_var - 2 * (mu * omega).sum(-1) + (mu * (gram @ mu[..., None])[..., 0]).sum(-1)


def best_mu(omega: Tensor, *, d: int = 5, length: int = 40, noise_var: float = 0.1) -> Tensor:
    """The mu that minimizes `reduced_loss`, ``[..., heads]``; the shortest where heads share an omega.

    Args:
        omega: ``[..., heads]``.
        d: number of covariates.
        length: tokens of a context, L.
        noise_var: sigma^2.
    """
    return (torch.linalg.pinv(_gram(omega, d, length, noise_var), hermitian=True) @ omega[..., None])[..., 0]


def gradient_flow(
    omega: Tensor,
    mu: Tensor,
    *,
    steps: int = 3000,
    step_size: float = 0.01,
    d: int = 5,
    length: int = 40,
    noise_var: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Gradient flow of half the `reduced_loss` by Euler's method, in float64.

    Args:
        omega: initial scales of the query-key circuits, ``[..., heads]``.
        mu: of the output-value circuits, ``[..., heads]``.
        steps: number of steps.
        step_size: time of a step; at most 0.01 keeps exp(d omega^2) from running away.
        d: number of covariates.
        length: tokens of a context, L.
        noise_var: sigma^2.

    Returns: omega and mu at every step, float64 ``[steps + 1, ..., heads]``.
    """
    omega, mu = omega.double(), mu.double()
    omegas, mus = [omega], [mu]
    for _ in range(steps):
        noise = (1 + noise_var) / length * (d * omega[..., :, None] * omega[..., None, :]).exp()
        product = (mu * omega).sum(-1, keepdim=True)
        mu_slope = -omega + product * omega + (noise * mu[..., None, :]).sum(-1)
        omega_slope = -mu + product * mu + d * mu * (noise * (mu * omega)[..., None, :]).sum(-1)
        omega, mu = omega - step_size * omega_slope, mu - step_size * mu_slope
        omegas.append(omega)
        mus.append(mu)
    return torch.stack(omegas), torch.stack(mus)


def single_head_optimum(*, d: int = 5, length: int = 40, noise_var: float = 0.1) -> tuple[float, float]:
    """Omega and mu of one head that minimize `reduced_loss`: 1 / sqrt(d), and sqrt(d) / (1 + e (1 + sigma^2) d / L)."""
    return d**-0.5, d**0.5 / (1 + math.e * (1 + noise_var) * d / length)


def gradient_descent_risk(step: float, *, d: int = 5, length: int = 40, noise_var: float = 0.1) -> float:
    """Exact risk of one step of gradient descent from zero, y = step / L * sum_l y_l <x_l, x_q>.

    Args:
        step: size of the step, eta.
        d: number of covariates.
        length: tokens of a context, L.
        noise_var: sigma^2.
    """
    return 1 + noise_var - 2 * step + step**2 * (1 + (d + 1 + noise_var * d) / length)


def best_step(*, d: int = 5, length: int = 40, noise_var: float = 0.1) -> float:
    """The step that minimizes `gradient_descent_risk`; the risk is then 1 + sigma^2 less this step."""
    return 1 / (1 + (d + 1 + noise_var * d) / length)


def gradient_descent_risk_limit(ratio: float, noise_var: float) -> float:
    """Risk of the best step where d and L grow at d / L = ratio; also the infimum of the two-head `reduced_loss`."""
    return 1 + noise_var - 1 / (1 + ratio * (1 + noise_var))


def bayes_risk_limit(ratio: float, noise_var: float) -> float:
    """Risk of the Bayes predictor (ridge with penalty sigma^2 d) where d and L grow at d / L = ratio."""
    shift = noise_var + (1 - ratio) / ratio
    return (noise_var + (ratio - 1) / ratio + math.sqrt(4 * noise_var + shift**2)) / 2


def best_preconditioner(covariance: Tensor, *, length: int = 40, noise_var: float = 0.1) -> Tensor:
    """The best Gamma of pre-conditioned gradient descent, y = sum_l y_l <x_l, Gamma x_q> / L, for x ~ N(0, Sigma).

    ((1 + 1 / L) Sigma + (tr Sigma + sigma^2 d) / L I)^-1.

    Args:
        covariance: Sigma, ``[d, d]``.
        length: tokens of a context, L.
        noise_var: sigma^2.
    """
    d = len(covariance)
    identity = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    ridge = (covariance.trace() + noise_var * d) / length
    return torch.linalg.inv((1 + 1 / length) * covariance + ridge * identity)


def _gram(omega: Tensor, d: int, length: int, noise_var: float) -> Tensor:
    products = omega[..., :, None] * omega[..., None, :]
    return products + (1 + noise_var) / length * (d * products).exp()
