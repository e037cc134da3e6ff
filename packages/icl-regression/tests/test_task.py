"""The prompts: their laws, that they are functions of seed and number, and what is refused."""

import pytest
import torch

from attn.icl_regression import LinearRegressionTask, MultiTaskRegression, random_stream, split_prompts


def draw(task, count=20_000, number=0, **options):
    return task.prompts(count, random_stream(3, "test", number), **options)


def test_covariates_and_labels_have_their_law():
    task = LinearRegressionTask(d=3, length=4, noise_var=0.5, correlation=0.5)
    prompts = draw(task)
    covariates, labels, query = split_prompts(prompts)
    flat = covariates.reshape(-1, 3)
    torch.testing.assert_close(flat.T @ flat / len(flat), task.covariance.float(), atol=0.02, rtol=0)
    assert task.covariance[0].tolist() == [1.0, 0.5, 0.25]
    torch.testing.assert_close(query.T @ query / len(query), task.covariance.float(), atol=0.03, rtol=0)
    # beta ~ N(0, I / d): the variance of a label is tr Sigma / d plus the noise, the query's included.
    assert float(labels.square().mean()) == pytest.approx(1.5, abs=0.03)
    assert float(prompts.target.square().mean()) == pytest.approx(1.5, abs=0.04)
    # E[y_l y_q | x] = <x_l, x_q> / d: the noise of one token is not that of another.
    products = (labels[:, 0] * prompts.target[:, 0] * (covariates[:, 0] * query).sum(-1)).mean()
    expected = (covariates[:, 0] * query).sum(-1).square().mean() / 3
    assert float(products) == pytest.approx(float(expected), abs=0.06)
    assert (prompts.query[:, 3:] == 0).all()


def test_a_query_without_noise_is_linear():
    noisy, clean = (draw(LinearRegressionTask(noisy_query=noisy), 50) for noisy in (True, False))
    assert torch.equal(noisy.context, clean.context)
    assert float((noisy.target - clean.target).std()) == pytest.approx(0.1**0.5, rel=0.4)
    exact = LinearRegressionTask(d=2, length=2, noise_var=0.0)
    covariates, labels, query = split_prompts(draw(exact, 50))
    beta = torch.linalg.lstsq(covariates.double(), labels.double()[..., None]).solution[..., 0]
    torch.testing.assert_close(
        (beta * query.double()).sum(-1, keepdim=True).float(), draw(exact, 50).target, atol=1e-3, rtol=1e-3
    )


def test_each_task_has_its_coordinates_and_its_noise():
    task = MultiTaskRegression(supports=((0, 1), (1, 2, 3)), length=30, noise_var=0.0)
    assert (task.d, task.n_out) == (4, 2)
    assert task.indicators.tolist() == [[1, 1, 0, 0], [0, 1, 1, 1]]
    prompts = draw(task, 200)
    x, y = prompts.context[..., :4].double(), prompts.context[..., 4:].double()
    beta = torch.linalg.lstsq(x, y).solution  # [batch, d, tasks]
    torch.testing.assert_close(beta[:, task.indicators.mT == 0], torch.zeros(200, 3).double(), atol=1e-5, rtol=0)
    assert float(beta[:, task.indicators.mT == 1].var()) == pytest.approx(1.0, abs=0.15)
    clean = prompts.query[:, None, :4].double() @ beta
    torch.testing.assert_close(clean[:, 0], prompts.target.double(), atol=1e-4, rtol=1e-4)
    noisy = draw(MultiTaskRegression(supports=task.supports, length=30, noise_var=0.5), 200)
    assert torch.equal(noisy.target, prompts.target)
    noise = (noisy.context - prompts.context)[..., 4:]
    assert noise[..., 0].var().item() == pytest.approx(1.0, rel=0.05)
    assert noise[..., 1].var().item() == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize("task", [LinearRegressionTask(), MultiTaskRegression()])
def test_prompts_are_functions_of_seed_stream_and_number(task):
    first = task.prompts(3, random_stream(1, "train", 5))
    assert all(torch.equal(a, b) for a, b in zip(first, task.prompts(3, random_stream(1, "train", 5)), strict=True))
    for other in ((2, "train", 5), (1, "test", 5), (1, "train", 6)):
        assert not torch.equal(first.context, task.prompts(3, random_stream(*other)).context)
    assert task.prompts(3, random_stream(1, "train", 5), length=9).context.shape == (3, 9, task.d + task.n_out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRegressionTask(d=0), "d must be positive, got 0"),
        (lambda: LinearRegressionTask(length=0), "length must be positive, got 0"),
        (lambda: LinearRegressionTask(noise_var=float("nan")), "noise_var must be at least 0, got nan"),
        (lambda: LinearRegressionTask(correlation=1.0), r"correlation must lie in \[0, 1\), got 1.0"),
        (lambda: MultiTaskRegression(supports=((0, 0),)), r"supports must hold different coordinates .*\(\(0, 0\),\)"),
        (lambda: MultiTaskRegression(supports=((),)), r"supports must hold different coordinates .*got \(\(\),\)"),
        (lambda: MultiTaskRegression(length=-1), "length must be positive, got -1"),
        (lambda: MultiTaskRegression(noise_var=-1.0), "noise_var must be at least 0, got -1.0"),
        (lambda: split_prompts(draw(MultiTaskRegression(), 2)), "prompts must have one label, got 2"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
