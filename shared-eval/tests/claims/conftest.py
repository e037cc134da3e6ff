"""A toy paper, built in a temporary folder."""

import os

import pytest

PAPER = """\
# The toy's ledger.
[paper]
title = "Toy"
authors = ["A. Author"]
venue = "Toys"
year = 2026
summary = "A method that is half its baseline."
"""

EXPERIMENTS = '''\
import time

import numpy as np
import torch
from matplotlib.figure import Figure

from attn.shared_eval.claims import Outcome, experiment


def count(context, name):
    with (context.data_root / "calls.txt").open("a") as file:
        file.write(f"{name} {context.seed}\\n")


@experiment
def halves(context):
    """A method at half its baseline, and a shuffled control at its level."""
    count(context, "halves")
    for step in range(3):
        context.progress(step, 3, "thinking")
    noise = 0.01 * torch.randn(()).item()
    print("computing", context.seed)
    return Outcome(
        {"method": 1 + noise, "baseline": 2 + noise, "shuffled": 2.1 + noise},
        {"curve": np.linspace(0, 1 + noise, 5)},
        {"corpus": "abc"},
    )


@halves.plot("curves.png")
def draw(outcomes):
    figure = Figure()
    axes = figure.subplots()
    for outcome in outcomes:
        axes.plot(outcome.arrays["curve"], label=f"{outcome.figures['method']:.3f}")
    axes.legend()
    return figure


@experiment
def raises(context):
    count(context, "raises")
    raise RuntimeError("no luck\\nat all")


@experiment
def undrawable(context):
    return Outcome({"method": 1.0, "baseline": 2.0, "shuffled": 2.1}, data={"corpus": "abc"})


@undrawable.plot("undrawable.png")
def draw_nothing(outcomes):
    return outcomes[0].arrays["no such array"]


@experiment
def needs(context):
    context.require("corpus/train.txt", "download the corpus")


@experiment
def slow(context):
    """In the first run, one of three seeds blocks until it is killed; it keeps a checkpoint in its work_dir."""
    count(context, "slow")
    checkpoint = context.work_dir / "step.txt"
    if context.seed == 1 and not checkpoint.exists():
        checkpoint.write_text("7")
        context.progress(1, 2)
        time.sleep(600)
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    value = torch.randn(()).item()
    return Outcome({"value": value, "start": start, "control": value + 1})
'''


PINNED = {"method": 1.0, "baseline": 2.0, "shuffled": 2.1}
MEASURED = """
[claim.mini.measured]
date = 2026-01-02
hardware = "an abacus"
seconds = 1.0
peak_memory_mib = 2.0
versions = { torch = "1" }
data = { corpus = "abc" }
"""


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


PAPER_TIER = """
[[claim]]
id = "large"
statement = "It scales."
source = "table 2"
published = { text = "16.7", verified = true }

[claim.paper]
experiment = "needs"
checkpoint = "gpt2"
data = "WikiText-103"
split = "test"
metric = "perplexity"
targets = [{ figure = "method", value = 16.7, tolerance = 0.4, source = "table 2", verified = true }]
hardware = "one GPU"
time = "8 hours"
needs = "corpus/train.txt"
"""


class Toy:
    """The toy's folder, the texts of its ledger, and the environment in which a process finds its package."""

    paper = PAPER
    paper_tier = PAPER_TIER

    def __init__(self, root):
        self.root = root
        self.folder = root / "packages" / "toy-paper"
        self.source = self.folder / "src"
        self.ledger = self.folder / "claims.toml"
        self.data = root / "data"
        self.out = root / "results"
        package = self.source / "attn" / "toy_paper"
        package.mkdir(parents=True)
        self.data.mkdir()
        (package / "__init__.py").touch()
        (package / "experiments.py").write_text(EXPERIMENTS)
        self.environment = os.environ | {"PYTHONPATH": str(self.source)}

    def mini(self, name, pinned=(), **changes):
        """A claim with a mini tier; every key can be changed, None leaves it out.

        Figures of PINNED that are named in pinned get a pin with a tolerance of 0.05, or are given as a mapping.
        """
        keys = {
            "experiment": "halves",
            "metric": "loss in nats",
            "expect": ["method <= 0.6 * baseline"],
            "control": ["shuffled >= baseline"],
            "seeds": 2,
            "judge": "every seed",
            "show": ["method", "baseline"],
            "verdict": "holds" if pinned else "not run",
        } | changes
        if pinned:
            means = pinned if isinstance(pinned, dict) else {name: PINNED[name] for name in pinned}
            keys["pins"] = {name: {"mean": mean, "tolerance": 0.05} for name, mean in means.items()}
        head = f"""
[[claim]]
id = "{name}"
statement = "The method is half its baseline."
source = "table 1"
published = {{ text = "0.5", verified = false }}

[claim.mini]
"""
        lines = "\n".join(f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None)
        return f"{head}{lines}\n{MEASURED if pinned else ''}"

    def write(self, *claims, paper=PAPER):
        """Write the ledger; the result is its path."""
        self.ledger.write_text(paper + "".join(claims))
        return self.ledger

    @property
    def calls(self):
        """The experiments that were called, each with its seed."""
        path = self.data / "calls.txt"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def command(self, *more):
        """Arguments of a reproduction."""
        return ["reproduce", str(self.folder), "--data-root", str(self.data), "--out", str(self.out), *more]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    made = Toy(tmp_path)
    monkeypatch.syspath_prepend(made.source)
    return made
