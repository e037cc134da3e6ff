"""Real runs of the toy paper, in worker processes."""

import functools
import importlib
import json
import sys

import pytest

from attn.shared_eval.claims.commands import main
from attn.shared_eval.claims.runner import _Pool
from attn.shared_eval.claims.worker import Finish

PINNED = ("method", "baseline", "shuffled")


@pytest.fixture
def report(toy):
    """What the last run of a tier reported, by claim."""

    def read(tier="mini"):
        full = json.loads((toy.out / "toy-paper" / tier / "report.json").read_text())
        return {claim["id"]: claim for claim in full["claims"]}

    return read


def test_a_run_judges_every_claim_and_runs_each_experiment_once_per_seed(toy, report, capsys):
    toy.write(
        toy.mini("holds", PINNED),
        toy.mini("by-interval", PINNED, judge="interval"),
        toy.mini("fails", PINNED, expect=["method <= 0.1 * baseline"], verdict="fails", note="tried"),
        toy.mini("misbehaves", PINNED, control=["shuffled >= 2 * baseline"]),
        toy.mini("drifted", {"method": 1.2, "baseline": 2.0, "shuffled": 2.1}),
        toy.mini("drifted-corpus", PINNED).replace('corpus = "abc"', 'corpus = "def"'),
        toy.mini("raises", experiment="raises"),
        toy.mini("undrawable", PINNED, experiment="undrawable"),
        toy.mini("needs", PINNED, experiment="needs"),
        toy.paper_tier,
    )
    assert main(toy.command()) == 1
    claims = report()
    verdicts = {name: claim["judgement"]["verdict"] for name, claim in claims.items()}
    assert verdicts == {
        "holds": "holds",
        "by-interval": "holds",
        "fails": "fails",
        "misbehaves": "fails",
        "drifted": "drifted",
        "drifted-corpus": "drifted",
        "raises": "fails",
        "undrawable": "fails",
        "needs": "not run",
        "large": "not run",
    }
    worse = [name for name, claim in claims.items() if claim["worse"]]
    assert worse == ["misbehaves", "drifted", "drifted-corpus", "undrawable"]
    assert [name for name, claim in claims.items() if claim["missing"]] == ["needs"]
    assert toy.calls == ["halves 0", "halves 1", "raises 0", "raises 1"]
    assert claims["raises"]["judgement"]["reason"] == "raises, seed 0: RuntimeError: no luck at all (logs/raises-0.txt)"
    assert "corpus/train.txt, which does not exist: download" in claims["needs"]["judgement"]["reason"]
    assert claims["large"]["judgement"]["reason"] == "no mini tier: needs corpus/train.txt; run --tier paper"
    assert claims["holds"]["peak_memory_mib"] > 50
    assert claims["undrawable"]["judgement"]["reason"] == (
        "its plots: KeyError: 'no such array' (logs/undrawable-plots.txt)"
    )
    folder = toy.out / "toy-paper" / "mini"
    assert "Traceback" in (folder / "logs" / "raises-0.txt").read_text()
    assert (folder / "logs" / "halves-1.txt").read_text() == "computing 1\n"
    assert claims["holds"]["plots"] == ["curves.png"]
    markdown = (folder / "report.md").read_text()
    assert all(text in markdown for text in ("**drifted**", "![curves.png](curves.png)", "0.5 (unverified)"))
    printed = capsys.readouterr().out
    assert all(name in printed for name in claims)
    assert "computing" not in printed

    # Measured again, in another number of processes: the same figures and the same image.
    image, figures = (folder / "curves.png").read_bytes(), claims["holds"]["judgement"]["figures"]
    assert main(toy.command("--claim", "holds", "--fresh", "--workers", "1")) == 0
    assert toy.calls == ["halves 0", "halves 0", "halves 1", "halves 1", "raises 0", "raises 1"]
    assert report()["holds"]["judgement"]["figures"] == figures
    assert (folder / "curves.png").read_bytes() == image


def test_a_paper_tier_without_its_data_says_what_to_get_and_exits_with_3(toy, report, capsys):
    toy.write(toy.mini("half"), toy.paper_tier)
    assert main(toy.command("--tier", "paper", "--claim", "large", "--workers", "1")) == 3
    where = f"needs {toy.data}/corpus/train.txt, which does not exist: download the corpus and put it there"
    assert report("paper")["large"]["judgement"]["reason"] == f"needs, seed 0: {where}"
    assert where in capsys.readouterr().out


def test_a_claim_without_a_paper_tier_exits_with_3_if_it_was_asked_for(toy, report):
    toy.write(toy.mini("half"), toy.paper_tier.replace('experiment = "needs"\n', ""))
    assert main(toy.command("--tier", "paper", "--claim", "half")) == 3
    assert main(toy.command("--tier", "paper")) == 3
    assert report("paper")["large"]["judgement"]["reason"] == (
        "no experiment is written for the paper tier; it needs corpus/train.txt"
    )
    assert main(toy.command("--claim", "large")) == 3


def test_a_mini_run_does_not_ask_for_what_the_ledger_records_as_not_run(toy):
    toy.write(toy.paper_tier)
    assert main(toy.command()) == 0


TWO_LIGHT_ONES = """
from attn.shared_eval.claims import experiment

@experiment
def first(context): ...

@experiment
def second(context): ...

first.plot("curves.png")(print)
"""


def test_the_experiments_that_a_ledger_names_must_exist(toy, capsys):
    (toy.source / "attn" / "toy_paper" / "experiments.py").write_text(TWO_LIGHT_ONES)
    toy.write(toy.mini("half", experiment="third"))
    assert main(toy.command("--workers", "1")) == 2
    error = capsys.readouterr().err
    assert "experiment 'third' is not in attn.toy_paper.experiments, which has: first, second" in error
    assert error.count("\n") == 1


def test_a_plot_is_drawn_by_one_experiment(toy, capsys):
    again = 'second.plot("curves.png")(print)\n'
    (toy.source / "attn" / "toy_paper" / "experiments.py").write_text(TWO_LIGHT_ONES + again)
    toy.write(toy.mini("half", experiment="first"))
    assert main(toy.command("--workers", "1")) == 2
    assert "plot curves.png must be drawn by one experiment, is drawn by 2" in capsys.readouterr().err


def test_experiments_that_cannot_be_imported_are_one_line(toy, capsys):
    (toy.source / "attn" / "toy_paper" / "experiments.py").write_text("import no_such_module\n")
    toy.write(toy.mini("half"))
    assert main(toy.command("--workers", "1")) == 2
    error = capsys.readouterr().err
    assert "error: cannot import attn.toy_paper.experiments: ModuleNotFoundError: No module named 'no_such_" in error
    assert error.count("\n") == 1
    assert "Traceback" in (toy.out / "toy-paper" / "mini" / "logs" / "catalogue.txt").read_text()


CRASHES = """
import os
from attn.shared_eval.claims.worker import Finish

def run(name):
    if name == "dies":
        os._exit(9)
    return Finish("done", name)
"""


def test_a_process_that_dies_takes_no_other_job_with_it(toy, request):
    (toy.source / "attn" / "toy_paper" / "crashes.py").write_text(CRASHES)
    function = importlib.import_module("attn.toy_paper.crashes").run
    for name in ("attn.toy_paper", "attn.toy_paper.crashes"):
        request.addfinalizer(functools.partial(sys.modules.pop, name))
    calls = {(name, 0): (name,) for name in ("first", "dies", "last")}
    with _Pool(2, lambda message: None) as pool:
        ends = dict(pool.each(function, calls))
        again = dict(pool.each(function, {("more", 0): ("more",)}))
    assert ends["first", 0] == Finish("done", "first")
    assert ends["last", 0] == Finish("done", "last")
    assert ends["dies", 0] == Finish("error", "the process died (killed for memory?)")
    assert again["more", 0].status == "done"
