"""Ledgers: what a good one says, and that every mistake is named with its file, claim and key."""

import re

import pytest

from attn.shared_eval.claims.ledger import LedgerError, load

PINNED = ("method", "baseline", "shuffled")


def test_a_ledger_keeps_what_it_says(toy):
    ledger = load(toy.write(toy.mini("half", verdict="holds", seeds=[4, 7], pinned=PINNED), toy.paper_tier))
    half, large = ledger.claim
    assert ledger.paper.title == "Toy"
    assert half.mini.seed_list == [4, 7]
    assert half.mini.figures == ["method", "baseline", "shuffled"]
    assert half.mini.pins["baseline"].mean == 2.0
    assert half.mini.measured.data == {"corpus": "abc"}
    assert half.paper is None
    assert large.paper.show == ["method"]
    assert large.paper.inequalities[0][1].margin({"method": 16.5}) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "mini.colour: unknown key"),
        ({"experiment": None}, "mini.experiment: missing"),
        ({"control": []}, "mini.control: list should have at least 1 item"),
        ({"expect": ["method <= baseline", "method <<= 1"]}, r"mini.expect\[1\]: cannot parse 'method <<= 1'"),
        ({"control": ["1 < 2"]}, r"mini.control\[0\]: an expectation must name a figure"),
        ({"expect": "method <= 1"}, "mini.expect: input should be a valid list, got 'method <= 1'"),
        (
            {"seeds": "3"},
            "mini.seeds: must be a positive number, or a list of different numbers .*, got '3'",
        ),
        ({"seeds": 1}, "mini.seeds: must be at least two seeds, got 1"),
        ({"seeds": [3, 3]}, "mini.seeds: must be a positive number, or a list of different"),
        ({"seeds": True}, "mini.seeds: must be a positive number"),
        ({"seeds": 0}, "mini.seeds: must be a positive number"),
        ({"seeds": [0, -1]}, "mini.seeds: must be a positive number"),
        ({"seeds": []}, "mini.seeds: must be a positive number"),
        ({"judge": "majority"}, "mini.judge: input should be 'every seed' or 'interval', got 'majority'"),
        ({"verdict": "proved"}, "mini.verdict: input should be 'holds', 'drifted', 'fails' or 'not run'"),
        ({"verdict": "fails", "pinned": PINNED}, "mini.note: missing"),
        ({"show": ["not a name"]}, r"mini.show\[0\]: string should match"),
        ({"tolerance": {"method": -1.0}}, "mini.tolerance.method: input should be greater than or equal to 0"),
        (
            {"tolerance": {"methd": 1.0}},
            "mini.tolerance.methd: must be a figure that is pinned: method, baseline",
        ),
        (
            {"verdict": "holds", "pinned": ("method", "baseline")},
            r"mini.pins.shuffled: missing pin, needed by mini.control\[0\]",
        ),
        (
            {"verdict": "holds", "show": ["loss"], "pinned": PINNED},
            r"mini.pins.loss: missing pin, needed by mini.show\[0\]",
        ),
        (
            {"verdict": "holds", "expect": ["methd <= baseline"], "pinned": PINNED},
            r"mini.pins.methd: missing pin, needed by mini.expect\[0\] \(pinned: method, baseline, shuffled\)",
        ),
        (
            {"verdict": "holds", "pins": {name: {"mean": 1.0, "tolerance": 0.1} for name in PINNED}},
            "mini.measured: missing",
        ),
        (
            {"pins": {"method": {"mean": "1", "tolerance": 0.1}}},
            "mini.pins.method.mean: input should be a valid number, got '1'",
        ),
        ({"pins": {"method": {"mean": 1.0}}}, "mini.pins.method.tolerance: missing"),
    ],
)
def test_a_mistake_is_named_with_file_claim_and_key(toy, changes, says):
    path = toy.write(toy.mini("fine", experiment="thirds"), toy.mini("half", **changes))
    with pytest.raises(LedgerError, match=f'^{re.escape(str(path))}: claim "half": {says}') as caught:
        load(path)
    assert str(caught.value).count("\n") == 0


def test_a_mistake_in_the_paper_tier_is_named(toy):
    with pytest.raises(LedgerError, match=r'claim "large": paper.targets\[0\].tolerance: missing'):
        load(toy.write(toy.paper_tier.replace("tolerance = 0.4, ", "")))


def test_a_claim_without_an_id_is_named_by_its_number(toy):
    with pytest.raises(LedgerError, match="claim number 2: id: missing"):
        load(toy.write(toy.mini("fine"), toy.mini("x").replace('id = "x"\n', "")))


def test_two_claims_of_one_id_are_refused(toy):
    with pytest.raises(LedgerError, match='claim "half": id: must be unique'):
        load(toy.write(toy.mini("half"), toy.mini("half")))


def test_a_claim_needs_a_tier(toy):
    with pytest.raises(LedgerError, match='claim "half": mini: missing: a claim needs a section mini or paper'):
        load(toy.write(toy.mini("half").partition("[claim.mini]")[0]))


def test_a_ledger_needs_a_claim(toy):
    with pytest.raises(LedgerError, match=r"claims\.toml: claim: missing"):
        load(toy.write())


def test_a_key_of_the_paper_is_named(toy):
    with pytest.raises(LedgerError, match=r"claims\.toml: paper.year: input should be a valid integer, got '2026'"):
        load(toy.write(toy.mini("half"), paper=toy.paper.replace("2026", '"2026"')))


def test_every_mistake_has_its_line(toy):
    with pytest.raises(LedgerError) as caught:
        load(toy.write(toy.mini("one", judge=None), toy.mini("two", metric=None)))
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == [
        'claim "one": mini.judge: missing',
        'claim "two": mini.metric: missing',
    ]


@pytest.mark.parametrize("content", [b"[paper\n", b"\xff\xfe"])
def test_what_is_no_toml_is_refused(toy, content):
    path = toy.root / "claims.toml"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"claims\.toml: "):
        load(path)


def test_a_missing_ledger_is_named(toy):
    with pytest.raises(LedgerError, match=r"claims\.toml: no such file"):
        load(toy.root / "claims.toml")


def test_an_unknown_claim_is_named_with_those_that_exist(toy):
    with pytest.raises(LedgerError, match="no claim 'x'; the claims are: one, two"):
        load(toy.write(toy.mini("one"), toy.mini("two"))).choose(["two", "x"])


def test_pins_may_be_missing_where_they_are_to_be_written(toy):
    path = toy.write(toy.mini("half", verdict="holds"))
    assert load(path, need_pins=False).claim[0].mini.pins == {}


def test_claims_that_share_an_experiment_share_its_seeds(toy):
    says = 'claim "two": mini.seeds: must be those of claim "one", which shares its experiment'
    with pytest.raises(LedgerError, match=says):
        load(toy.write(toy.mini("one"), toy.mini("two", seeds=3)))
    load(toy.write(toy.mini("one"), toy.mini("two", seeds=3, experiment="other")))
