"""Repinning: writing measured figures into the ledger, with its comments and order kept."""

import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import tomlkit
from rich.console import Console
from tomlkit.items import AbstractTable

from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.claims.ledger import load
from attn.shared_eval.claims.report import ClaimReport, Report
from attn.shared_eval.claims.runner import UsageError
from attn.shared_eval.claims.statistics import Estimate

__all__ = ["repin", "require_clean_tree", "tolerance"]

_RELATIVE_TOLERANCE = 0.02


def require_clean_tree(folder: Path) -> None:
    """Check that the figures will be those of committed code.

    Raises:
        UsageError: if the git tree around the folder holds uncommitted changes, or there is none.
    """
    git = shutil.which("git")
    if git is None:
        raise UsageError(
            "--repin must run in a git tree without uncommitted changes, found no git (or pass --allow-dirty)"
        )
    status = subprocess.run([git, "-C", folder, "status", "--porcelain"], capture_output=True, text=True, check=False)  # noqa: S603
    if status.returncode != 0:
        raise UsageError(f"--repin must run in a git tree, got {folder}, which is in none (or pass --allow-dirty)")
    if status.stdout:
        first = status.stdout.splitlines()[0].strip()
        raise UsageError(
            f"--repin must run in a tree without uncommitted changes, found {first!r} (or pass --allow-dirty)"
        )


def tolerance(estimate: Estimate) -> float:
    """The default tolerance of a pin: half the width of its interval or 2 % of the mean, whichever is larger."""
    half = (estimate.high - estimate.mean) if estimate.high is not None else 0.0
    return max(half, _RELATIVE_TOLERANCE * abs(estimate.mean))


def repin(path: Path, report: Report, results: Path, console: Console) -> None:
    """Rewrite verdict, pins and measured blocks of the reported claims, and copy their plots beside the ledger.

    A claim that could not run, or whose experiment raised an error, keeps what it had. A claim that newly fails gets
    the reason as its note, to be completed with what was tried.

    Raises:
        UsageError: if a figure to be pinned is not finite; nothing is written then.
    """
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    tables = {table["id"]: table for table in document["claim"]}
    ledger = load(path, need_pins=False)
    for measured in report.claims:
        (claim,) = ledger.choose([measured.id])
        tier, judgement = claim.tier(report.tier), measured.judgement
        if tier is None or not judgement.figures:
            continue
        table = tables[claim.id][report.tier]
        if table.get("verdict") != judgement.verdict:
            table["verdict"] = judgement.verdict
        if judgement.verdict == "fails" and tier.note is None:
            table["note"] = judgement.reason
            console.print(f'{path}: claim "{claim.id}": {report.tier}.note: add what was tried', soft_wrap=True)
        new = [name for name in ("pins", "measured") if name not in table]
        for name in new:
            table[name] = tomlkit.table()
        _update(table["pins"], {name: _pin(path, measured, name, tier.tolerance.get(name)) for name in tier.figures})
        _update(table["measured"], _measured(report, measured))
        if "measured" in new:
            table["measured"].add(tomlkit.nl())
    write_whole(path, tomlkit.dumps(document))
    load(path)
    for name in dict.fromkeys(name for claim in report.claims for name in claim.plots):
        write_whole(path.parent / "figures" / name, (results / name).read_bytes())


def _pin(path: Path, claim: ClaimReport, name: str, stated: float | None) -> dict[str, object]:
    """The pin of a figure, rounded to six digits."""
    estimate = claim.judgement.figures[name]
    if not math.isfinite(estimate.mean):
        raise UsageError(f'{path}: claim "{claim.id}": pins.{name}: must be finite, got {estimate.values}')
    pin: dict[str, object] = {"mean": _rounded(estimate.mean)}
    if estimate.low is not None and estimate.high is not None:
        pin |= {"low": _rounded(estimate.low), "high": _rounded(estimate.high)}
    return pin | {"tolerance": stated if stated is not None else _rounded(tolerance(estimate))}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _measured(report: Report, claim: ClaimReport) -> dict[str, object]:
    return {
        "date": report.date,
        "hardware": report.hardware,
        "seconds": round(claim.seconds, 1),
        "peak_memory_mib": round(claim.peak_memory_mib),
        "versions": report.versions,
        "data": claim.data,
    }


def _update(table: AbstractTable, values: Mapping[str, object]) -> None:
    """Give a table these values and no others; what stays keeps its place and its comments."""
    for name in [name for name in table if name not in values]:
        del table[name]
    for name, value in values.items():
        if not isinstance(value, Mapping):
            if table.get(name) != value:
                table[name] = value
        elif isinstance(present := table.get(name), AbstractTable):
            _update(present, value)
        else:
            table[name] = tomlkit.inline_table()
            table[name].update(value)
