"""The experiments give what ledger and plots read, in both tiers, and their measures are their definitions."""

import io
import math
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from attn.icl_regression import best_preconditioner, experiments
from attn.icl_regression.__main__ import main
from attn.icl_regression.experiments import _distance, _learned_preconditioner, _slope, patterned_model
from attn.shared_eval.claims import Context, Experiment
from attn.shared_eval.claims.ledger import load

FOLDER = Path(__file__).parents[1]
EXPERIMENTS = {item.name: item for item in vars(experiments).values() if isinstance(item, Experiment)}


def claimed(name, tier):
    """The figures that the ledger reads of an experiment in a tier."""
    tiers = [claim.tier(tier) for claim in load(FOLDER / "claims.toml", need_pins=False).claim]
    return {figure for item in tiers if item is not None and item.experiment == name for figure in item.figures}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
@pytest.mark.parametrize("tier", ["mini", "paper"])
def test_an_experiment_gives_what_ledger_and_plots_read(name, tier, tmp_path, monkeypatch):
    for schedule in ("MINI", "MINI_LONG", "PAPER", "PAPER_BASELINE"):
        short = replace(getattr(experiments, schedule), steps=4, batch_size=4)
        monkeypatch.setattr(experiments, schedule, short)
    monkeypatch.setattr(experiments, "SAVE_EVERY", 2)
    monkeypatch.setattr(experiments, "FLOW", 30)
    monkeypatch.setattr(experiments, "LONG_FLOW", 60)
    monkeypatch.setattr(experiments, "risks", lambda rules, task, count, **o: measure(rules, task, 64, **o))
    done = []
    progress = lambda now, total, text="": done.append(now / total)  # noqa: E731
    outcome = EXPERIMENTS[name](Context(tier, 0, torch.device("cpu"), tmp_path, progress=progress))
    assert claimed(name, tier) <= set(outcome.figures)
    assert claimed(name, "mini")
    assert all(math.isfinite(value) for value in outcome.figures.values())
    assert all(0 <= share <= 1 for share in done)
    for draw in EXPERIMENTS[name].plots.values():
        image = io.BytesIO()
        draw([outcome, outcome]).savefig(image, format="png", dpi=20)
        assert image.getvalue().startswith(b"\x89PNG")


measure = experiments.risks


def test_a_killed_experiment_goes_on_from_its_saved_state(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "SAVE_EVERY", 2)
    schedule = experiments.Schedule(steps=6, batch_size=4, lr=0.01, decay=0.0)
    task = experiments.LinearRegressionTask()

    def train(folder, stop_at=None):
        torch.manual_seed(0)
        model, seen = experiments.MultiHeadICL(6, (2,)), []

        def progress(*_):
            raise KeyError("killed")

        training = experiments._Training(Context("mini", 0, torch.device("cpu"), folder), 6)
        if stop_at is not None:
            original = experiments._Reporter.on_train_batch_end
            monkeypatch.setattr(
                experiments._Reporter,
                "on_train_batch_end",
                lambda self, trainer, *rest: progress() if trainer.global_step == stop_at else None,
            )
            with pytest.raises(KeyError, match="killed"):
                training.fit("part", model, task, schedule)
            monkeypatch.setattr(experiments._Reporter, "on_train_batch_end", original)
            return model, seen
        history = training.fit("part", model, task, schedule)
        return model, history.steps

    whole, steps = train(tmp_path / "whole")
    train(tmp_path / "killed", stop_at=5)
    state = torch.load(tmp_path / "killed" / "part" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    resumed, again = train(tmp_path / "killed")
    assert steps == again
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name))


def test_a_preconditioner_is_read_off_the_heads():
    model = patterned_model(torch.tensor([0.2, -0.3]), torch.tensor([1.0, -2.0]))
    learned = _learned_preconditioner(model.circuits_of(0))
    torch.testing.assert_close(learned, 0.8 * torch.eye(5, dtype=torch.float64))
    best = best_preconditioner(experiments.LinearRegressionTask(correlation=0.5).covariance)
    assert _distance(3 * best, best) == pytest.approx(0, abs=1e-12)
    assert _distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])) == pytest.approx(0.5**0.5)
    x = torch.linspace(1, 2, 7)
    assert _slope(x, 3 - 2 * x) == pytest.approx(-2)


def test_the_ledger_names_every_experiment():
    tiers = [
        claim.tier(name) for claim in load(FOLDER / "claims.toml", need_pins=False).claim for name in ("mini", "paper")
    ]
    assert {tier.experiment for tier in tiers if tier is not None} == set(EXPERIMENTS)


SMALL = ["--trainer.max_steps=2", "--data.eval_batches=1", "--data.batch_size=4", "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("config", sorted(path.name for path in (FOLDER / "configs").glob("*.yaml")))
def test_configurations_are_fitted_and_tested(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attn"])
    shipped = yaml.safe_load((FOLDER / "configs" / config).read_text())
    assert (shipped["model"]["lr"], shipped["trainer"]["max_steps"], shipped["data"]["batch_size"]) == (
        1e-3,
        500_001,
        256,
    )
    shipped["trainer"]["callbacks"][0]["init_args"]["every_n_train_steps"] = 2
    Path("short.yaml").write_text(yaml.safe_dump(shipped))
    main(["fit", "--config", "short.yaml", *SMALL, *QUIET])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    main(["test", "--config", "short.yaml", *SMALL, *QUIET, "--ckpt_path", str(checkpoint)])
    assert "risk/model_0" in capsys.readouterr().out


def test_neither_transformers_nor_diffusers_is_installed_with_it():
    needed, queue = set(), ["attn-icl-regression"]
    while queue:
        name = canonicalize_name(queue.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # of another platform
        found = [Requirement(line) for line in lines]
        queue += [item.name for item in found if item.marker is None or item.marker.evaluate({"extra": ""})]
    assert {"torch", "lightning", "torchmetrics"} < needed
    assert needed.isdisjoint({"transformers", "diffusers"})
