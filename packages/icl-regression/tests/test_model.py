"""The model and the estimators against the equations as float64 loops, and against what holds by mathematics."""

import math

import numpy as np
import pytest
import torch

from attn.icl_regression import (
    LinearICL,
    LinearRegressionTask,
    MultiHeadICL,
    Prompts,
    SideBySide,
    debiased_gradient_descent,
    gradient_descent,
    preconditioned_gradient_descent,
    random_stream,
    ridge,
    risks,
    softmax_heads,
    split_prompts,
)
from attn.icl_regression.experiments import NonnegativeICL, PermutedICL, patterned_model

TASK = LinearRegressionTask(d=3, length=7)


def draw(task=TASK, count=4, number=0):
    return Prompts(*(part.double() for part in task.prompts(count, random_stream(0, "test", number))))


def double(model_class, *args, **options):
    torch.manual_seed(0)
    return model_class(*args, **options).double()


def equations(model, first, heads, context, query, linear_length=None):
    """One model's prediction for one prompt, head by head and token by token."""
    width = len(query)
    n_out = model.output.shape[1]
    prediction = [0.0] * n_out
    for head in range(first, first + heads):
        q = model.query[head] @ query
        scores = [float((model.key[head] @ token) @ q) / math.sqrt(width) for token in context]
        if linear_length is None:
            exponentials = [math.exp(score) for score in scores]
            weights = [value / sum(exponentials) for value in exponentials]
        else:
            weights = [score / linear_length for score in scores]
        attended = sum(w * (model.value[head] @ token) for w, token in zip(weights, context, strict=True))
        for out in range(n_out):
            prediction[out] += float(model.output[head, out] @ attended)
    return prediction


@pytest.mark.parametrize("length", [1, 7, 13])
@pytest.mark.parametrize("linear", [False, True])
def test_predictions_are_those_of_the_equations(linear, length):
    heads = (1, 3, 2)
    torch.manual_seed(0)
    model = LinearICL(5, heads, 2, length=7) if linear else MultiHeadICL(5, heads, 2)
    model = model.double()
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(4, length, 5, generator=generator, dtype=torch.float64)
    query = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        predictions = model(context, query)
        expected = [
            [equations(model, first, number, z, q, 7 if linear else None) for z, q in zip(context, query, strict=True)]
            for first, number in ((0, 1), (1, 3), (4, 2))
        ]
    torch.testing.assert_close(predictions, torch.tensor(expected, dtype=torch.float64))


def test_a_model_alone_is_the_same_as_among_others():
    several = double(MultiHeadICL, 4, (1, 2, 4))
    alone = double(MultiHeadICL, 4, (2,))
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(getattr(several, name)[1:3])
    prompts = draw()
    torch.testing.assert_close(alone(prompts.context, prompts.query)[0], several(prompts.context, prompts.query)[1])
    for one, other in zip(alone.circuits_of(0), several.circuits_of(1), strict=True):
        assert torch.equal(one, other)


def test_side_by_side_is_each_model_in_turn():
    first, second = double(MultiHeadICL, 4, (1, 2)), double(LinearICL, 4, (3,), length=7)
    both, prompts = SideBySide(first, second), draw()
    assert both.heads == (1, 2, 3)
    expected = torch.cat([first(prompts.context, prompts.query), second(prompts.context, prompts.query)])
    assert torch.equal(both(prompts.context, prompts.query), expected)
    assert both.circuits().query_key.shape == (6, 4, 4)


def test_gradients_match_finite_differences():
    model, prompts = double(MultiHeadICL, 4, (1, 2)), draw(count=2)
    parameters = dict(model.named_parameters())

    def loss(*values):
        named = dict(zip(parameters, values, strict=True))
        predictions = torch.func.functional_call(model, named, (prompts.context, prompts.query))
        return (predictions - prompts.target).square().mean((1, 2))

    assert torch.autograd.gradcheck(loss, tuple(value.detach().requires_grad_() for value in parameters.values()))


def test_the_order_of_the_context_changes_nothing():
    model, prompts = double(MultiHeadICL, 4, (2,)), draw()
    torch.testing.assert_close(
        model(prompts.context, prompts.query), model(prompts.context.flip(1), prompts.query), rtol=1e-12, atol=1e-12
    )


def test_a_model_with_the_patterns_is_the_closed_form():
    omega, mu = torch.tensor([0.3, -0.2, 0.5]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    prompts = draw()
    with torch.no_grad():
        predictions = patterned_model(omega, mu, d=3)(prompts.context, prompts.query)[0, :, 0]
    torch.testing.assert_close(predictions, softmax_heads(*split_prompts(prompts), omega=omega, mu=mu))


def test_estimators_are_their_equations():
    covariates, labels, query = split_prompts(draw())
    omega, mu = torch.tensor([0.4, -0.7]).double(), torch.tensor([1.5, -1.0]).double()
    gamma = torch.tensor([[2.0, 0.5, 0.0], [0.1, 1.0, 0.3], [0.0, -0.2, 0.7]]).double()
    for row in range(len(query)):
        x, y, q = covariates[row].numpy(), labels[row].numpy(), query[row].numpy()
        length, d = x.shape
        mean = [sum(x[i, j] for i in range(length)) / length for j in range(d)]
        plain = sum(y[i] * sum(x[i, j] * q[j] for j in range(d)) for i in range(length)) / length
        centred = sum(y[i] * sum((x[i, j] - mean[j]) * q[j] for j in range(d)) for i in range(length)) / length
        image = [sum(gamma[j, k].item() * q[k] for k in range(d)) for j in range(d)]
        pre = sum(y[i] * sum(x[i, j] * image[j] for j in range(d)) for i in range(length)) / length
        beta = np.linalg.lstsq(  # ridge as least squares with penalty rows
            np.vstack([x, math.sqrt(0.1 * d) * np.eye(d)]), np.concatenate([y, np.zeros(d)]), rcond=None
        )[0]
        softmax = 0.0
        for w, m in zip(omega.tolist(), mu.tolist(), strict=True):
            e = [math.exp(w * sum(x[i, j] * q[j] for j in range(d))) for i in range(length)]
            softmax += m * sum(y[i] * e[i] for i in range(length)) / sum(e)
        one = covariates[row : row + 1], labels[row : row + 1], query[row : row + 1]
        assert float(gradient_descent(*one, step=0.8)) == pytest.approx(0.8 * plain, rel=1e-12)
        assert float(debiased_gradient_descent(*one, step=0.8)) == pytest.approx(0.8 * centred, rel=1e-12)
        assert float(preconditioned_gradient_descent(*one, preconditioner=gamma)) == pytest.approx(pre, rel=1e-12)
        assert float(ridge(*one, noise_var=0.1)) == pytest.approx(float(beta @ q), rel=1e-9)
        assert float(softmax_heads(*one, omega=omega, mu=mu)) == pytest.approx(softmax, rel=1e-12)


def test_risks_are_means_over_all_prompts(monkeypatch):
    model = double(MultiHeadICL, 4, (1, 2)).float()
    predictors = {"model": lambda p: model(p.context, p.query), "zero": lambda p: torch.zeros_like(p.target)}
    monkeypatch.setattr("attn.icl_regression.estimators.CHUNK", 4)
    measured = risks(predictors, TASK, 10, length=5)
    parts = [TASK.prompts(count, random_stream(0, "test", n), length=5) for n, count in enumerate((4, 4, 2))]
    prompts = Prompts(*map(torch.cat, zip(*parts, strict=True)))
    with torch.no_grad():
        errors = [
            sum((float(p) - float(t)) ** 2 for p, t in zip(row[:, 0], prompts.target[:, 0], strict=True)) / 10
            for row in model(prompts.context, prompts.query)
        ]
    assert measured["model"].tolist() == pytest.approx(errors, rel=1e-5)
    assert measured["zero"].item() == pytest.approx(float(prompts.target.square().mean()), rel=1e-5)


def test_uniform_initialization_is_that_of_linear_layers():
    torch.manual_seed(0)
    model = MultiHeadICL(6, (1, 200)).requires_grad_(False)
    for parameter in (model.query, model.key, model.value):
        assert parameter.abs().max() <= 6**-0.5
        assert float(parameter.std()) == pytest.approx((6 * 3) ** -0.5, rel=0.05)
    assert float(model.output[1:].std()) == pytest.approx((200 * 6 * 3) ** -0.5, rel=0.1)
    assert float(model.output[:1].abs().max()) > 5 * float(model.output[1:].abs().max())


@pytest.mark.parametrize(
    ("name", "query", "value"),
    [("small_id", [1e-6] * 3, [1e-6] * 3), ("oppo_small_id", [1e-6, 1e-6, -1e-6], [1e-6, 1e-6, -1e-6])],
)
def test_small_initializations_are_multiples_of_the_identity(name, query, value):
    model = MultiHeadICL(4, (1, 2), initialization=name)
    for parameter, expected in ((model.query, query), (model.key, [1e-6] * 3), (model.value, value)):
        assert torch.equal(parameter, torch.tensor(expected)[:, None, None] * torch.eye(4))


def test_small_queries_and_keys_leave_the_values():
    model = MultiHeadICL(4, (2,), initialization="small_id_qk").requires_grad_(False)
    assert torch.equal(model.query, (1e-4 * torch.eye(4)).expand(2, 4, 4))
    assert torch.equal(model.key, model.query)
    assert float(model.value.abs().max()) > 0.1


def test_the_controls_do_what_they_say():
    prompts = draw()
    nonnegative, permuted = double(NonnegativeICL, 4, (2,)), double(PermutedICL, 4, (2,))
    plain = double(MultiHeadICL, 4, (2,))
    assert torch.equal(nonnegative.circuits().output_value, plain.circuits().output_value.abs())
    assert (plain.circuits().output_value < 0).any()
    neighbours = prompts.context[[3, 0, 1, 2]]
    assert torch.equal(permuted(prompts.context, prompts.query), plain(neighbours, prompts.query))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadICL(4, ()), r"heads must hold a positive number for each model, got \(\)"),
        (lambda: MultiHeadICL(4, (0,)), r"heads must hold a positive number for each model, got \(0,\)"),
        (lambda: MultiHeadICL(2, (1,), 2), r"n_out must lie in 1 .. 1, which d_token 2 leaves it, got 2"),
        (lambda: MultiHeadICL(4, (1,), initialization="zero"), r"initialization must be uniform, .*, got 'zero'"),
        (lambda: LinearICL(4, length=0), r"length must be positive, got 0"),
        (
            lambda: MultiHeadICL(4)(torch.zeros(2, 3, 5), torch.zeros(2, 5)),
            r"context and query must be \[batch, L, 4\] and \[batch, 4\], got \(2, 3, 5\) and \(2, 5\)",
        ),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
