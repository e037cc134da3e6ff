"""The commands of ``python -m attn.shared_eval.claims``: reproduce, pages and summary.

Exit codes: 0, no claim is worse than its recorded verdict; 1, one is worse than recorded (of ``pages --check``: a
page is stale); 2, the command line or a ledger is wrong; 3, a claim that was asked for could not run for want of data
or hardware; 130, interrupted, and what is finished is stored.
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from attn.shared_eval.claims import pages as rendering
from attn.shared_eval.claims import repinning, runner
from attn.shared_eval.claims import report as reporting
from attn.shared_eval.claims.experiment import Tier
from attn.shared_eval.claims.ledger import LedgerError
from attn.shared_eval.claims.pages import PageError
from attn.shared_eval.claims.runner import Request, UsageError

__all__ = ["main", "parser"]

_WIDTH_OF_A_FILE = 150

# Options of several words, which a signature cannot say: their type and help.
_SEVERAL: dict[str, tuple[type, str]] = {
    "claim": (str, "ids of the claims to run; all of them if not given"),
    "seeds": (
        int,
        "a number n, for seeds 0 to n - 1, or several seeds; those of the ledger if not given. With others than the "
        "ledger's, pins are not compared",
    ),
    "folders": (Path, "folders that hold a report.json, such as results/hedgehog/mini"),
}


def reproduce(  # noqa: D417 - `_SEVERAL` has the help of claim and seeds
    paper_folder: Path,
    *,
    tier: Tier = "mini",
    claim: list[str] | None = None,
    seeds: list[int] | None = None,
    device: str = "cpu",
    data_root: Path | None = None,
    out: Path = Path("results"),
    workers: int = 2,
    fresh: bool = False,
    repin: bool = False,
    allow_dirty: bool = False,
) -> int:
    """Measure a paper's claims and compare them with its ledger.

    Writes report.json, report.md, plots and logs to OUT/<paper>/<tier>/. Figures of the same code, lock file, seed and
    device are taken from an earlier run. Exit codes: 0, no claim is worse than its recorded verdict; 1, one is; 2, the
    command line or the ledger is wrong; 3, a claim that was asked for could not run.

    Args:
        paper_folder: the paper's folder, which holds claims.toml
        tier: mini takes seconds on a CPU; paper needs the paper's checkpoint, data and hardware
        device: cpu, cuda or cuda:N
        data_root: folder of local data sets and checkpoints
        out: where results go
        workers: number of worker processes, each with one thread
        fresh: measure again what an earlier run has measured
        repin: measure again (in the paper tier, what is not stored) and rewrite the pins, verdicts and plots beside the
            ledger
        allow_dirty: repin even if the git tree holds uncommitted changes
    """
    console = _console()
    if seeds is not None and len(seeds) == 1:
        seeds = list(range(seeds[0]))
    if seeds is not None and (not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds)):
        raise UsageError("--seeds must be a positive number, or different seeds of at least 0")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {device}")
    if workers < 1:
        raise UsageError(f"--workers must be positive, got {workers}")
    if repin:
        if seeds is not None:
            raise UsageError("--repin must measure the ledger's seeds: leave --seeds out")
        if not allow_dirty:
            repinning.require_clean_tree(paper_folder)
        fresh = fresh or tier == "mini"
    request = Request(paper_folder, tier, claim, seeds, device, data_root, out, fresh, workers, compare_pins=not repin)
    report = runner.reproduce(request, console)
    reporting.write(report, request.results)
    reporting.print_table(report, console)
    console.print(f"{request.results / 'report.md'}", soft_wrap=True, highlight=False)
    if repin:
        repinning.repin(request.ledger_path, report, request.results, console)
    return report.exit_code


def pages(*, root: Path = Path(), check: bool = False) -> int:
    """Render the claims tables of READMEs and docs from the ledgers, between their markers.

    Args:
        root: the repository, which holds packages/ and docs/
        check: change nothing; name the stale files and exit with 1 if there are any
    """
    console = _console()
    stale = rendering.render(root, write=not check)
    for path in stale:
        state = "stale: render it with the command pages" if check else "rendered"
        console.print(f"{path}: {state}", soft_wrap=True, highlight=False)
    return 1 if check and stale else 0


def summary(folders: list[Path]) -> int:
    """Print one table over the reports of several papers."""
    return reporting.print_summary(folders, _console())


def _console() -> Console:
    """The terminal, or a file or pipe wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_A_FILE)


class _Parser(ArgumentParser):
    """Options with dashes, flags without a value, lists as several words."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        dashed = [name.replace("_", "-") if name.startswith("--") else name for name in names]
        if options.get("type") is bool:
            del options["type"]
            options["action"] = "store_true"
        return super().add_argument(*dashed, **options)


_COMMANDS: dict[str, Callable[..., int]] = {"reproduce": reproduce, "pages": pages, "summary": summary}


def parser() -> ArgumentParser:
    """The command line."""
    root = _Parser(prog="python -m attn.shared_eval.claims", description="Claims of papers: measure, report, render.")
    root.formatter_class = DefaultHelpFormatter
    subcommands = root.add_subcommands(required=True, dest="command")
    for name, command in _COMMANDS.items():
        subparser = _Parser(description=(command.__doc__ or "").partition("Args:")[0])
        subparser.add_function_arguments(command, as_group=False, as_positional=True, skip=set(_SEVERAL))
        for parameter, (kind, text) in _SEVERAL.items():
            if parameter in inspect.signature(command).parameters:
                words = parameter if parameter == "folders" else f"--{parameter}"
                subparser.add_argument(words, nargs="+", type=kind, help=text)
        subcommands.add_subcommand(name, subparser, help=(command.__doc__ or "").splitlines()[0])
    return root


def main(args: Sequence[str] | None = None) -> int:
    """Run a command of the command line; the result is the exit code."""
    chosen = parser().parse_args(args)
    try:
        return _COMMANDS[chosen.command](**chosen[chosen.command].as_dict())
    except (LedgerError, PageError, UsageError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is finished is stored\n")
        return 130
