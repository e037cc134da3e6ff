"""The ledger is sound, and what it names exists."""

from pathlib import Path

from attn.icl_regression import experiments
from attn.shared_eval.claims import Experiment
from attn.shared_eval.claims.ledger import load


def test_every_experiment_of_the_ledger_exists():
    ledger = load(Path(__file__).parents[1] / "claims.toml")
    tiers = [claim.tier(name) for claim in ledger.claim for name in ("mini", "paper")]
    named = {tier.experiment for tier in tiers if tier is not None and tier.experiment is not None}
    assert named
    assert all(isinstance(getattr(experiments, name, None), Experiment) for name in named)
