"""The report of one run: ``report.json`` (these models are its schema), ``report.md`` and the terminal's table."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attn.shared_eval.claims.experiment import Tier
from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.claims.ledger import Judge, Published, Verdict
from attn.shared_eval.claims.verdict import VERDICTS, Judgement

__all__ = [
    "ClaimReport",
    "Report",
    "cell",
    "estimate_text",
    "print_summary",
    "print_table",
    "published_text",
    "worst_exit",
    "write",
]

_COLORS = {"holds": "green", "drifted": "yellow", "fails": "red", "not run": "dim"}
_COLUMNS = ("claim", "paper's figure", "our figure [95 % interval]", "control", "verdict", "time")


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class ClaimReport(_Result):
    """One claim: what the paper says, what was measured, the verdict."""

    id: str
    statement: str
    source: str
    """Where the paper shows it."""
    published: Published
    experiment: str | None
    metric: str | None
    seeds: list[int]
    judge: Judge | None
    """How the inequalities were judged; null in the paper tier, where means are compared with targets."""
    show: list[str]
    """The figures that tables print, in order."""
    recorded: Verdict
    """The verdict in the ledger."""
    worse: bool
    """Whether the verdict is worse than the recorded one: exit code 1."""
    missing: bool
    """Whether the claim was asked for and could not run: exit code 3."""
    judgement: Judgement
    seconds: float
    """Time of the experiment, all seeds added up; it is paid once where claims share an experiment."""
    peak_memory_mib: float
    """Largest peak of a seed's process (of the device for CUDA), in MiB."""
    data: dict[str, str]
    """Fingerprints of the data read."""
    plots: list[str]
    """File names of the experiment's plots, beside the report."""


class Report(_Result):
    """One run of one paper's claims in one tier."""

    schema_version: Literal[1] = 1
    paper: str
    """Name of the paper's folder."""
    title: str
    tier: Tier
    device: str
    date: datetime.date
    """When the newest figure was measured."""
    hardware: str | None
    """What the figures were measured on; null if nothing ran."""
    versions: dict[str, str]
    seconds: float
    """Wall-clock time of this run; outcomes that were stored already cost nothing."""
    claims: list[ClaimReport]

    @property
    def exit_code(self) -> int:
        """1 if a claim is worse than recorded, else 3 if one that was asked for could not run, else 0."""
        if any(claim.worse for claim in self.claims):
            return 1
        return 3 if any(claim.missing for claim in self.claims) else 0


def write(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    write_whole(folder / "report.json", report.model_dump_json(indent=1) + "\n")
    write_whole(folder / "report.md", _markdown(report))


def number_text(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


def estimate_text(name: str, mean: float, low: float | None, high: float | None) -> str:
    """A figure with its interval: ``hedgehog 0.47 [0.44, 0.5]``."""
    interval = f" [{number_text(low)}, {number_text(high)}]" if low is not None and high is not None else ""
    return f"{name} {number_text(mean)}{interval}"


def published_text(published: Published) -> str:
    """The paper's figure, marked where it was not read in the paper itself."""
    return published.text if published.verified else f"{published.text} (unverified)"


def cell(*lines: str) -> str:
    """Lines as one cell of a Markdown table."""
    return "<br>".join(" ".join(line.split()).replace("|", "\\|") for line in lines)


def _row(claim: ClaimReport) -> tuple[str, list[str], list[str], str, str]:
    """Paper's figure, our figures, control, verdict and time of a claim."""
    figures = claim.judgement.figures
    ours = [
        estimate_text(name, figures[name].mean, figures[name].low, figures[name].high)
        for name in claim.show
        if name in figures
    ]
    control = [
        f"{check.text}: {'behaves' if check.met else 'misbehaves'}"
        for check in claim.judgement.checks
        if check.kind == "control"
    ]
    seconds = f"{claim.seconds:.1f} s" if claim.seconds else "-"
    return published_text(claim.published), ours or ["-"], control or ["-"], claim.judgement.verdict, seconds


def print_table(report: Report, console: Console) -> None:
    """Print the claims table, and below it a line for each verdict that needs a reason."""
    table = Table(title=f"{report.paper}: {report.title} ({report.tier} tier)", show_lines=True)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column == "verdict")
    for claim in report.claims:
        published, ours, control, verdict, seconds = _row(claim)
        shown = Text(verdict, style=_COLORS[verdict])
        if verdict != claim.recorded:
            shown.append(f"\n(recorded: {claim.recorded})", style="bold red" if claim.worse else "dim")
        statement = Text.assemble((claim.id, "bold"), f"\n{claim.statement}")
        table.add_row(statement, Text(published), Text("\n".join(ours)), Text("\n".join(control)), shown, seconds)
    console.print(table)
    for claim in report.claims:
        if claim.judgement.reason:
            text = Text.assemble((claim.judgement.verdict, _COLORS[claim.judgement.verdict]), f"  {claim.id}: ")
            console.print(text.append(claim.judgement.reason), soft_wrap=True)


def _markdown(report: Report) -> str:
    lines = [
        f"# {report.title}: claims, {report.tier} tier",
        "",
        f"Measured on {report.hardware or 'nothing: no experiment ran'}; {report.date.isoformat()}; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
        "Intervals are two-sided 95 % t-intervals of the mean over seeds.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    for claim in report.claims:
        published, ours, control, verdict, seconds = _row(claim)
        first = cell(f"**{claim.id}**", claim.statement)
        lines.append(f"| {first} | {cell(published)} | {cell(*ours)} | {cell(*control)} | **{verdict}** | {seconds} |")
    for claim in report.claims:
        lines += ["", *_details(claim)]
    return "\n".join(lines) + "\n"


def _details(claim: ClaimReport) -> list[str]:
    judgement = claim.judgement
    lines = [
        f"## {claim.id}",
        "",
        claim.statement,
        "",
        f"- In the paper: {claim.source}: {published_text(claim.published)}",
    ]
    lines += [f"- Verdict: **{judgement.verdict}** (recorded: {claim.recorded})"]
    if judgement.reason:
        lines.append(f"- Reason: {judgement.reason}")
    if claim.metric:
        lines.append(f"- Metric: {claim.metric}")
    if claim.experiment:
        lines.append(f"- Experiment: `{claim.experiment}`, seeds {', '.join(map(str, claim.seeds))}")
    if claim.judge:
        lines.append(f"- Judged by: {claim.judge}")
    for check in judgement.checks:
        low, high = (number_text(end) if end is not None else "-" for end in (check.low, check.high))
        met = "met" if check.met else "not met"
        lines.append(f"- {check.kind} `{check.text}`: {met}, margin {number_text(check.mean)} [{low}, {high}]")
    if judgement.figures:
        lines += ["", f"| figure | mean [95 % interval] | {' | '.join(f'seed {seed}' for seed in claim.seeds)} |"]
        lines.append(f"|{'---|' * (2 + len(claim.seeds))}")
        for name, figure in judgement.figures.items():
            values = " | ".join(number_text(value) for value in figure.values)
            lines.append(f"| {name} | {estimate_text('', figure.mean, figure.low, figure.high).strip()} | {values} |")
    return lines + [line for plot in claim.plots for line in ("", f"![{plot}]({plot})")]


def print_summary(folders: Sequence[Path], console: Console) -> int:
    """Print one table over the reports of several papers.

    Args:
        folders: folders that hold a report.json, as ``results/<paper>/<tier>``.
        console: where to.

    Returns:
        The exit code for all: 2 if a report is missing or unreadable, else 1, else 3, as `Report.exit_code` has them.
    """
    table = Table(title="claims of all papers")
    for column in ("paper", "tier", *VERDICTS, "worse than recorded", "time"):
        table.add_column(column, justify="left" if column in ("paper", "tier", "worse than recorded") else "right")
    codes = []
    for folder in folders:
        try:
            report = Report.model_validate_json((folder / "report.json").read_bytes())
        except (OSError, ValidationError):
            table.add_row(str(folder), Text("no readable report.json", style="red"))
            codes.append(2)
            continue
        verdicts = [claim.judgement.verdict for claim in report.claims]
        regressed = ", ".join(claim.id for claim in report.claims if claim.worse)
        counts = [str(verdicts.count(verdict)) for verdict in VERDICTS]
        table.add_row(report.paper, report.tier, *counts, Text(regressed or "-"), f"{report.seconds:.0f} s")
        codes.append(report.exit_code)
    console.print(table)
    return worst_exit(codes)


def worst_exit(codes: Sequence[int]) -> int:
    """The exit code that stands for several runs."""
    return next((code for code in (2, 1, 3) if code in codes), 0)
