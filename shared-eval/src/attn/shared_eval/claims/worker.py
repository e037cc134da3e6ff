"""What runs in a worker process: one experiment with one seed, or one experiment's plots."""

import datetime
import importlib
import importlib.metadata
import io
import os
import platform
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from attn.shared_eval.claims import store
from attn.shared_eval.claims.experiment import Context, Experiment, MissingData, Tier
from attn.shared_eval.claims.files import write_whole

if TYPE_CHECKING:
    import torch

__all__ = ["Finish", "Job", "Message", "catalogue", "draw", "initialize", "run"]

_LIBRARIES = ("torch", "numpy", "lightning", "transformers", "diffusers", "triton")
_EVERY_SECONDS = 0.1

_messages: "Queue[Message] | None" = None


@dataclass(frozen=True)
class Job:
    """One experiment to run with one seed.

    Attributes:
        module: import name of the paper's experiments.
        experiment: name of the experiment in it.
        tier: "mini" or "paper".
        seed: the seed.
        device: name of a torch device.
        data_root: folder of local data, or None.
        folder: where the outcome is stored; its subfolder "work" is the experiment's to write to.
        log: file that receives what the experiment prints, and a traceback.
    """

    module: str
    experiment: str
    tier: Tier
    seed: int
    device: str
    data_root: Path | None
    folder: Path
    log: Path


@dataclass(frozen=True)
class Message:
    """How far a job has come: the share done, and what is being done."""

    experiment: str
    seed: int
    share: float
    text: str


@dataclass(frozen=True)
class Finish:
    """How a job ended; the explanation is one line, empty for "done"."""

    status: Literal["done", "missing", "error"]
    explanation: str = ""


def initialize(lifeline: Connection, messages: "Queue[Message]") -> None:
    """Prepare a worker process.

    Args:
        lifeline: the reading end of a pipe whose writing end the parent alone holds: when the parent goes, however it
            goes, the process ends itself.
        messages: where progress goes.
    """
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    # cuBLAS is deterministic only with this workspace, and reads it from the environment of its process.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def _die_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def catalogue(module: str, log: Path) -> dict[str, list[str]]:
    """The experiments that a module defines, with the file names of their plots.

    Raises:
        ValueError: if two experiments draw the same file.
    """
    with _logged(log):
        try:
            found = {name: list(found.plots) for name, found in _experiments(module).items()}
        except Exception:
            traceback.print_exc()
            raise
    files = [name for names in found.values() for name in names]
    for name in files:
        if files.count(name) > 1:
            raise ValueError(f"{module}: plot {name} must be drawn by one experiment, is drawn by {files.count(name)}")
    return found


def run(job: Job) -> Finish:
    """Run a job and store its outcome."""
    import torch

    work_dir = job.folder / "work"
    work_dir.mkdir(parents=True, exist_ok=True)
    with _logged(job.log):
        try:
            device = torch.device(job.device)
            if device.type == "cuda" and not torch.cuda.is_available():
                return Finish("missing", "no CUDA device here: run on a machine with a GPU, or with --device cpu")
            experiment = _experiments(job.module)[job.experiment]
            _seed(job.seed, device)
            _reset_peak_memory(device)
            started = time.perf_counter()
            outcome = experiment(
                Context(job.tier, job.seed, device, work_dir, job.data_root, _Reporter(job.experiment, job.seed))
            )
            seconds = time.perf_counter() - started
            store.write(
                job.folder,
                outcome,
                seconds=round(seconds, 3),
                peak_memory_mib=round(_peak_memory(device), 1),
                hardware=hardware(device),
                versions=versions(),
                date=datetime.datetime.now(tz=datetime.UTC).date(),
            )
        except MissingData as error:
            return Finish("missing", _one_line(str(error)))
        except Exception as error:  # whatever an experiment raises, the other claims go on
            traceback.print_exc()
            return Finish("error", _one_line(f"{type(error).__name__}: {error}"))
    if job.tier == "mini":  # what took hours to train is kept
        shutil.rmtree(work_dir, ignore_errors=True)
    return Finish("done")


def draw(module: str, experiment: str, outcomes: list[Path], folder: Path, log: Path) -> Finish:
    """Draw all plots of an experiment from the stored outcomes of its seeds; the same outcomes give the same bytes."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    from attn.shared_eval.plots import STYLE

    with _logged(log):
        try:
            mpl.use("Agg")
            loaded = [store.load_outcome(path) for path in outcomes]
            for name, plot in _experiments(module)[experiment].plots.items():
                with mpl.rc_context(STYLE):
                    figure = plot(loaded)
                    image = io.BytesIO()
                    figure.savefig(image, format="png", metadata={"Software": None})
                plt.close(figure)
                write_whole(folder / name, image.getvalue())
        except Exception as error:  # as in `run`
            traceback.print_exc()
            return Finish("error", _one_line(f"{type(error).__name__}: {error}"))
    return Finish("done")


def hardware(device: "torch.device") -> str:
    """The processor, and the GPU if the device is one."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = lines[0] if lines else model
    processor = f"{model}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name(device)}; {processor}" if device.type == "cuda" else processor


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on, of those installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _experiments(module: str) -> dict[str, Experiment]:
    loaded: ModuleType = importlib.import_module(module)
    return {item.name: item for item in vars(loaded).values() if isinstance(item, Experiment)}


def _seed(seed: int, device: "torch.device") -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    # What use_deterministic_algorithms sets, without the 5 s that its import of Inductor takes.
    # Not every operation has a deterministic form on a GPU.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "warn")
    # Filling fresh memory with NaN is for tests; here it would cost time, and that import again.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


class _Reporter:
    """Sends progress to the parent, not more often than it can be read."""

    def __init__(self, experiment: str, seed: int) -> None:
        self._experiment, self._seed, self._next = experiment, seed, 0.0

    def __call__(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        if _messages is None or (now < self._next and done < total):
            return
        self._next = now + _EVERY_SECONDS
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        _messages.put(Message(self._experiment, self._seed, share, text))


def _reset_peak_memory(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # elsewhere than on Linux, the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size


def _peak_memory(device: "torch.device") -> float:
    """In MiB: of the device for CUDA, else of the process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 2**10
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send what the process prints, from C code too, to a file, written anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = os.dup(1), os.dup(2)
    try:
        with path.open("wb") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
