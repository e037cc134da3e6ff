"""The Evaluator: figures by hand, kill and resume, processes, what is refused."""

import importlib.util
import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import BinaryAUROC
from torchmetrics.regression import PearsonCorrCoef

from attn.shared_eval.evaluation import Evaluator, Sample

SCRIPT = Path(__file__).with_name("killed_evaluation.py")
SPEC = importlib.util.spec_from_file_location("killed_evaluation", SCRIPT)
small = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(small)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted evaluation and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return small.evaluator().run(small.METHODS, folder), folder


def exactly(value):
    """A text that is equal for equal numbers, and for undefined ones."""
    return json.dumps(value)


def counted(step):
    calls = []

    def counting(network, batch):
        calls.append(len(batch[0]))
        return step(network, batch)

    return counting, calls


def test_figures_are_those_of_all_samples(whole):
    evaluation, _ = whole
    for name in small.METHODS:
        lines = evaluation.samples[name]
        assert [line["sample"] for line in lines] == list(range(11))
        scores = torch.tensor([line["record"]["score"] for line in lines])
        labels = small.Numbers().dataset.tensors[1]
        accuracy = float(((scores > 0) == labels).double().mean())
        assert evaluation.figures[name]["accuracy"] == pytest.approx(accuracy)
        assert evaluation.figures[name]["needles_accuracy"] == pytest.approx(accuracy)
        assert evaluation.figures[name]["mean_score"] == pytest.approx(float(scores.mean()))
        assert [line["figures"]["mean_score"] for line in lines] == pytest.approx(scores.tolist())
    assert evaluation.figures["baseline"] != evaluation.figures["flipped"]


def test_draws_are_paired_between_methods(whole):
    evaluation, _ = whole
    network, x = small.model(), small.Numbers().dataset.tensors[0]
    with torch.no_grad():
        plain = network(x).squeeze(1)
        with small.flipped(network):
            flipped = network(x).squeeze(1)
    scores = [torch.tensor([line["record"]["score"] for line in evaluation.samples[n]]) for n in small.METHODS]
    torch.testing.assert_close(scores[0] - plain, scores[1] - flipped)


def test_a_killed_evaluation_resumes_to_the_same_figures_and_samples(whole, tmp_path):
    killed = subprocess.run([sys.executable, "-W", "ignore", SCRIPT, tmp_path], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len((tmp_path / "flipped.0.jsonl").read_text().splitlines()) == 6
    with (tmp_path / "flipped.0.jsonl").open("a") as file:
        file.write('{"sample": 6, "rec')  # a line that was broken off
    step, calls = counted(small.step)
    resumed = small.evaluator(step).run(small.METHODS, tmp_path)
    assert exactly(resumed.figures) == exactly(whole[0].figures)
    assert exactly(resumed.samples) == exactly(whole[0].samples)
    assert calls == [3, 2]


def test_a_finished_evaluation_is_not_run_again_and_another_method_is_added(whole):
    evaluation, folder = whole
    step, calls = counted(small.step)
    again = small.evaluator(step).run({**small.METHODS, "same": nullcontext}, folder)
    assert calls == [3, 3, 3, 2]
    assert exactly(again.figures["flipped"]) == exactly(evaluation.figures["flipped"])
    assert exactly(again.figures["same"]) == exactly(evaluation.figures["baseline"])


def test_the_model_and_the_generator_are_left_as_they_were(tmp_path):
    evaluator = small.evaluator()
    before = {name: x.clone() for name, x in evaluator.model.state_dict().items()}
    state = torch.random.get_rng_state()
    evaluator.run({"flipped": small.flipped}, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, x in evaluator.model.state_dict().items():
        assert torch.equal(x, before[name])


def test_two_processes_give_the_figures_of_one(whole, tmp_path):
    evaluation, _ = whole
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import killed_evaluation as small\n"
        "evaluator = small.evaluator(strategy='ddp_fork', devices=2)\n"
        "evaluator.run({'flipped': small.flipped}, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, tmp_path], check=True, timeout=180)
    assert len(list(tmp_path.glob("flipped.*.jsonl"))) == 2
    step, calls = counted(small.step)
    again = small.evaluator(step).run({"flipped": small.flipped}, tmp_path)
    assert calls == []
    assert exactly(again.samples["flipped"]) == exactly(evaluation.samples["flipped"])
    assert exactly(again.figures["flipped"]) == exactly(evaluation.figures["flipped"])


def test_a_metric_that_keeps_its_samples_is_merged(tmp_path):
    def step(network, batch):
        x, labels = batch
        return [
            Sample({"auroc": {"preds": score[None].sigmoid(), "target": label[None]}})
            for score, label in zip(network(x).squeeze(1), labels, strict=True)
        ]

    network, (x, labels) = small.model(), small.Numbers().dataset.tensors
    whole = BinaryAUROC()
    whole.update(network(x).squeeze(1).sigmoid(), labels)
    evaluator = Evaluator(network, small.Numbers(), {"auroc": BinaryAUROC()}, step, trainer_options=small.QUIET)
    with pytest.warns(UserWarning, match="No (positive|negative) samples"):
        figures = evaluator.run({"plain": nullcontext}, tmp_path).figures
    assert figures["plain"]["auroc"] == pytest.approx(float(whole.compute()))


def test_a_table_shows_methods_side_by_side(whole):
    lines = str(whole[0]).splitlines()
    assert lines[0].split() == ["baseline", "flipped"]
    assert lines[1].split() == ["accuracy", *(f"{whole[0].figures[n]['accuracy']:.4g}" for n in small.METHODS)]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"model": small.model(seed=1)}, "model"),
        ({"data": small.Numbers(samples=12)}, "samples"),
        ({"data": small.Numbers(batch_size=2)}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"metrics": {"needles": small.metrics()["needles"]}}, "metrics"),
    ],
)
def test_another_evaluations_folder_is_refused(whole, change, differing):
    arguments = {"model": small.model(), "data": small.Numbers(), "metrics": small.metrics(), "step": small.step}
    evaluator = Evaluator(**(arguments | change), trainer_options=small.QUIET)
    with pytest.raises(ValueError, match=f"folder must hold an evaluation with the same {differing}, got"):
        evaluator.run({"baseline": nullcontext}, whole[1])


class Endless(small.Numbers):
    def test_dataloader(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(())

        return DataLoader(Stream(), batch_size=2)


class Unbatched(small.Numbers):
    def test_dataloader(self):
        return DataLoader(self.dataset, batch_size=None)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="metrics must hold at least one, got none"):
        Evaluator(small.model(), small.Numbers(), {}, small.step)
    with pytest.raises(ValueError, match=r"metrics must have states that are sums, .*, got PearsonCorrCoef as r"):
        Evaluator(small.model(), small.Numbers(), {"r": PearsonCorrCoef()}, small.step)
    with pytest.raises(ValueError, match="methods must be named by letters, digits, - and _, got 'a/b'"):
        small.evaluator().run({"a/b": nullcontext}, tmp_path)
    with pytest.raises(ValueError, match="step must return a sample for each of the batch's 3, got 1"):
        small.evaluator(lambda network, batch: small.step(network, batch)[:1]).run(small.METHODS, tmp_path)
    wrong = small.evaluator(lambda network, batch: [Sample({"f1": {}})] * len(batch[0]))
    with pytest.raises(ValueError, match="scored must name metrics among accuracy, needles, mean_score, got f1"):
        wrong.run(small.METHODS, tmp_path)
    for data, error, message in (
        (Endless(), TypeError, "data must be a data set with a length, got Stream"),
        (Unbatched(), ValueError, "data must come in batches of a fixed number of samples, got batch_size None"),
    ):
        with pytest.raises(error, match=message):
            Evaluator(small.model(), data, small.metrics(), small.step, trainer_options=small.QUIET).run(
                small.METHODS, tmp_path
            )
    with pytest.raises(RuntimeError, match="8 of 11 samples of baseline are missing in"):
        small.evaluator(limit_predict_batches=1).run(small.METHODS, tmp_path)
    path = tmp_path / "baseline.0.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"baseline.0.jsonl, line 4, must be a JSON object"):
        small.evaluator().run(small.METHODS, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["samples"] == 11
