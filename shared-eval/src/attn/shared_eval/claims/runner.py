"""The runner: which (experiment, seed) jobs the chosen claims need, run in worker processes, then judged."""

import datetime
import multiprocessing
import queue
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from attn.shared_eval.claims import store, worker
from attn.shared_eval.claims.expectation import ExpectationError
from attn.shared_eval.claims.experiment import Tier
from attn.shared_eval.claims.ledger import Claim, LedgerError, MiniTier, PaperTier, Verdict, load
from attn.shared_eval.claims.report import ClaimReport, Report
from attn.shared_eval.claims.store import Record
from attn.shared_eval.claims.verdict import Judgement, judge, worse
from attn.shared_eval.claims.worker import Finish, Job, Message

__all__ = ["Request", "UsageError", "reproduce"]

P = ParamSpec("P")
R = TypeVar("R")

_POLL_SECONDS = 0.1
_BAD_ENDS: dict[str, Verdict] = {"error": "fails", "missing": "not run"}


class UsageError(Exception):
    """A run that cannot start as it was asked for; the message is one line."""


@dataclass(frozen=True)
class Request:
    """What to reproduce, and how.

    Attributes:
        folder: the paper's folder, which holds claims.toml; its name is the paper's.
        tier: "mini" or "paper".
        claims: ids of claims; None for all.
        seeds: seeds in place of the ledger's; None for those.
        device: name of a torch device.
        data_root: folder of local data, or None.
        out: folder that gets ``<paper>/<tier>/``.
        fresh: whether to forget stored outcomes of this code first.
        workers: number of worker processes.
        compare_pins: whether measured figures are compared with the pinned ones; not where these are to be rewritten.
    """

    folder: Path
    tier: Tier = "mini"
    claims: list[str] | None = None
    seeds: list[int] | None = None
    device: str = "cpu"
    data_root: Path | None = None
    out: Path = Path("results")
    fresh: bool = False
    workers: int = 2
    compare_pins: bool = True

    @property
    def paper(self) -> str:
        """The paper's name, that of its folder."""
        return self.folder.resolve().name

    @property
    def module(self) -> str:
        """Import name of the paper's package: folder ``s2-attention`` is ``attn.s2_attention``."""
        return f"attn.{self.paper.replace('-', '_')}"

    @property
    def experiments(self) -> str:
        """Import name of its experiments."""
        return f"{self.module}.experiments"

    @property
    def ledger_path(self) -> Path:
        """The paper's ledger."""
        return self.folder / "claims.toml"

    @property
    def results(self) -> Path:
        """Where report, plots, logs and stored outcomes go."""
        return self.out.absolute() / self.paper / self.tier

    @property
    def lock(self) -> Path | None:
        """The workspace's lock file, if the folder lies in a workspace."""
        candidates = (parent / "uv.lock" for parent in self.folder.resolve().parents)
        return next((path for path in candidates if path.exists()), None)


Name = tuple[str, int]  # of a job: experiment and seed


@dataclass
class _State:
    """How far the jobs are."""

    finished: dict[Name, Finish] = field(default_factory=dict)
    shares: dict[Name, float] = field(default_factory=dict)
    plots: dict[str, list[str]] = field(default_factory=dict)
    undrawn: dict[str, str] = field(default_factory=dict)


def reproduce(request: Request, console: Console) -> Report:
    """Run what the chosen claims need and judge them.

    Raises:
        LedgerError: if the ledger is wrong or names what does not exist.
        UsageError: if the paper's package cannot be imported, or the seeds do not serve.
    """
    started = time.perf_counter()
    path = request.ledger_path
    ledger = load(path, need_pins=request.compare_pins)
    try:
        claims = ledger.choose(request.claims)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None
    for claim in claims:
        tier = claim.tier(request.tier)
        by_interval = isinstance(tier, MiniTier) and tier.judge == "interval"
        if by_interval and request.seeds is not None and len(request.seeds) < 2:
            raise UsageError(f'--seeds must be at least two: claim "{claim.id}" is judged by its interval')
    jobs = _plan(request, claims)
    state = _State()
    if jobs:
        _reuse(request, jobs, state)
        with _bars(console, request, claims, state) as refresh, _Pool(request.workers, refresh) as pool:
            _work(request, jobs, state, pool, console)
    reports = [_claim_report(request, claim, jobs, state) for claim in claims]
    records = [record for job in jobs.values() if (record := store.read(job.folder)) is not None]
    return Report(
        paper=request.paper,
        title=ledger.paper.title,
        tier=request.tier,
        device=request.device,
        date=max((record.date for record in records), default=datetime.datetime.now(tz=datetime.UTC).date()),
        hardware=records[0].hardware if records else None,
        versions=records[0].versions if records else {},
        seconds=round(time.perf_counter() - started, 1),
        claims=reports,
    )


def _names(request: Request, claim: Claim) -> list[Name]:
    """The jobs that a claim needs."""
    tier = claim.tier(request.tier)
    if tier is None or tier.experiment is None:
        return []
    return [(tier.experiment, seed) for seed in request.seeds or tier.seed_list]


def _plan(request: Request, claims: Sequence[Claim]) -> dict[Name, Job]:
    """The jobs of all claims; claims that share an experiment share its jobs."""
    names = dict.fromkeys(name for claim in claims for name in _names(request, claim))
    data_root = request.data_root.absolute() if request.data_root is not None else None
    try:
        source = store.source_hash(request.module, request.lock) if names else ""
    except ModuleNotFoundError as error:
        raise UsageError(f"{request.folder}: {error}: install it with uv sync --package attn-{request.paper}") from None
    jobs = {}
    for experiment, seed in names:
        key = store.cache_key(
            source,
            experiment=experiment,
            tier=request.tier,
            seed=str(seed),
            device=request.device.partition(":")[0],
            data_root=str(data_root),
        )
        jobs[experiment, seed] = Job(
            module=request.experiments,
            experiment=experiment,
            tier=request.tier,
            seed=seed,
            device=request.device,
            data_root=data_root,
            folder=request.results / "runs" / experiment / f"{seed}-{key[:16]}",
            log=request.results / "logs" / f"{experiment}-{seed}.txt",
        )
    return jobs


def _reuse(request: Request, jobs: Mapping[Name, Job], state: _State) -> None:
    """Take stored outcomes, or forget them for a fresh run."""
    for name, job in jobs.items():
        if request.fresh:
            shutil.rmtree(job.folder, ignore_errors=True)
        elif store.read(job.folder) is not None:
            state.finished[name] = Finish("done")
            state.shares[name] = 1.0


Refresh = Callable[[Message | None], None]


@contextmanager
def _bars(console: Console, request: Request, claims: Sequence[Claim], state: _State) -> Iterator[Refresh]:
    """A progress bar per claim; what it yields redraws them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    text = TextColumn("[dim]{task.fields[text]}")
    with Progress(*columns, text, console=console, transient=True, disable=not console.is_terminal) as progress:
        needs = {claim.id: names for claim in claims if (names := _names(request, claim))}
        bars = {progress.add_task(claim, total=len(names), text="starting"): names for claim, names in needs.items()}

        def refresh(message: Message | None = None) -> None:
            if message is not None:
                state.shares[message.experiment, message.seed] = message.share
            for bar, names in bars.items():
                done = sum(state.shares.get(name, 0.0) for name in names)
                progress.update(bar, completed=done)
                if message is not None and (message.experiment, message.seed) in names:
                    progress.update(bar, text=f"seed {message.seed} {message.text}")

        refresh()
        yield refresh


def _work(request: Request, jobs: Mapping[Name, Job], state: _State, pool: "_Pool", console: Console) -> None:
    """Run the jobs that are not finished, then draw the plots of the experiments whose seeds all are."""
    log = request.results / "logs" / "catalogue.txt"
    try:
        known = pool.ask(worker.catalogue, request.experiments, log)
    except Exception as error:  # whatever their import raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"cannot import {request.experiments}: {text} ({log})") from None
    for experiment, _ in jobs:
        if experiment not in known:
            have = ", ".join(sorted(known)) or "none"
            raise LedgerError(
                f"{request.ledger_path}: experiment {experiment!r} is not in {request.experiments}, which has: {have}"
            )
    todo = {name: (job,) for name, job in jobs.items() if name not in state.finished}
    for name, finish in pool.each(worker.run, todo):
        state.finished[name] = finish
        state.shares[name] = 1.0
        if not console.is_terminal:
            console.print(f"{name[0]} seed {name[1]}: {finish.status}", highlight=False)
    draws = {}
    for experiment in dict.fromkeys(experiment for experiment, _ in jobs):
        mine = {name: job for name, job in jobs.items() if name[0] == experiment}
        if known[experiment] and all(state.finished[name].status == "done" for name in mine):
            folders = [job.folder for job in mine.values()]
            log = request.results / "logs" / f"{experiment}-plots.txt"
            draws[experiment, 0] = (request.experiments, experiment, folders, request.results, log)
    for (experiment, _), finish in pool.each(worker.draw, draws):
        if finish.status == "done":
            state.plots[experiment] = known[experiment]
        else:
            state.undrawn[experiment] = f"{finish.explanation} (logs/{experiment}-plots.txt)"


def _claim_report(request: Request, claim: Claim, jobs: Mapping[Name, Job], state: _State) -> ClaimReport:
    tier = claim.tier(request.tier)
    names = _names(request, claim)
    recorded: Verdict = tier.verdict if tier is not None else "not run"
    records = [record for name in names if (record := store.read(jobs[name].folder)) is not None]
    judgement = _judgement(request, claim, names, state, records)
    asked = request.claims is not None or recorded != "not run" or (request.tier == "paper" and tier is not None)
    return ClaimReport(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        published=claim.published,
        experiment=tier.experiment if tier is not None else None,
        metric=tier.metric if tier is not None else None,
        seeds=[seed for _, seed in names],
        judge=tier.judge if isinstance(tier, MiniTier) else None,
        show=tier.show if tier is not None else [],
        recorded=recorded,
        worse=worse(judgement.verdict, recorded),
        missing=judgement.verdict == "not run" and asked,
        judgement=judgement,
        seconds=round(sum(record.seconds for record in records), 3),
        peak_memory_mib=max((record.peak_memory_mib for record in records), default=0.0),
        data={name: value for record in records for name, value in record.data.items()},
        plots=state.plots.get(tier.experiment or "", []) if tier is not None else [],
    )


def _judgement(
    request: Request, claim: Claim, names: Sequence[Name], state: _State, records: Sequence[Record]
) -> Judgement:
    tier = claim.tier(request.tier)
    if tier is None:
        other = f": needs {claim.paper.needs}; run --tier paper" if claim.paper is not None else ""
        return Judgement(verdict="not run", reason=f"no {request.tier} tier{other}")
    if not names:
        assert isinstance(tier, PaperTier)  # noqa: S101 - every mini tier has an experiment
        return Judgement(
            verdict="not run", reason=f"no experiment is written for the paper tier; it needs {tier.needs}"
        )
    ends = {name: state.finished[name] for name in names}
    for status, verdict in _BAD_ENDS.items():
        for (experiment, seed), finish in ends.items():
            if finish.status == status:
                where = f" (logs/{experiment}-{seed}.txt)" if status == "error" else ""
                return Judgement(verdict=verdict, reason=f"{experiment}, seed {seed}: {finish.explanation}{where}")
    pinned = request.compare_pins and (request.seeds is None or request.seeds == tier.seed_list)
    try:
        judgement = judge(tier, [seed for _, seed in names], records, pinned=pinned)
    except ExpectationError as error:
        raise LedgerError(f'{request.ledger_path}: claim "{claim.id}": {request.tier}.{error}') from None
    undrawn = state.undrawn.get(names[0][0])
    if undrawn is not None:
        return judgement.model_copy(update={"verdict": "fails", "reason": f"its plots: {undrawn}"})
    return judgement


class _Pool:
    """Worker processes, which end with this process however it ends."""

    def __init__(self, workers: int, refresh: Refresh) -> None:
        self._workers, self._refresh = workers, refresh
        self._context = multiprocessing.get_context("spawn")
        self._messages: multiprocessing.Queue[Message] = self._context.Queue()
        self._reader, self._lifeline = self._context.Pipe(duplex=False)
        self._executor = self._start(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._lifeline.close()  # ends the workers at once
        self._executor.shutdown(cancel_futures=True)
        self._lifeline.close()
        self._reader.close()
        self._messages.close()

    def _start(self, workers: int) -> ProcessPoolExecutor:
        initargs = (self._reader, self._messages)
        return ProcessPoolExecutor(workers, self._context, worker.initialize, initargs)

    def ask(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a function of the worker module.

        Raises:
            Exception: whatever the function raises.
        """
        return self._executor.submit(function, *args, **kwargs).result()

    def each(
        self, function: Callable[..., Finish], calls: Mapping[Name, tuple[Any, ...]]
    ) -> Iterator[tuple[Name, Finish]]:
        """Call a function with each of the arguments, yielding the ends as they come.

        A call that kills its process is an error of its own; the others are made again, each alone in a process.
        """
        waiting = {self._executor.submit(function, *args): name for name, args in calls.items()}
        broken: list[Name] = []
        while waiting:
            done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            self._drain()
            for future in done:
                name = waiting.pop(future)
                try:
                    yield name, future.result()
                except BrokenProcessPool:
                    broken.append(name)
        if not broken:
            return
        for name in broken:
            self._executor.shutdown()
            self._executor = self._start(1)
            future = self._executor.submit(function, *calls[name])
            while not wait([future], timeout=_POLL_SECONDS).done:
                self._drain()
            try:
                yield name, future.result()
            except BrokenProcessPool:
                yield name, Finish("error", "the process died (killed for memory?)")
        self._executor.shutdown()
        self._executor = self._start(self._workers)

    def _drain(self) -> None:
        while True:
            try:
                self._refresh(self._messages.get_nowait())
            except queue.Empty:
                self._refresh(None)
                return
