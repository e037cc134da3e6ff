"""Claims of a paper: the ledger that states them, the experiments that test them, verdicts and reports."""

from attn.shared_eval.claims.experiment import Context, Experiment, MissingData, Outcome, Progress, experiment

__all__ = ["Context", "Experiment", "MissingData", "Outcome", "Progress", "experiment"]
