"""What the ledger's claims are measured by: one experiment each, run once per seed, and the figures drawn from them.

Both tiers run the same experiments: the paper tier with the paper's schedule, batches and lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure
from torch import Tensor, nn

from attn.icl_regression import plots
from attn.icl_regression.circuits import Circuits
from attn.icl_regression.estimators import (
    debiased_gradient_descent,
    gradient_descent,
    preconditioned_gradient_descent,
    ridge,
    risks,
    softmax_heads,
    split_prompts,
)
from attn.icl_regression.model import LinearICL, MultiHeadICL, SideBySide
from attn.icl_regression.patterns import multi_task_report, pattern_report
from attn.icl_regression.task import LinearRegressionTask, MultiTaskRegression, Prompts, Task, random_stream
from attn.icl_regression.theory import (
    bayes_risk_limit,
    best_mu,
    best_preconditioner,
    best_step,
    gradient_descent_risk_limit,
    gradient_flow,
    reduced_loss,
    single_head_optimum,
)
from attn.icl_regression.training import HeadHistory, ICLTraining, PromptData
from attn.shared_eval.claims import Context, Outcome, experiment


@dataclass(frozen=True)
class Schedule:
    """How long, on what batches and at what learning rate a model is trained.

    Attributes:
        steps: of Adam.
        batch_size: prompts of a step.
        lr: learning rate.
        decay: share of the steps over which it falls to zero at the end.
    """

    steps: int
    batch_size: int
    lr: float
    decay: float


MINI = Schedule(steps=2000, batch_size=64, lr=1e-2, decay=0.3)
MINI_LONG = Schedule(steps=3000, batch_size=64, lr=1e-2, decay=0.3)  # anisotropic and multi-task
PAPER = Schedule(steps=500_001, batch_size=256, lr=1e-3, decay=0.0)
PAPER_BASELINE = Schedule(steps=50_001, batch_size=256, lr=1e-3, decay=0.0)  # what has no target in the paper
SAVE_EVERY = 10_000  # steps

MINI_LENGTHS = (10, 20, 40, 80, 160)
PAPER_LENGTHS = (*range(10, 101, 5), 160)

OMEGA, MU = 0.13, 3.45  # of the two-head closed form in the paper's figure of risks
FLOW, LONG_FLOW = 3000, 12_000  # steps of gradient flow: of the paper's figure, and until one head has settled
TWO_HEADS = torch.tensor([1.0, -1.0], dtype=torch.float64)


class NonnegativeICL(MultiHeadICL):
    """The control whose output-value circuits cannot be negative, so that no heads sum to zero."""

    def circuits(self) -> Circuits:
        """The absolute values of the output-value circuits."""
        query_key, output_value = super().circuits()
        return Circuits(query_key, output_value.abs())


class PermutedICL(MultiHeadICL):
    """The control that sees the context of another prompt of the batch: nothing can be learned."""

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        """Predictions of every model from its neighbour's context."""
        return super().forward(context.roll(1, dims=0), query)


@experiment
def single_task(context: Context) -> Outcome:
    """Models with 1, 2, 4 (and 8) heads trained on isotropic regression, with baselines and controls.

    Figures are medians over the models with as many heads.
    """
    mini = context.tier == "mini"
    task = LinearRegressionTask()
    schedule, baseline = (MINI, MINI) if mini else (PAPER, PAPER_BASELINE)
    # Some models with two heads stay in the single-head solution: medians take many, and an odd number.
    counts = {1: 3, 2: 11, 4: 4} if mini else {1: 1, 2: 5, 4: 1, 8: 1}
    heads = [number for number, count in counts.items() for _ in range(count)]
    training = _Training(context, schedule.steps + baseline.steps)

    torch.manual_seed(context.seed)
    model = MultiHeadICL(6, heads)
    figures = _pattern_figures(model, range(len(heads)), "untrained")
    history = training.fit("softmax", model, task, schedule)
    linear = LinearICL(6, (2, 2), length=task.length)
    nonnegative, permuted = NonnegativeICL(6, (2,) * 4), PermutedICL(6, (2,) * 3)
    training.fit("baselines", SideBySide(linear, nonnegative, permuted), task, baseline)

    for number in counts:
        chosen = [index for index, count in enumerate(heads) if count == number]
        figures |= _pattern_figures(model, chosen, str(number))
        figures |= _history_figures(history, model, chosen, task, schedule.steps, str(number))
    for name, control in (("nonnegative", nonnegative), ("permuted", permuted)):
        figures |= _pattern_figures(control, range(len(control.heads)), name)

    predictors = {
        "softmax": _predict(model),
        "nonnegative": _predict(nonnegative),
        "linear": _predict(linear),
        "gd": _on_single(gradient_descent, step=best_step()),
        "debiased": _on_single(debiased_gradient_descent, step=best_step()),
        "ridge": _on_single(ridge, noise_var=task.noise_var),
    }
    count = 10_000 if mini else 100_000
    measured = risks(predictors, task, count, seed=context.seed, device=context.device)
    for number in counts:
        figures[f"risk_{number}"] = _median_of(measured["softmax"], heads, number)
    figures |= {f"risk_{name}": float(measured[name].median()) for name in ("nonnegative", "gd", "debiased", "ridge")}

    lengths = MINI_LENGTHS if mini else PAPER_LENGTHS
    curves: dict[str, list[float]] = {name: [] for name in ("1", "2", "4", *list(predictors)[2:])}
    for length in lengths:
        at = risks(predictors, task, 4096 if mini else 50_000, seed=context.seed, length=length, device=context.device)
        for name, curve in curves.items():
            curve.append(_median_of(at["softmax"], heads, int(name)) if name.isdigit() else float(at[name].median()))
        figures[f"softmax_at_{length}"], figures[f"linear_at_{length}"] = curves["2"][-1], curves["linear"][-1]
    for length in (10, 40):
        figures |= _explained(model, task, length, context)

    arrays: dict[str, np.ndarray] = {"lengths": np.array(lengths), "steps": np.array(history.steps)}
    arrays |= {f"curve_{name}": np.array(curve) for name, curve in curves.items()}
    omega, mu = torch.stack(history.omega).split(heads, dim=1), torch.stack(history.mu).split(heads, dim=1)
    for number in counts:
        first = heads.index(number)
        arrays[f"query_key_{number}"], arrays[f"output_value_{number}"] = _numpy(model.circuits_of(first))
        arrays[f"omega_{number}"], arrays[f"mu_{number}"] = omega[first].numpy(), mu[first].numpy()
    return Outcome(figures, arrays)


@single_task.plot("circuits.png")
def draw_circuits(outcomes: Sequence[Outcome]) -> Figure:
    """The circuits of a trained model with 1, 2 and 4 heads."""
    return plots.circuits(outcomes[0], (1, 2, 4))


@single_task.plot("training_dynamics.png")
def draw_training_dynamics(outcomes: Sequence[Outcome]) -> Figure:
    """Scales omega and mu of every head over the steps of training."""
    return plots.dynamics(outcomes[0], (1, 2, 4))


@single_task.plot("risk_by_length.png")
def draw_risk_by_length(outcomes: Sequence[Outcome]) -> Figure:
    """Risk on shorter and longer prompts than in training."""
    return plots.risk_by_length(outcomes)


@experiment
def closed_form(context: Context) -> Outcome:
    """Risks of the closed forms on the same prompts of several lengths; one single head stays that of L = 40."""
    count = 10_000 if context.tier == "mini" else 200_000
    lengths = (10, 20, 40, 60, 80, 100)
    figures: dict[str, float] = {}
    for number, length in enumerate(lengths):
        task = LinearRegressionTask(length=length)
        single, tuned = (torch.tensor(single_head_optimum(length=at))[:, None] for at in (40, length))
        predictors = {
            "two_heads": _on_single(softmax_heads, omega=OMEGA * TWO_HEADS, mu=MU * TWO_HEADS),
            "gd": _on_single(gradient_descent, step=2 * OMEGA * MU),
            "debiased": _on_single(debiased_gradient_descent, step=2 * OMEGA * MU),
            "single_head": _on_single(softmax_heads, omega=single[0], mu=single[1]),
            "tuned_head": _on_single(softmax_heads, omega=tuned[0], mu=tuned[1]),
            "ridge": _on_single(ridge, noise_var=task.noise_var),
        }
        measured = risks(predictors, task, count, seed=context.seed, device=context.device)
        figures |= {f"{name}_{length}": float(risk) for name, risk in measured.items()}
        context.progress(number + 1, len(lengths), f"L = {length}")
    return Outcome(figures, {"lengths": np.array(lengths)})


@closed_form.plot("closed_form_risk.png")
def draw_closed_form(outcomes: Sequence[Outcome]) -> Figure:
    """Risk of the closed forms against length."""
    return plots.closed_form(outcomes)


@experiment
def identities(context: Context) -> Outcome:
    """A model given the patterns exactly against its closed form, and the closed form against its expansion."""
    task = LinearRegressionTask()
    prompts = Prompts(*(part.double() for part in task.prompts(512, random_stream(context.seed, "test", 0))))
    covariates, labels, query = split_prompts(prompts)
    omega, mu = 0.3 * TWO_HEADS, 1.5 * TWO_HEADS
    model = patterned_model(omega, mu)
    itself = torch.cat([prompts.context, prompts.query[:, None]], dim=1)
    expected = softmax_heads(covariates, labels, query, omega=omega, mu=mu)
    with torch.no_grad():
        predictions, with_itself = (model(tokens, prompts.query)[0, :, 0] for tokens in (prompts.context, itself))

    step = best_step()
    debiased = debiased_gradient_descent(covariates, labels, query, step=step)

    def expansion_error(omega: Tensor) -> float:
        mu = step / len(omega) / omega
        errors = softmax_heads(covariates, labels, query, omega=omega, mu=mu) - debiased
        return float(errors.square().mean().sqrt())

    smaller, larger = (expansion_error(size * TWO_HEADS) for size in (0.01, 0.02))
    return Outcome(
        {
            "closed_form_difference": float((predictions - expected).abs().max()),
            "attending_to_itself_difference": float((with_itself - expected).abs().max()),
            "expansion_order": float(np.log2(larger / smaller)),
            "single_head_expansion_error": expansion_error(0.01 * TWO_HEADS[:1]),
        }
    )


@experiment
def proportional(context: Context) -> Outcome:
    """Excess risks, those without the label's noise, of the two-head closed form and of ridge at several d / L."""
    d, noise_var, count = 20, 0.1, 4096 if context.tier == "mini" else 100_000
    ratios = (0.5, 0.2, 0.125, 0.05)
    figures: dict[str, float] = {}
    curves: dict[str, list[float]] = {"two_heads": [], "ridge": []}
    for number, ratio in enumerate(ratios):
        excess = _excess_risks(d, round(d / ratio), noise_var, count, context)
        name = f"{round(1000 * ratio):03d}"
        figures[f"ratio_{name}"] = excess["two_heads"] / excess["ridge"]
        figures[f"ratio_zero_{name}"] = excess["zero"] / excess["ridge"]
        figures[f"bayes_over_limit_{name}"] = (excess["ridge"] + noise_var) / bayes_risk_limit(ratio, noise_var)
        for curve, values in curves.items():
            values.append(excess[curve] + noise_var)
        context.progress(number + 1, len(ratios) + 1, f"d / L = {ratio}")
    noisy = _excess_risks(d, 100, 3.0, count, context)
    figures |= {f"{name}_noisy": noisy[name] + 3.0 for name in ("gd", "ridge")}
    arrays = {"ratios": np.array(ratios)} | {name: np.array(values) for name, values in curves.items()}
    fine = np.geomspace(0.04, 0.6, 50)
    arrays |= {
        "limit_ratios": fine,
        "limit_two_heads": np.array([gradient_descent_risk_limit(ratio, noise_var) for ratio in fine]),
        "limit_ridge": np.array([bayes_risk_limit(ratio, noise_var) for ratio in fine]),
    }
    return Outcome(figures, arrays)


@proportional.plot("proportional_regime.png")
def draw_proportional(outcomes: Sequence[Outcome]) -> Figure:
    """Risk of two heads and of the Bayes predictor against d / L, with their limits."""
    return plots.proportional(outcomes)


@experiment
def reduced_dynamics(context: Context) -> Outcome:
    """The reduced loss against the risk that it approximates, and its gradient flow from small random scales."""
    generator = torch.Generator().manual_seed(context.seed)
    figures: dict[str, float] = {}
    count = 20_000 if context.tier == "mini" else 200_000
    for name, length, size in (("40", 40, 0.25), ("160", 160, 0.25), ("large_omega", 40, 1.0)):
        task = LinearRegressionTask(length=length)
        omega = size * TWO_HEADS
        mu = best_mu(omega, length=length)
        predictors = {"two_heads": _on_single(softmax_heads, omega=omega, mu=mu)}
        risk = float(risks(predictors, task, count, seed=context.seed, device=context.device)["two_heads"])
        figures[f"loss_error_{name}"] = float(reduced_loss(omega, mu, length=length)) / risk - 1
    arrays: dict[str, np.ndarray] = {}
    limit = _reduced_step(LinearRegressionTask())
    for number in (1, 2):
        sizes = 0.04 + 0.06 * torch.rand(2, number, generator=generator, dtype=torch.float64)
        whole = gradient_flow(*(sizes * TWO_HEADS[:number]), steps=LONG_FLOW)
        times = torch.arange(1, LONG_FLOW + 1, dtype=torch.float64)
        settled, sizes = slice(LONG_FLOW * 2 // 3, None), whole[0].abs().mean(-1)
        figures[f"long_shrinking_{number}"] = -_slope(times[settled].log(), sizes[1:][settled].log())
        omega, mu = (scales[: FLOW + 1] for scales in whole)
        arrays[f"omega_{number}"], arrays[f"mu_{number}"] = omega[::10].numpy(), mu[::10].numpy()
        scale, late, times = omega.abs().mean(-1), slice(FLOW * 2 // 3, None), times[:FLOW]
        figures[f"flow_overshoot_{number}"] = float(scale.max() / scale[-1])
        figures[f"flow_step_{number}"] = float((omega * mu).sum(-1)[late].mean() / limit)
        figures[f"flow_shrinking_{number}"] = -_slope(times[late].log(), scale[1:][late].log())
        context.progress(number, 2, "gradient flow")
    return Outcome(figures, arrays)


@reduced_dynamics.plot("gradient_flow.png")
def draw_gradient_flow(outcomes: Sequence[Outcome]) -> Figure:
    """Scales omega and mu, and their product, along gradient flow, for one and two heads."""
    return plots.gradient_flow(outcomes)


@experiment
def anisotropic(context: Context) -> Outcome:
    """Models trained on anisotropic covariates; the control is trained on isotropic ones."""
    mini = context.tier == "mini"
    task = LinearRegressionTask(correlation=0.5)
    schedule, baseline = (MINI_LONG, MINI) if mini else (PAPER, PAPER_BASELINE)
    heads = [4] * 3 + [2] * 3 if mini else [4, 2]
    training = _Training(context, schedule.steps + baseline.steps)
    torch.manual_seed(context.seed)
    model = MultiHeadICL(6, heads)
    training.fit("anisotropic", model, task, schedule)
    torch.manual_seed(context.seed)
    isotropic = MultiHeadICL(6, (4,))
    training.fit("isotropic", isotropic, LinearRegressionTask(), baseline)

    best = best_preconditioner(task.covariance)
    candidates = {
        "preconditioner": best,
        "identity": torch.eye(task.d, dtype=torch.float64),
        "inverse": torch.linalg.inv(task.covariance),
    }
    four = range(heads.count(4))
    learned = [_learned_preconditioner(model.circuits_of(index)) for index in four]
    figures = {
        f"error_{name}": _median([_distance(matrix, candidate) for matrix in learned])
        for name, candidate in candidates.items()
    }
    others = [_learned_preconditioner(isotropic.circuits_of(index)) for index in range(1)]
    figures["error_preconditioner_isotropic"] = _median([_distance(matrix, best) for matrix in others])
    pairs = range(heads.count(4), len(heads))
    figures["opposite_2"] = float(np.mean([pattern_report(model.circuits_of(index)).opposite for index in pairs]))

    count = 10_000 if mini else 100_000
    prompts = task.prompts(count, random_stream(context.seed, "train", 2**40))  # tunes the step of the baseline
    plain = _on_single(gradient_descent, step=1.0)(prompts)
    step = float((plain * prompts.target).sum() / plain.square().sum())
    predictors = {
        "model": _predict(model),
        "gd": _on_single(gradient_descent, step=step),
        "preconditioned": _on_single(preconditioned_gradient_descent, preconditioner=best),
        "ridge": _on_single(ridge, noise_var=task.noise_var),
    }
    measured = risks(predictors, task, count, seed=context.seed, device=context.device)
    figures |= {f"risk_{number}": _median_of(measured["model"], heads, number) for number in (2, 4)}
    figures |= {f"risk_{name}": float(measured[name]) for name in ("gd", "preconditioned", "ridge")}
    arrays = {"learned": learned[0].numpy(), "isotropic": others[0].numpy()}
    return Outcome(figures, arrays | {name: candidate.numpy() for name, candidate in candidates.items()})


@anisotropic.plot("preconditioner.png")
def draw_preconditioner(outcomes: Sequence[Outcome]) -> Figure:
    """What the heads have learned beside the best preconditioner, and its distance from the candidates."""
    return plots.preconditioner(outcomes)


@experiment
def multi_task(context: Context) -> Outcome:
    """Models with 2, 3 and 4 heads trained on two tasks with overlapping coordinates."""
    mini = context.tier == "mini"
    task = MultiTaskRegression()
    schedule = MINI_LONG if mini else PAPER
    heads = [2] * 3 + [3] * 5 + [4] * 5 if mini else [2] + [3] * 3 + [4] * 3
    training = _Training(context, schedule.steps)
    torch.manual_seed(context.seed)
    model = MultiHeadICL(task.d + task.n_out, heads, task.n_out)
    report = partial(multi_task_report, indicators=task.indicators)
    untrained = [report(model.circuits_of(index)).cross for index in range(len(heads))]
    training.fit("softmax", model, task, schedule)
    measured = risks(
        {"model": _predict(model)}, task, 10_000 if mini else 100_000, seed=context.seed, device=context.device
    )
    figures = {"cross_untrained": _median(untrained)}
    arrays: dict[str, np.ndarray] = {"indicators": task.indicators.numpy()}
    for number in (2, 3, 4):
        chosen = [index for index, count in enumerate(heads) if count == number]
        reports = [report(_on_cpu(model.circuits_of(index))) for index in chosen]
        figures[f"risk_{number}"] = _median_of(measured["model"], heads, number)
        for name in ("participation", "projector", "cross", "zero_sum"):
            figures[f"{name}_{number}"] = _median([getattr(item, name) for item in reports])
        arrays[f"diagonals_{number}"], arrays[f"mu_{number}"] = reports[0].diagonals.numpy(), reports[0].mu.numpy()
    return Outcome(figures, arrays)


@multi_task.plot("multi_task.png")
def draw_multi_task(outcomes: Sequence[Outcome]) -> Figure:
    """Diagonals and labels' entries of the heads of models with 3 and 4 heads."""
    return plots.multi_task(outcomes[0], (3, 4))


def patterned_model(omega: Tensor, mu: Tensor, d: int = 5) -> MultiHeadICL:
    """A model whose circuits are omega I on the covariates and mu e_y, in float64.

    Args:
        omega: ``[heads]``.
        mu: ``[heads]``.
        d: number of covariates.
    """
    model = MultiHeadICL(d + 1, (len(omega),)).double()
    covariates = torch.eye(d + 1, dtype=torch.float64)
    covariates[d, d] = 0
    with torch.no_grad():
        model.query.copy_(omega[:, None, None] * (d + 1) ** 0.5 * covariates)
        model.key.copy_(covariates)
        model.value.copy_(torch.eye(d + 1))
        model.output.zero_()[:, 0, d] = mu
    return model


class _Training:
    """Trains the models of one experiment one after another, and reports progress over all of them."""

    def __init__(self, context: Context, total: int) -> None:
        self.context, self.total, self.before = context, total, 0

    def fit(self, name: str, model: MultiHeadICL | SideBySide, task: Task, schedule: Schedule) -> HeadHistory:
        """Train a model in place, or go on where a killed run was saved; what its heads went through."""
        history = HeadHistory(schedule.steps)
        callbacks: list[Callback] = [history, _Reporter(self, name)]
        folder = self.context.work_dir / name
        if schedule.steps > SAVE_EVERY:
            saving: dict[str, Any] = {"save_last": True, "save_top_k": 0, "enable_version_counter": False}
            callbacks.append(ModelCheckpoint(folder, every_n_train_steps=SAVE_EVERY, **saving))
        device = self.context.device
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            logger=False,
            enable_checkpointing=schedule.steps > SAVE_EVERY,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            max_steps=schedule.steps,
            callbacks=callbacks,
        )
        last = folder / "last.ckpt"
        data = PromptData(task, schedule.batch_size, seed=self.context.seed)
        resumed = last if last.exists() else None
        trainer.fit(ICLTraining(model, schedule.lr, schedule.decay), data, ckpt_path=resumed, weights_only=True)
        model.to(device)
        self.before += schedule.steps
        return history


class _Reporter(Callback):
    """Reports progress every hundred steps."""

    def __init__(self, training: _Training, name: str) -> None:
        self.training, self.name = training, name

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % 100 == 0:
            done = self.training.before + trainer.global_step
            self.training.context.progress(done, self.training.total, f"{self.name} {trainer.global_step}")


def _pattern_figures(model: MultiHeadICL, chosen: Sequence[int], suffix: str) -> dict[str, float]:
    """Patterns of some of the models: medians, and shares of models or of active heads."""
    reports = [pattern_report(_on_cpu(model.circuits_of(index))) for index in chosen]
    active = torch.tensor([float(report.active.sum()) for report in reports])
    signs = torch.tensor([report.sign_match for report in reports])
    return {
        f"diagonal_{suffix}": _median([report.diagonal**0.5 for report in reports]),
        f"off_diagonal_{suffix}": _median([1 - report.diagonal for report in reports]),
        f"homogeneity_{suffix}": _median([report.homogeneity for report in reports]),
        f"last_entry_{suffix}": _median([report.last_entry for report in reports]),
        f"zero_sum_{suffix}": _median([report.zero_sum for report in reports]),
        f"equal_scale_{suffix}": _median([report.equal_scale for report in reports]),
        f"step_{suffix}": _median([report.step for report in reports]),
        f"omega_{suffix}": _median([float(report.omega.abs().mean()) for report in reports]),
        f"mu_{suffix}": _median([float(report.mu.abs().mean()) for report in reports]),
        f"sign_match_{suffix}": float((signs * active).sum() / active.sum()),
        f"opposite_{suffix}": float(np.mean([report.opposite for report in reports])),
        f"pattern_{suffix}": float(np.mean([report.complete for report in reports])),
        f"dummies_{suffix}": float(np.mean([len(report.active) - int(report.active.sum()) for report in reports])),
    }


def _history_figures(
    history: HeadHistory,
    model: MultiHeadICL,
    chosen: Sequence[int],
    task: LinearRegressionTask,
    total: int,
    suffix: str,
) -> dict[str, float]:
    """The stages of some of the models, medians."""
    steps = torch.tensor(history.steps, dtype=torch.float64)
    omegas = torch.stack(history.omega).double().split(model.heads, dim=1)
    mus = torch.stack(history.mu).double().split(model.heads, dim=1)
    late, settled = steps >= total * 2 / 3, steps >= total / 3
    found: dict[str, list[float]] = {"overshoot": [], "mu_growth": [], "late_step": [], "shrinking": []}
    for omega, mu in ((omegas[index], mus[index]) for index in chosen):
        omega_size, mu_size = omega.abs().mean(-1), mu.abs().mean(-1)
        peak = int(omega_size.argmax())
        found["overshoot"].append(float(omega_size[peak] / omega_size[-1]))
        found["mu_growth"].append(float(mu_size[-1] / mu_size[peak]))
        found["late_step"].append(float((omega * mu).sum(-1)[late].mean() / _reduced_step(task)))
        found["shrinking"].append(-_slope(steps[settled].log(), omega_size[settled].log()))
    return {f"{name}_{suffix}": _median(values) for name, values in found.items()}


def _explained(model: MultiHeadICL, task: LinearRegressionTask, length: int, context: Context) -> dict[str, float]:
    """R squared of predictions of two heads, and of one, by a step of debiased and of plain gradient descent."""
    prompts = task.prompts(8192, random_stream(context.seed, "test", 0), length=length)
    prompts = Prompts(*(part.to(context.device) for part in prompts))
    with torch.no_grad():
        predictions = model(prompts.context, prompts.query)[..., 0]
    figures: dict[str, float] = {}
    for name, rule in (("debiased", debiased_gradient_descent), ("gd", gradient_descent)):
        step = rule(*split_prompts(prompts), step=1.0)
        share = (predictions @ step).square() / (predictions.square().sum(-1) * step.square().sum())
        figures[f"r2_{name}_{length}"] = _median_of(share, model.heads, 2)
        figures[f"r2_{name}_single_head_{length}"] = _median_of(share, model.heads, 1)
    return figures


def _excess_risks(d: int, length: int, noise_var: float, count: int, context: Context) -> dict[str, float]:
    task = LinearRegressionTask(d=d, length=length, noise_var=noise_var, noisy_query=False)
    step = best_step(d=d, length=length, noise_var=noise_var)
    omega = 0.3 * d**-0.5 * TWO_HEADS  # d omega^2 = 0.09: the expansion holds
    predictors = {
        "two_heads": _on_single(softmax_heads, omega=omega, mu=step / 2 / omega),
        "gd": _on_single(gradient_descent, step=step),
        "ridge": _on_single(ridge, noise_var=noise_var),
        "zero": lambda prompts: torch.zeros_like(prompts.target),
    }
    measured = risks(predictors, task, count, seed=context.seed, device=context.device)
    return {name: float(risk) for name, risk in measured.items()}


def _on_single(rule: Callable[..., Tensor], **options: Any) -> Callable[[Prompts], Tensor]:
    """A rule of `estimators` as a function of prompts, with predictions ``[batch, 1]``."""
    return lambda prompts: rule(*split_prompts(prompts), **options)[:, None]


def _predict(model: nn.Module) -> Callable[[Prompts], Tensor]:
    return lambda prompts: model(prompts.context, prompts.query)


def _reduced_step(task: LinearRegressionTask) -> float:
    """The sum of omega * mu at the infimum of the two-head reduced loss."""
    return 1 / (1 + (1 + task.noise_var) * task.d / task.length)


def _learned_preconditioner(circuits: Circuits) -> Tensor:
    """The sum over heads of mu times the query-key circuit on the covariates, float64 ``[d, d]`` on the CPU."""
    query_key, output_value = _on_cpu(circuits)
    return torch.einsum("h,hkq->kq", output_value[:, 0, -1].double(), query_key[:, :-1, :-1].double())


def _distance(matrix: Tensor, candidate: Tensor) -> float:
    """Distance of a matrix from the nearest multiple of another, relative to its norm."""
    multiple = (matrix * candidate).sum() / candidate.square().sum()
    return float((matrix - multiple * candidate).norm() / matrix.norm())


def _slope(x: Tensor, y: Tensor) -> float:
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _median_of(values: Tensor, heads: Sequence[int], number: int) -> float:
    """Median over the models with a number of heads."""
    return _median([float(value) for value, count in zip(values, heads, strict=True) if count == number])


def _on_cpu(circuits: Circuits) -> Circuits:
    return Circuits(*(part.cpu() for part in circuits))


def _numpy(circuits: Circuits) -> tuple[np.ndarray, np.ndarray]:
    query_key, output_value = _on_cpu(circuits)
    return query_key.numpy(), output_value.numpy()
