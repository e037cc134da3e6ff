"""Of every metric: the same figures however samples are split into batches and processes, and after pickling."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from attn.shared_eval import metrics

SCRIPT = Path(__file__).with_name("every_metric.py")
SPEC = importlib.util.spec_from_file_location("every_metric", SCRIPT)
every = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(every)
NAMES = list(every.every_metric())


def measured(name, order=None):
    metric, samples = every.every_metric()[name]
    for place in order if order is not None else range(len(samples)):
        positional, keywords = samples[place]
        metric.update(*positional, **keywords)
    return every.figures(metric)


def joined(left, right):
    return torch.cat([left, right]) if isinstance(left, torch.Tensor) else left + right


def test_no_metric_is_left_out():
    tried = {type(metric) for metric, _ in every.every_metric().values()}
    public = [getattr(metrics, name) for name in metrics.__all__]
    assert tried == {value for value in public if isinstance(value, type) and issubclass(value, Metric)}


@pytest.mark.parametrize("name", NAMES)
def test_order_and_batches_change_nothing(name):
    alone = measured(name)
    samples = every.every_metric()[name][1]
    assert measured(name, reversed(range(len(samples)))) == pytest.approx(alone, nan_ok=True)
    if name == "frechet" or len(samples) < 3:
        return
    metric, _ = every.every_metric()[name]
    metric.update(*samples[0][0])
    rest = samples[1][0]
    for positional, _ in samples[2:]:
        rest = [joined(left, right) for left, right in zip(rest, positional, strict=True)]
    metric.update(*rest)
    assert every.figures(metric) == pytest.approx(alone, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_counts_in_int64_and_sums_in_float64_that_add_up(name):
    metric, _ = every.every_metric()[name]
    assert metric._defaults
    for state, default in metric._defaults.items():
        if default == []:  # a ranking needs every sample
            assert name.startswith("lvis")
            assert metric._reductions[state] is dim_zero_cat
            continue
        assert default.dtype in (torch.int64, torch.float64), state
        assert metric._reductions[state] is not None
        assert not default.any()


def test_two_processes_give_the_figures_of_one(tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", SCRIPT, tmp_path], check=True, timeout=120)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name in NAMES:
        for figures in ranks:
            assert figures[name] == pytest.approx(measured(name), nan_ok=True), name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "structure"])
def test_a_pickled_metric_goes_on(name):
    metric, samples = every.every_metric()[name]
    for positional, keywords in samples[:-1]:
        metric.update(*positional, **keywords)
    again = pickle.loads(pickle.dumps(metric))
    positional, keywords = samples[-1]
    again.update(*positional, **keywords)
    assert every.figures(again) == pytest.approx(measured(name), nan_ok=True)
