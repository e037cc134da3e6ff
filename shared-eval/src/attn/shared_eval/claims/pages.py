"""Pages made from the ledgers: the tables of the READMEs, the results page and a page for each paper.

What is made stands between two markers; the text around them is written by hand and kept:

```markdown
<!-- claims:begin -->
<!-- claims:end -->
```

They show what the ledger records, not what a run has just measured, so that whether they are stale can be checked
without running anything.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attn.shared_eval.claims.files import write_whole
from attn.shared_eval.claims.ledger import Claim, Ledger, MiniTier, PaperTier, load
from attn.shared_eval.claims.report import cell, estimate_text, published_text
from attn.shared_eval.claims.verdict import VERDICTS

__all__ = ["BEGIN", "END", "PageError", "render"]

BEGIN = "<!-- claims:begin -->"
END = "<!-- claims:end -->"
_COLUMNS = ("claim", "verdict", "paper's figure", "our figure [95 % interval]", "control", "tier", "measured on")


class PageError(Exception):
    """A page without its pair of markers."""


@dataclass(frozen=True)
class _Source:
    """A paper's folder and what its ledger says."""

    folder: Path
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.folder.name


def render(root: Path, *, write: bool = True) -> list[Path]:
    """Render every page that the ledgers of ``packages/*`` make.

    These are the README of each paper, ``docs/results.md``, ``docs/papers/<paper>.md``, and the README of the root if
    it has markers. A page that does not exist is made.

    Args:
        root: the repository.
        write: whether to write the pages that differ.

    Returns:
        The pages that differ from what the ledgers say.

    Raises:
        LedgerError: if a ledger is wrong.
        PageError: if a page lacks the markers.
    """
    sources = [_Source(path.parent, load(path)) for path in sorted(root.glob("packages/*/claims.toml"))]
    pages: list[tuple[Path, str, Callable[[], str]]] = [
        (root / "docs" / "results.md", "# Results\n", lambda: _results(sources))
    ]
    front = root / "README.md"
    if front.exists() and BEGIN in front.read_text(encoding="utf-8"):
        pages.append((front, "", lambda: _overview(sources)))
    for source in sources:
        paper = root / "docs" / "papers" / f"{source.name}.md"
        heading = f"# {source.ledger.paper.title}\n"
        pages.append((source.folder / "README.md", f"# {source.name}\n", lambda source=source: _readme(source)))  # type: ignore[misc]
        pages.append((paper, heading, lambda source=source: _page(source)))  # type: ignore[misc]
    stale = []
    for path, heading, make in pages:
        old = path.read_text(encoding="utf-8") if path.exists() else f"{heading}\n{BEGIN}\n{END}\n"
        new = _between_markers(path, old, make())
        if not path.exists() or new != old:
            stale.append(path)
            if write:
                write_whole(path, new)
    return stale


def _between_markers(path: Path, text: str, content: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise PageError(f"{path}: must hold one line {BEGIN} and below it one line {END}")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n{content.rstrip()}\n{END}{text.partition(END)[2]}"


def _readme(source: _Source) -> str:
    return _table(source.ledger.claim)


def _results(sources: Sequence[_Source]) -> str:
    parts = [
        "Every claim with the figure that the paper gives and the one that was measured: the mean over the seeds with "
        "its 95 % t-interval. Figures marked *unverified* were not read in the paper itself."
    ]
    for source in sources:
        parts += [
            f"## [{source.name}](papers/{source.name}.md)",
            f"*{source.ledger.paper.title}*",
            _table(source.ledger.claim),
        ]
    return "\n\n".join(parts)


def _overview(sources: Sequence[_Source]) -> str:
    lines = [f"| paper | what it shows | {' | '.join(VERDICTS)} |", f"|---|---|{'--:|' * len(VERDICTS)}"]
    for source in sources:
        recorded = [tier.verdict for claim in source.ledger.claim for _, tier in _tiers(claim)]
        counts = " | ".join(str(recorded.count(verdict)) for verdict in VERDICTS)
        link = f"[{source.name}](packages/{source.name}/README.md)"
        lines.append(f"| {link} | {cell(source.ledger.paper.summary)} | {counts} |")
    return "\n".join(lines)


def _page(source: _Source) -> str:
    paper = source.ledger.paper
    facts = [f"{', '.join(paper.authors)}: *{paper.title}*. {paper.venue} {paper.year}."]
    if paper.arxiv:
        facts.append(f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}).")
    if paper.code:
        licence = f" ({paper.code_licence})" if paper.code_licence else ""
        facts.append(f"Official code: <{paper.code}>{licence}.")
    parts = [paper.summary, " ".join(facts), "## Claims", _table(source.ledger.claim)]
    for claim in source.ledger.claim:
        parts += [f"### {claim.id}", claim.statement, "\n".join(_details(claim))]
    plots = sorted((source.folder / "figures").glob("*.png"))
    if plots:
        parts.append("## Figures")
        parts += [f"![{plot.stem}](../../packages/{source.name}/figures/{plot.name})" for plot in plots]
    return "\n\n".join(parts)


def _tiers(claim: Claim) -> Iterator[tuple[str, MiniTier | PaperTier]]:
    if claim.mini is not None:
        yield "mini", claim.mini
    if claim.paper is not None:
        yield "paper", claim.paper


def _table(claims: Sequence[Claim]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for claim in claims:
        for name, tier in _tiers(claim):
            first = cell(f"**{claim.id}**", claim.statement)
            cells = [cell(published_text(claim.published)), *_measured(tier), name, cell(*_where(tier))]
            lines.append(f"| {first} | **{tier.verdict}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(tier: MiniTier | PaperTier) -> tuple[str, str]:
    """Cells of our figures and of the control."""
    control = []
    if isinstance(tier, MiniTier):
        controls = [inequality for key, inequality in tier.inequalities if key.startswith("control")]
        names = dict.fromkeys(name for inequality in controls for name in inequality.figures)
        control = [f"`{inequality.text}`" for inequality in controls]
        control += [_pin_text(tier, name) for name in names if name in tier.pins and name not in tier.show]
    ours = [_pin_text(tier, name) for name in tier.show if name in tier.pins]
    return cell(*(ours or ["-"])), cell(*(control or ["-"]))


def _pin_text(tier: MiniTier | PaperTier, name: str) -> str:
    pin = tier.pins[name]
    return estimate_text(name, pin.mean, pin.low, pin.high)


def _where(tier: MiniTier | PaperTier) -> list[str]:
    if tier.measured is not None:
        return [tier.measured.hardware, tier.measured.date.isoformat()]
    return [f"needs {tier.hardware}", tier.time] if isinstance(tier, PaperTier) else ["-"]


def _details(claim: Claim) -> Iterator[str]:
    yield f"- In the paper: {claim.source}: {published_text(claim.published)}"
    if (mini := claim.mini) is not None:
        yield f"- Mini tier: experiment `{mini.experiment}`, {mini.metric}; seeds {', '.join(map(str, mini.seed_list))}"
        yield f"- Expected ({_JUDGES[mini.judge]}): {', '.join(f'`{text}`' for text in mini.expect)}"
        yield f"- Control: {', '.join(f'`{text}`' for text in mini.control)}"
        yield from _verdict(mini)
    if (paper := claim.paper) is not None:
        yield f"- Paper tier: {paper.checkpoint} on {paper.data} ({paper.split}), {paper.metric}"
        for target in paper.targets:
            mark = "" if target.verified else ", unverified"
            yield f"- Target: {target.figure} {target.value:g} +- {target.tolerance:g} ({target.source}{mark})"
        yield f"- Needs {paper.needs}; {paper.hardware}, {paper.time}"
        yield from _verdict(paper)


def _verdict(tier: MiniTier | PaperTier) -> Iterator[str]:
    note = f": {tier.note}" if tier.note else ""
    yield f"- Verdict: **{tier.verdict}**{note}"


_JUDGES = {"every seed": "on every seed", "interval": "by the 95 % interval of the margin"}
