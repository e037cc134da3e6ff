"""What an experiment is: a function from a context to the figures of one seed, and the plots drawn from all seeds."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from attn.shared_eval.claims.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

__all__ = ["Context", "Experiment", "MissingData", "Outcome", "Progress", "Tier", "experiment"]

Tier = Literal["mini", "paper"]


class MissingData(Exception):  # noqa: N818 - a state of the machine, not a mistake of the experiment
    """Raised by an experiment when data or hardware that it needs is not here: its claims are then *not run*.

    Args:
        message: one line that says what to get and where to put it.
    """


class Progress(Protocol):
    """Reports how far an experiment has come."""

    def __call__(self, done: float, total: float, text: str = "") -> None:
        """``done`` of ``total`` steps are done; ``text`` says what is being done."""


def _silent(done: float, total: float, text: str = "") -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What an experiment is given.

    Attributes:
        tier: "mini" (seconds on a CPU, no network) or "paper" (the paper's checkpoint and data).
        seed: the seed of this run; random, numpy and torch have been seeded with it already.
        device: where to compute.
        data_root: folder of local data sets and checkpoints, or None.
        work_dir: an existing folder of this experiment, seed and code; it survives a kill, so that a training can write
            checkpoints there and resume from them.
        progress: call it with (done, total, text="") now and then.
    """

    tier: Tier
    seed: int
    device: "torch.device"
    work_dir: Path
    data_root: Path | None = None
    progress: Progress = _silent

    def kept(self, name: str, measure: Callable[[], float]) -> float:
        """The number that `measure` returns, taken from an earlier run of this code if that was killed after it.

        For the parts of a long experiment. Each must seed what it draws, so as not to depend on the parts before.

        Args:
            name: of the part, unique in the experiment.
            measure: computes the number.
        """
        path = self.work_dir / f"{name}.kept"
        if path.exists():
            return float(path.read_text())
        value = float(measure())
        write_whole(path, repr(value).encode())
        return value

    def require(self, relative_path: str, how_to_get: str) -> Path:
        """The path of a file or folder below the data root.

        Args:
            relative_path: where it lies below the data root.
            how_to_get: what the user must do to have it, in a few words ("download ... from ...").

        Raises:
            MissingData: if there is no data root or nothing at that path.
        """
        if self.data_root is None:
            raise MissingData(f"needs {relative_path}: {how_to_get}, put it in a folder and pass --data-root FOLDER")
        path = self.data_root / relative_path
        if not path.exists():
            raise MissingData(f"needs {path}, which does not exist: {how_to_get} and put it there")
        return path


@dataclass(frozen=True)
class Outcome:
    """What an experiment measured with one seed.

    Attributes:
        figures: one number per name. Names are identifiers, the same in ledger, code, table and plot.
        arrays: what the plots need besides, by name; numbers, booleans or text.
        data: fingerprints of the data read that could change with the environment, by name, such as the SHA-256 of a
            corpus built from installed packages. A claim whose fingerprints differ from the pinned ones has *drifted*.

    Raises:
        ValueError: if a name is no identifier.
        TypeError: if a figure is no number.
    """

    figures: Mapping[str, float]
    arrays: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in [*self.figures, *self.arrays]:
            if not (isinstance(name, str) and name.isidentifier()):
                raise ValueError(f"names of figures and arrays must be identifiers, got {name!r}")
        numbers = {}
        for name, value in self.figures.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"figure {name!r} must be one number, got {value!r}") from None
        object.__setattr__(self, "figures", numbers)


Draw = Callable[[Sequence[Outcome]], "Figure"]


class Experiment:
    """A registered experiment; calling it runs the function.

    Attributes:
        name: the function's name, by which the ledger refers to it.
        plots: what draws each figure file.
    """

    def __init__(self, function: Callable[[Context], Outcome]) -> None:
        self.name = function.__name__
        self.plots: dict[str, Draw] = {}
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, context: Context) -> Outcome:
        """Run the experiment with one seed.

        Raises:
            TypeError: if the function returns anything but an `Outcome`.
        """
        outcome = self._function(context)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"experiment {self.name} must return an Outcome, got {type(outcome).__name__}")
        return outcome

    def plot(self, file_name: str) -> Callable[[Draw], Draw]:
        """Register a function that draws one figure from the outcomes of all seeds, in the order of the seeds.

        Args:
            file_name: the name of the PNG file, lower case, unique in the paper ("recall.png").

        Raises:
            ValueError: if the name is not of that form, or taken by another plot of this experiment.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*\.png", file_name):
            raise ValueError(f"file_name must look like 'recall.png', got {file_name!r}")
        if file_name in self.plots:
            raise ValueError(f"file_name must be new to the experiment, got {file_name!r} twice")

        def register(draw: Draw) -> Draw:
            self.plots[file_name] = draw
            return draw

        return register


def experiment(function: Callable[[Context], Outcome]) -> Experiment:
    """Make a function of ``attn.<paper>.experiments`` an experiment that the ledger can name."""
    return Experiment(function)
