"""Verdicts: a claim's expectation, control and pins against what was measured.

- **holds**: every inequality of the expectation and of the control is met, and every pinned figure is matched.
- **drifted**: they are met, but the mean of a figure lies further from its pin than the tolerance, or data that was
  read has another fingerprint than the pinned one.
- **fails**: an inequality is not met, or the experiment or its plots raised an error.
- **not run**: the data or the hardware is not here, or there is no experiment in this tier.

An inequality is judged by its margin, the side that should be larger minus the other, computed from the figures of one
seed (so that what the compared methods share cancels). Judge "every seed": the margin is at least 0 (above 0 for a
strict one) on every seed. Judge "interval": the lower end of the 95 % t-interval of the mean margin is. A target of the
paper tier compares means: the mean over the seeds must lie within the tolerance of the published value. NaN satisfies
nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from attn.shared_eval.claims.expectation import ExpectationError, Inequality
from attn.shared_eval.claims.ledger import MiniTier, PaperTier, Pin, Verdict
from attn.shared_eval.claims.statistics import Estimate, t_interval
from attn.shared_eval.claims.store import Record

__all__ = ["VERDICTS", "Check", "Judgement", "PinCheck", "judge", "worse"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""From best to worst; "not run" is no worse than any."""

_RANK = {"holds": 0, "drifted": 1, "fails": 2}


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Check(_Result):
    """One inequality of the expectation or of the control, or one target."""

    kind: Literal["expect", "control", "target"]
    text: str
    """The inequality, as it stands in the ledger."""
    margins: list[float]
    """Per seed, the side that should be larger minus the other; of a target, one margin of the means."""
    mean: float
    low: float | None
    """Lower end of the 95 % t-interval of the mean margin; null with one margin."""
    high: float | None
    met: bool


class PinCheck(_Result):
    """A figure's mean against its pin."""

    figure: str
    pinned: float
    measured: float
    tolerance: float
    within: bool


class Judgement(_Result):
    """A verdict with its grounds."""

    verdict: Verdict
    reason: str = ""
    """Why the verdict is not "holds", in one line."""
    figures: dict[str, Estimate] = {}
    """All figures of the experiment."""
    checks: list[Check] = []
    pins: list[PinCheck] = []


def worse(verdict: Verdict, recorded: Verdict) -> bool:
    """Whether a verdict is worse than the recorded one; "not run" promises nothing and breaks no promise."""
    return _RANK.get(verdict, 0) > _RANK.get(recorded, 2)


def judge(
    tier: MiniTier | PaperTier, seeds: Sequence[int], records: Sequence[Record], *, pinned: bool = True
) -> Judgement:
    """The verdict on one claim.

    Args:
        tier: the claim's section of the ledger.
        seeds: the seeds that were run.
        records: what was measured, in their order.
        pinned: whether to compare with the pins; they belong to the ledger's seeds, so not with others.

    Raises:
        ExpectationError: if the ledger names a figure that the experiment does not give, with its key.
    """
    shared = [name for name in records[0].figures if all(name in record.figures for record in records)]
    figures = {name: t_interval([record.figures[name] for record in records]) for name in shared}
    for index, name in enumerate(tier.show):
        if name not in figures:
            key = f"show[{index}]" if isinstance(tier, MiniTier) else "targets"
            raise ExpectationError(
                f"{key}: unknown figure {name!r}; the figures are: {', '.join(sorted(figures)) or 'none'}"
            )
    checks, unmet = [], []
    for key, inequality in tier.inequalities:
        try:
            check, where = _check(tier, key, inequality, seeds, records, figures)
        except ExpectationError as error:
            raise ExpectationError(f"{key}: {error}") from None
        checks.append(check)
        if not check.met:
            unmet.append(f"{check.kind} {check.text!r} is not met {where}")
    pins = [_pin_check(name, pin, figures) for name, pin in tier.pins.items()] if pinned else []
    grounds = {"figures": figures, "checks": checks, "pins": pins}
    if unmet:
        return Judgement.model_validate({"verdict": "fails", "reason": "; ".join(unmet), **grounds})
    drift = [
        f"{pin.figure} is {pin.measured:.4g}, pinned {pin.pinned:.4g} +- {pin.tolerance:.2g}"
        for pin in pins
        if not pin.within
    ]
    if pinned and tier.measured is not None:
        drift += _data_drift(tier.measured.data, records)
    if drift:
        return Judgement.model_validate({"verdict": "drifted", "reason": "; ".join(drift), **grounds})
    return Judgement.model_validate({"verdict": "holds", **grounds})


def _check(
    tier: MiniTier | PaperTier,
    key: str,
    inequality: Inequality,
    seeds: Sequence[int],
    records: Sequence[Record],
    figures: Mapping[str, Estimate],
) -> tuple[Check, str]:
    """The check of one inequality, and where it is not met."""
    if isinstance(tier, PaperTier):
        means = {name: estimate.mean for name, estimate in figures.items()}
        margin = t_interval([inequality.margin(means)])
        met, where = inequality.met(margin.mean), f"({_named(inequality, means)})"
        kind = "target"
    else:
        margin = t_interval([inequality.margin(record.figures) for record in records])
        kind = key.partition("[")[0]
        if tier.judge == "interval":
            met = margin.low is not None and inequality.met(margin.low)
            low, high = (f"{end:.4g}" if end is not None else "unknown" for end in (margin.low, margin.high))
            where = f"(margin {margin.mean:.4g}, interval {low} to {high})"
        else:
            failing = [index for index, value in enumerate(margin.values) if not inequality.met(value)]
            met = not failing
            where = "on " + ", ".join(
                f"seed {seeds[index]} ({_named(inequality, records[index].figures)})" for index in failing
            )
    check = Check.model_validate(
        {
            "kind": kind,
            "text": inequality.text,
            "margins": margin.values,
            "met": met,
            **margin.model_dump(exclude={"values"}),
        }
    )
    return check, where


def _named(inequality: Inequality, figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.4g}" for name in inequality.figures)


def _pin_check(name: str, pin: Pin, figures: Mapping[str, Estimate]) -> PinCheck:
    """A figure that is gone counts as NaN, which is never within the tolerance."""
    measured = figures[name].mean if name in figures else float("nan")
    within = abs(measured - pin.mean) <= pin.tolerance + 1e-6 * abs(pin.mean)  # pins are rounded
    return PinCheck(figure=name, pinned=pin.mean, measured=measured, tolerance=pin.tolerance, within=within)


def _data_drift(pinned: Mapping[str, str], records: Sequence[Record]) -> list[str]:
    drift = []
    for name in sorted({*pinned, *(name for record in records for name in record.data)}):
        seen = sorted({record.data[name] for record in records if name in record.data})
        if seen != [pinned.get(name)]:
            have = " and ".join(fingerprint[:12] for fingerprint in seen) or "absent"
            drift.append(f"drifted {name}: its fingerprint is {have}, pinned {pinned.get(name, 'none')[:12]}")
    return drift
