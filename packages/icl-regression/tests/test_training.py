"""Training: what Adam does, the schedule, and what a killed or a shared run ends in."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from attn.icl_regression import LinearRegressionTask, MultiHeadICL, random_stream, scales
from attn.icl_regression.training import HeadHistory, ICLTraining, PromptBatches, PromptData, Risk

TASK = LinearRegressionTask(d=3, length=6)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def module(**options):
    torch.manual_seed(0)
    return ICLTraining(MultiHeadICL(4, (1, 2)), **options)


def fit(training, steps=8, *, resume=None, callbacks=(), **options):
    chosen = QUIET | {"enable_checkpointing": False, "limit_val_batches": 0, "max_steps": steps} | options
    data = PromptData(TASK, 8, eval_batches=3, seed=5)
    trainer = Trainer(**chosen, callbacks=list(callbacks))
    trainer.fit(training, data, ckpt_path=resume, weights_only=True if resume else None)
    return trainer


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_steps_are_those_of_adam_on_fresh_prompts(decay):
    training = module(lr=0.01, decay=decay)
    fit(training)
    expected = module().model
    optimizer = torch.optim.Adam(expected.parameters())
    for step in range(8):
        prompts = TASK.prompts(8, random_stream(5, "train", step))
        loss = sum(
            (predictions - prompts.target).square().mean() for predictions in expected(prompts.context, prompts.query)
        )
        optimizer.param_groups[0]["lr"] = 0.01 * (min(1.0, (8 - step) / 4) if decay else 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in training.model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name))


def test_a_model_learns_the_same_alone_and_among_others():
    both, alone = module(lr=0.01), ICLTraining(MultiHeadICL(4, (2,)), lr=0.01)
    with torch.no_grad():
        for name, parameter in alone.model.named_parameters():
            parameter.copy_(both.model.get_parameter(name)[1:])
    fit(both)
    fit(alone)
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(parameter, both.model.get_parameter(name)[1:])


class Killed(Exception):  # noqa: N818
    pass


class SaveAndKill(Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)
            raise Killed


def test_a_killed_training_resumes_to_the_same_weights_and_history(tmp_path):
    whole, history = module(lr=0.01, decay=0.5), HeadHistory(8, points=20)
    fit(whole, callbacks=[history])
    with pytest.raises(Killed):
        fit(module(lr=0.01, decay=0.5), callbacks=[HeadHistory(8, points=20), SaveAndKill(tmp_path / "state.ckpt", 5)])
    torch.manual_seed(1)  # other weights, until the state is read
    resumed, again = ICLTraining(MultiHeadICL(4, (1, 2)), lr=0.01, decay=0.5), HeadHistory(8, points=20)
    fit(resumed, resume=tmp_path / "state.ckpt", callbacks=[again])
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name))
    assert history.steps == again.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(torch.equal(a, b) for a, b in zip(history.omega + history.mu, again.omega + again.mu, strict=True))


def test_history_is_that_of_the_circuits():
    training, history = module(lr=0.01), HeadHistory(8, points=3)
    fit(training, callbacks=[history])
    assert history.steps == [1, 3, 8]
    with torch.no_grad():
        omega, mu = scales(training.model.circuits())
    assert torch.equal(history.omega[-1], omega)
    assert torch.equal(history.mu[-1], mu)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_give_the_metrics_and_weights_of_one():
    figures, weights = [], []
    for options in ({}, {"strategy": "ddp_fork", "devices": 2}):
        training = module(lr=0.01)
        trainer = fit(
            training,
            limit_val_batches=1.0,
            num_sanity_val_steps=0,
            val_check_interval=8,
            check_val_every_n_epoch=None,
            **options,
        )
        figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        weights.append(training.model.query.detach().clone())
    assert set(figures[0]) == {"risk/model_0", "risk/model_1"}
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)
    torch.testing.assert_close(*weights)


def test_risk_is_the_mean_over_all_prompts_however_they_are_batched():
    generator = torch.Generator().manual_seed(0)
    predictions, target = torch.randn(2, 6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    expected = [
        sum((float(predictions[m, i, o]) - float(target[i, o])) ** 2 for i in range(6) for o in range(3)) / 18
        for m in range(2)
    ]
    for sizes in ([6], [1, 5], [2, 2, 2]):
        risk = Risk(2)
        for p, t in zip(predictions.split(sizes, dim=1), target.split(sizes), strict=True):
            risk.update(p, t)
        assert risk.compute().tolist() == pytest.approx(expected, rel=1e-6)


def test_validation_is_on_the_same_prompts_each_time():
    training = module()
    trainer = Trainer(**QUIET, enable_checkpointing=False)
    first, second = (trainer.validate(training, PromptData(TASK, 8, eval_batches=3), verbose=False) for _ in range(2))
    (third,) = trainer.test(training, PromptData(TASK, 8, eval_batches=3), verbose=False)
    assert first == second == [third]
    prompts = [TASK.prompts(8, random_stream(1029, "test", number)) for number in range(3)]
    with torch.no_grad():
        errors = [(training.model(p.context, p.query) - p.target).square().mean((1, 2)) for p in prompts]
    assert list(third.values()) == pytest.approx(torch.stack(errors).mean(0).tolist(), rel=1e-5)


def test_batches_go_on_where_they_were_stopped():
    whole, stopped, resumed = (PromptBatches(TASK, 4, 5, seed=1, stream="test") for _ in range(3))
    expected = [batch.query for batch in whole]
    assert len(expected) == len(list(whole)) == 5  # and a second time
    seen = iter(stopped)
    next(seen)
    next(seen)
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a.query, b) for a, b in zip(resumed, expected[2:], strict=True))


def test_ranks_share_the_rows_of_every_batch(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    rows = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        rows.append([batch.query for batch in PromptBatches(TASK, 4, 2, seed=1, stream="test")])
    monkeypatch.undo()
    for number, batch in enumerate(PromptBatches(TASK, 4, 2, seed=1, stream="test")):
        assert torch.equal(torch.stack([rows[0][number], rows[1][number]], dim=1).flatten(0, 1), batch.query)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(ValueError, match=r"batch_size must be a positive multiple of 3 \(ranks\), got 4"):
        PromptBatches(TASK, 4, 2, seed=1, stream="test")


def test_a_decay_must_know_its_end():
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 2"):
        module(decay=2)
    with pytest.raises(ValueError, match=r"trainer.max_steps must be positive where decay is 0.5, got -1"):
        fit(module(decay=0.5), -1, max_epochs=1)
