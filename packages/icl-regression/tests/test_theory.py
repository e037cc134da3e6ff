"""Closed forms against loops, autograd, Monte Carlo and each other."""

import math

import pytest
import torch

from attn.icl_regression import (
    LinearRegressionTask,
    bayes_risk_limit,
    best_mu,
    best_preconditioner,
    best_step,
    debiased_gradient_descent,
    gradient_descent,
    gradient_descent_risk,
    gradient_descent_risk_limit,
    gradient_flow,
    preconditioned_gradient_descent,
    random_stream,
    reduced_loss,
    ridge,
    risks,
    single_head_optimum,
    softmax_heads,
    split_prompts,
)

OMEGA = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)
MU = torch.tensor([1.2, -0.7, 0.5], dtype=torch.float64)


def loss(omega, mu, d, length, noise_var):
    """The reduced loss, term by term."""
    total = 1 + noise_var
    for i in range(len(omega)):
        total -= 2 * mu[i] * omega[i]
        for j in range(len(omega)):
            noise = (1 + noise_var) / length * math.exp(d * omega[i] * omega[j])
            total += mu[i] * mu[j] * (omega[i] * omega[j] + noise)
    return total


def test_reduced_loss_is_its_equation():
    options = {"d": 7, "length": 30, "noise_var": 0.4}
    assert float(reduced_loss(OMEGA, MU, **options)) == pytest.approx(loss(OMEGA.tolist(), MU.tolist(), 7, 30, 0.4))
    batch = reduced_loss(torch.stack([OMEGA, MU]), torch.stack([MU, OMEGA]))
    assert float(batch[1]) == pytest.approx(loss(MU.tolist(), OMEGA.tolist(), 5, 40, 0.1))


def test_best_mu_solves_for_the_minimum():
    mu = best_mu(OMEGA).requires_grad_()
    (slope,) = torch.autograd.grad(reduced_loss(OMEGA, mu), mu)
    assert slope.abs().max() < 1e-10
    gram = OMEGA.outer(OMEGA) + 1.1 / 40 * (5 * OMEGA.outer(OMEGA)).exp()
    torch.testing.assert_close(mu.detach(), torch.linalg.lstsq(gram, OMEGA[:, None]).solution[:, 0])
    shared = best_mu(torch.tensor([0.3, 0.3, -0.3], dtype=torch.float64))  # a singular system
    assert shared.isfinite().all()
    assert float(shared[0]) == pytest.approx(float(shared[1]))


def test_gradient_flow_follows_the_gradient_of_half_the_loss():
    omega, mu = OMEGA.clone().requires_grad_(), MU.clone().requires_grad_()
    slopes = torch.autograd.grad(reduced_loss(omega, mu, d=4, length=20, noise_var=0.3) / 2, (omega, mu))
    omegas, mus = gradient_flow(OMEGA, MU, steps=1, step_size=0.01, d=4, length=20, noise_var=0.3)
    torch.testing.assert_close(omegas, torch.stack([OMEGA, OMEGA - 0.01 * slopes[0]]))
    torch.testing.assert_close(mus, torch.stack([MU, MU - 0.01 * slopes[1]]))


def test_gradient_flow_ends_where_it_was_computed_before():
    """Independently computed ends of 3,000 steps of 0.01."""
    omega, mu = gradient_flow(torch.tensor([0.08, -0.06]).double(), torch.tensor([0.05, -0.04]).double())
    assert omega[-1].tolist() == pytest.approx([0.3856, -0.3877], abs=1e-4)
    assert mu[-1].tolist() == pytest.approx([1.108, -1.093], abs=1e-3)
    omega, mu = gradient_flow(torch.tensor([0.08]), torch.tensor([0.05]))
    assert omega.dtype == torch.float64
    assert (float(omega[-1]), float(mu[-1])) == (pytest.approx(0.455, abs=1e-3), pytest.approx(1.584, abs=1e-3))


def test_the_single_head_optimum_is_stationary_and_least():
    omega, mu = (torch.tensor([scale], dtype=torch.float64, requires_grad=True) for scale in single_head_optimum())
    value = reduced_loss(omega, mu)
    assert max(float(slope.abs()) for slope in torch.autograd.grad(value, (omega, mu))) < 1e-12
    sizes = torch.linspace(0.05, 1.5, 60, dtype=torch.float64)[:, None]
    assert float(value.detach()) <= float(reduced_loss(sizes, best_mu(sizes)).min()) + 1e-12


def test_two_heads_approach_their_infimum_as_omega_falls():
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    values = [float(reduced_loss(size * signs, best_mu(size * signs))) for size in (0.4, 0.2, 0.1, 0.01)]
    limit = gradient_descent_risk_limit(5 / 40, 0.1)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(limit, abs=1e-5)
    assert values[-1] > limit


def test_the_best_step_is_best_and_its_risk_is_measured():
    options = {"d": 4, "length": 12, "noise_var": 0.3}
    step = best_step(**options)
    around = [gradient_descent_risk(step * scale, **options) for scale in (0.99, 1.0, 1.01)]
    assert around[1] == min(around) == pytest.approx(1.3 - step)
    task = LinearRegressionTask(**options)
    rules = {
        "best": lambda p: gradient_descent(*split_prompts(p), step=step)[:, None],
        "large": lambda p: gradient_descent(*split_prompts(p), step=1.5)[:, None],
    }
    measured = risks(rules, task, 40_000, seed=1)
    assert float(measured["best"]) == pytest.approx(around[1], rel=0.03)
    assert float(measured["large"]) == pytest.approx(gradient_descent_risk(1.5, **options), rel=0.05)


def test_limits_are_those_of_ridge_and_of_gradient_descent():
    task = LinearRegressionTask(d=30, length=150, noise_var=1.0)
    rules = {"ridge": lambda p: ridge(*split_prompts(p), noise_var=1.0)[:, None]}
    assert float(risks(rules, task, 8192)["ridge"]) == pytest.approx(bayes_risk_limit(0.2, 1.0), rel=0.05)
    large = 1 + 1.0 - best_step(d=10**6, length=5 * 10**6, noise_var=1.0)
    assert gradient_descent_risk_limit(0.2, 1.0) == pytest.approx(large, rel=1e-5)
    assert bayes_risk_limit(0.2, 3.0) == pytest.approx(3.405, abs=1e-3)
    assert bayes_risk_limit(0.125, 0.1) == pytest.approx(0.1141, abs=1e-4)


def test_the_best_preconditioner_is_best_and_known_for_isotropic_covariates():
    identity = best_preconditioner(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(identity, best_step() * torch.eye(5, dtype=torch.float64))
    task = LinearRegressionTask(correlation=0.5)
    best = best_preconditioner(task.covariance)

    def rule(gamma):
        return lambda p: preconditioned_gradient_descent(*split_prompts(p), preconditioner=gamma)[:, None]

    nearby = {f"{i}{j}{s}": best.clone() for i in range(2) for j in range(2) for s in (-1, 1)}
    for name, gamma in nearby.items():
        gamma[int(name[0]), int(name[1])] += int(name[2:]) * 0.4
    measured = risks({"best": rule(best)} | {name: rule(gamma) for name, gamma in nearby.items()}, task, 40_000)
    assert all(float(measured["best"]) < float(measured[name]) for name in nearby)


def test_two_heads_become_debiased_gradient_descent_with_an_error_of_the_second_order():
    prompts = LinearRegressionTask().prompts(64, random_stream(0, "test", 0))
    covariates, labels, query = (part.double() for part in split_prompts(prompts))
    debiased = debiased_gradient_descent(covariates, labels, query, step=0.9)
    errors = []
    for size in (0.01, 0.02):
        omega = size * torch.tensor([1.0, -1.0], dtype=torch.float64)
        predictions = softmax_heads(covariates, labels, query, omega=omega, mu=0.45 / omega)
        errors.append(float((predictions - debiased).norm()))
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.02)
