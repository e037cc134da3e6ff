"""Repinning: figures, verdict and plots are rewritten, everything else is kept."""

import datetime
import subprocess

import pytest
from rich.console import Console

from attn.shared_eval.claims import repinning
from attn.shared_eval.claims.commands import main
from attn.shared_eval.claims.ledger import load
from attn.shared_eval.claims.report import ClaimReport, Report
from attn.shared_eval.claims.runner import UsageError
from attn.shared_eval.claims.statistics import t_interval
from attn.shared_eval.claims.verdict import Judgement

GOOD = {"method": [0.99, 1.01], "baseline": [2.0, 2.0], "shuffled": [2.1, 2.1]}


def measured(toy, name="half", *, tier="mini", verdict="holds", reason="", figures=GOOD, plots=()):
    """The report of a run that measured one claim."""
    ledger = load(toy.ledger, need_pins=False)
    (claim,) = ledger.choose([name])
    judgement = Judgement(
        verdict=verdict, reason=reason, figures={figure: t_interval(values) for figure, values in figures.items()}
    )
    one = ClaimReport(
        id=name, statement="", source="", published=claim.published, experiment="halves", metric="", seeds=[0, 1],
        judge=None, show=["method"], recorded="not run", worse=False, missing=False, judgement=judgement,
        seconds=3.21, peak_memory_mib=99.6, data={"corpus": "xyz"}, plots=list(plots),
    )  # fmt: skip
    return Report(
        paper="toy-paper", title="Toy", tier=tier, device="cpu", date=datetime.date(2026, 3, 4), hardware="a loom",
        versions={"torch": "2"}, seconds=1.0, claims=[one],
    )  # fmt: skip


def repin(toy, report):
    repinning.repin(toy.ledger, report, toy.out, Console(quiet=True))
    return load(toy.ledger).claim


def test_pins_are_rewritten_and_the_rest_of_the_ledger_is_kept(toy):
    half = toy.mini("half", ("method", "baseline", "shuffled")).replace("'halves'", "'halves'  # the one")
    old = toy.write("# first\n", half, toy.mini("other"), toy.paper_tier, "# last\n").read_text()
    (claim, *_) = repin(toy, measured(toy))
    pins = claim.mini.pins
    assert (pins["method"].mean, pins["baseline"].mean) == (1.0, 2.0)
    assert pins["method"].low == pytest.approx(1.0 - 12.7062 * 0.01414214 / 2**0.5, rel=1e-4)
    assert pins["method"].tolerance == pytest.approx(12.7062 * 0.01414214 / 2**0.5, rel=1e-4)
    assert pins["baseline"].tolerance == pytest.approx(0.04)
    assert claim.mini.measured.model_dump() == {
        "date": datetime.date(2026, 3, 4),
        "hardware": "a loom",
        "seconds": 3.2,
        "peak_memory_mib": 100.0,
        "versions": {"torch": "2"},
        "data": {"corpus": "xyz"},
    }
    new = toy.ledger.read_text()
    changed = set(old.splitlines()) ^ set(new.splitlines())
    rewritten = ("pins = ", "date", "hardware", "seconds", "peak_memory_mib", "versions", "data")
    assert all(line.startswith(rewritten) for line in changed)
    assert [line for line in new.splitlines() if "#" in line] == [line for line in old.splitlines() if "#" in line]
    repin(toy, measured(toy))
    assert toy.ledger.read_text() == new


def test_a_claim_that_was_not_run_gets_its_first_pins(toy):
    toy.write(toy.mini("half"), toy.mini("other"), toy.paper_tier)
    half, other, _ = repin(toy, measured(toy))
    assert half.mini.verdict == "holds"
    assert list(half.mini.pins) == ["method", "baseline", "shuffled"]
    assert half.mini.measured.hardware == "a loom"
    assert (other.mini.verdict, other.mini.pins) == ("not run", {})
    text = toy.ledger.read_text()
    repin(toy, measured(toy))
    assert toy.ledger.read_text() == text


def test_a_pin_that_no_inequality_needs_any_more_is_dropped(toy):
    toy.write(toy.mini("half", {"method": 1.0, "baseline": 2.0, "shuffled": 2.1, "old": 3.0}))
    assert "old" not in repin(toy, measured(toy))[0].mini.pins


def test_a_tolerance_that_the_ledger_states_is_kept(toy):
    toy.write(toy.mini("half", tolerance={"method": 0.5}))
    pins = repin(toy, measured(toy))[0].mini.pins
    assert (pins["method"].tolerance, pins["baseline"].tolerance) == (0.5, 0.04)


def test_a_claim_that_newly_fails_gets_its_reason_as_note(toy):
    toy.write(toy.mini("half"))
    tier = repin(toy, measured(toy, verdict="fails", reason="expect 'x' is not met"))[0].mini
    assert (tier.verdict, tier.note) == ("fails", "expect 'x' is not met")


def test_a_note_is_kept(toy):
    toy.write(toy.mini("half", note="tried much"))
    assert repin(toy, measured(toy, verdict="fails", reason="r"))[0].mini.note == "tried much"


@pytest.mark.parametrize("verdict", ["not run", "fails"])
def test_a_claim_without_figures_keeps_its_pins(toy, verdict):
    old = toy.write(toy.mini("half", ("method", "baseline", "shuffled"))).read_text()
    repin(toy, measured(toy, verdict=verdict, figures={}))
    assert toy.ledger.read_text() == old


def test_a_figure_that_is_not_finite_is_not_pinned(toy):
    old = toy.write(toy.mini("half")).read_text()
    with pytest.raises(UsageError, match=r'claim "half": pins\.method: must be finite, got'):
        repin(toy, measured(toy, figures=GOOD | {"method": [1.0, float("nan")]}))
    assert toy.ledger.read_text() == old


def test_the_paper_tier_is_pinned_too(toy):
    toy.write(toy.paper_tier)
    tier = repin(toy, measured(toy, "large", tier="paper", figures={"method": [16.5, 16.7], "more": [1, 1]}))[0].paper
    assert (tier.verdict, list(tier.pins)) == ("holds", ["method"])


def test_plots_are_copied_beside_the_ledger(toy):
    toy.write(toy.mini("half"))
    toy.out.mkdir()
    (toy.out / "curves.png").write_bytes(b"image")
    repin(toy, measured(toy, plots=["curves.png"]))
    assert (toy.folder / "figures" / "curves.png").read_bytes() == b"image"


def git(toy, *arguments):
    subprocess.run(["git", "-C", toy.root, "-c", "user.name=x", "-c", "user.email=x@y", *arguments], check=True)


def test_repinning_needs_a_clean_tree(toy, capsys):
    toy.write(toy.mini("half"))
    assert main(toy.command("--repin")) == 2
    assert "--repin must run in a git tree" in capsys.readouterr().err
    git(toy, "init", "-q")
    assert main(toy.command("--repin")) == 2
    assert "--repin must run in a tree without uncommitted changes, found '?? packages/'" in capsys.readouterr().err
    git(toy, "add", ".")
    git(toy, "commit", "-qm", "all")
    repinning.require_clean_tree(toy.folder)


def test_repinning_measures_the_seeds_of_the_ledger(toy, capsys):
    toy.write(toy.mini("half"))
    assert main(toy.command("--repin", "--allow-dirty", "--seeds", "3")) == 2
    assert "--repin must measure the ledger's seeds" in capsys.readouterr().err


def test_a_real_run_is_repinned_and_then_holds(toy):
    toy.write(toy.mini("half", expect=["method <= 0.6 * baseline"]))
    assert main(toy.command("--repin", "--allow-dirty", "--workers", "1")) == 0
    (claim,) = load(toy.ledger).claim
    assert claim.mini.verdict == "holds"
    assert claim.mini.pins["method"].mean == pytest.approx(1.0110122, rel=1e-5)
    assert (toy.folder / "figures" / "curves.png").read_bytes() == (toy.out / "toy-paper/mini/curves.png").read_bytes()
