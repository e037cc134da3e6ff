"""Verdicts on hand-made figures."""

import datetime
import math

import pytest

from attn.shared_eval.claims.expectation import ExpectationError
from attn.shared_eval.claims.ledger import load
from attn.shared_eval.claims.store import Record
from attn.shared_eval.claims.verdict import judge, worse

PINNED = ("method", "baseline", "shuffled")
GOOD = {"method": 1.0, "baseline": 2.0, "shuffled": 2.1}


def record(figures, data=None):
    return Record(
        figures=figures,
        data={"corpus": "abc"} if data is None else data,
        arrays_sha256="",
        seconds=1.0,
        peak_memory_mib=1.0,
        hardware="an abacus",
        versions={},
        date=datetime.date(2026, 1, 2),
    )


@pytest.fixture
def verdict(toy):
    def on(*records, pinned=True, claim=None, **changes):
        text = claim or toy.mini("half", **{"pinned": PINNED, "seeds": len(records), **changes})
        (stated,) = load(toy.write(text)).claim
        tier = stated.mini or stated.paper
        full = [record(item) if isinstance(item, dict) else item for item in records]
        return judge(tier, range(len(records)), full, pinned=pinned)

    return on


def test_a_claim_holds_if_expectation_control_and_pins_are_met(verdict):
    judgement = verdict(GOOD, GOOD | {"method": 1.02})
    assert (judgement.verdict, judgement.reason) == ("holds", "")
    assert judgement.figures["method"].mean == pytest.approx(1.01)
    assert [(check.kind, check.met) for check in judgement.checks] == [("expect", True), ("control", True)]
    assert judgement.checks[0].margins == pytest.approx([0.2, 0.18])


def test_a_claim_fails_if_one_seed_does_not_meet_the_expectation(verdict):
    judgement = verdict(GOOD, GOOD | {"method": 1.3})
    assert judgement.verdict == "fails"
    assert judgement.reason == "expect 'method <= 0.6 * baseline' is not met on seed 1 (method 1.3, baseline 2)"


def test_a_claim_fails_if_the_control_shows_the_effect(verdict):
    judgement = verdict(GOOD, GOOD | {"shuffled": 1.0})
    assert judgement.verdict == "fails"
    assert judgement.reason == "control 'shuffled >= baseline' is not met on seed 1 (shuffled 1, baseline 2)"


def test_all_that_is_not_met_is_said(verdict):
    assert verdict(*[{"method": 2.0, "baseline": 1.0, "shuffled": 0.0}] * 2).reason.count("is not met") == 2


def test_a_claim_drifts_if_a_mean_leaves_its_tolerance(verdict):
    assert verdict(GOOD | {"method": 1.0}, GOOD | {"method": 1.09}).verdict == "holds"
    judgement = verdict(GOOD | {"method": 1.06}, GOOD | {"method": 1.06})
    assert (judgement.verdict, judgement.reason) == ("drifted", "method is 1.06, pinned 1 +- 0.05")
    assert [pin.within for pin in judgement.pins] == [False, True, True]


def test_a_claim_drifts_if_data_has_another_fingerprint(verdict):
    judgement = verdict(record(GOOD, {"corpus": "def"}), record(GOOD, {"corpus": "def"}))
    assert judgement.verdict == "drifted"
    assert judgement.reason == "drifted corpus: its fingerprint is def, pinned abc"


@pytest.mark.parametrize("data", [{}, {"corpus": "abc", "more": "x"}])
def test_a_claim_drifts_if_a_fingerprint_is_gone_or_new(verdict, data):
    assert verdict(record(GOOD, data), record(GOOD, data)).verdict == "drifted"


def test_seeds_that_read_different_data_drift(verdict):
    assert verdict(record(GOOD, {"corpus": "def"}), record(GOOD, {"corpus": "abc"})).verdict == "drifted"


def test_a_failure_is_not_called_a_drift(verdict):
    assert verdict(GOOD | {"method": 9.0}, GOOD | {"method": 9.0}).verdict == "fails"


def test_a_pinned_figure_that_is_gone_drifts(verdict):
    figures = {name: value for name, value in GOOD.items() if name != "shuffled"}
    judgement = verdict(figures, figures, control=["baseline >= method"])
    assert (judgement.verdict, judgement.pins[2].within) == ("drifted", False)


def test_pins_are_left_out_on_request(verdict):
    judgement = verdict(GOOD | {"method": 1.06}, record(GOOD | {"method": 1.06}, {"corpus": "def"}), pinned=False)
    assert (judgement.verdict, judgement.pins) == ("holds", [])


def test_the_interval_of_paired_margins_decides_where_the_ledger_says_so(verdict):
    noisy = [GOOD, GOOD | {"method": 1.3}]
    assert verdict(*noisy, judge="interval", pinned=False).verdict == "fails"
    # The level moves from seed to seed by far more than the margin does.
    paired = [{name: value * scale for name, value in GOOD.items()} for scale in (1.0, 1.1, 0.9)]
    judgement = verdict(*paired, judge="interval", pinned=False)
    assert judgement.verdict == "holds"
    half = 4.302653 * 0.02 / math.sqrt(3)  # margins 0.2, 0.22, 0.18
    assert judgement.checks[0].low == pytest.approx(0.2 - half, rel=1e-6)


def test_one_bad_seed_among_many_fails_every_seed_but_not_the_interval(verdict):
    many = [GOOD | {"method": 1.0 + 0.001 * index} for index in range(9)] + [GOOD | {"method": 1.21}]
    assert verdict(*many, judge="every seed", pinned=False).verdict == "fails"
    assert verdict(*many, judge="interval", pinned=False).verdict == "holds"


@pytest.mark.parametrize("judge_by", ["every seed", "interval"])
@pytest.mark.parametrize("name", ["method", "shuffled"])
def test_nan_fails(verdict, name, judge_by):
    assert verdict(GOOD, GOOD, GOOD | {name: math.nan}, judge=judge_by).verdict == "fails"


def test_a_target_is_compared_with_the_mean(toy, verdict):
    assert verdict({"method": 16.0}, {"method": 17.0}, claim=toy.paper_tier).verdict == "holds"
    judgement = verdict({"method": 17.0}, {"method": 18.0}, claim=toy.paper_tier)
    assert judgement.verdict == "fails"
    assert judgement.reason == "target 'abs(method - 16.7) <= 0.4' is not met (method 17.5)"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expect": ["methd <= 1"]}, r"^expect\[0\]: unknown figure 'methd' .*baseline, method, shuffled"),
        ({"control": ["method <= 9", "methd <= 1"]}, r"^control\[1\]: unknown figure 'methd'"),
        (
            {"show": ["method", "methd"]},
            r"^show\[1\]: unknown figure 'methd'; the figures are: baseline, method, shuffled",
        ),
    ],
)
def test_a_figure_that_the_experiment_does_not_give_is_an_error(verdict, changes, says):
    with pytest.raises(ExpectationError, match=says):
        verdict(GOOD, GOOD, pinned=False, verdict="not run", **changes)


@pytest.mark.parametrize(
    ("verdict_now", "recorded", "expected"),
    [
        ("holds", "holds", False),
        ("drifted", "holds", True),
        ("fails", "holds", True),
        ("fails", "drifted", True),
        ("holds", "fails", False),
        ("fails", "fails", False),
        ("not run", "holds", False),
        ("fails", "not run", False),
    ],
)
def test_worse_is_a_step_from_holds_to_drifted_to_fails(verdict_now, recorded, expected):
    assert worse(verdict_now, recorded) is expected
