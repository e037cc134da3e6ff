"""Methods compared on one model and one data set: sample by sample, resumable, baseline and control side by side."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

from attn.shared_eval.claims.files import write_whole

__all__ = ["Evaluation", "Evaluator", "Method", "Sample"]

Method = Callable[[nn.Module], AbstractContextManager[Any]]
"""Puts a method on a model and takes it off again; ``contextlib.nullcontext`` is the baseline."""

_MERGED = (dim_zero_sum, dim_zero_cat, dim_zero_max, dim_zero_min)
_FINGERPRINTED = 1024

IDENTITY = "evaluation.json"


@dataclass(frozen=True)
class Sample:
    """What a model did with one sample.

    Attributes:
        scored: by name of the metric, the keyword arguments of its ``update`` for this sample alone, a batch of one. A
            metric that is not named does not see the sample.
        record: what else its line keeps, as JSON: the answer, the question's id.
    """

    scored: Mapping[str, Mapping[str, Any]]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What the methods measured.

    Attributes:
        figures: by method, the value of each figure: a metric's name, or its name and that of one of its values
            (``pope_f1``).
        samples: by method, the line of each sample in the order of the data: ``sample``, its place; ``record``;
            ``figures`` of the sample alone, for paired comparisons; and ``states`` of the metrics.
    """

    figures: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for figures in self.figures.values() for name in figures))
        rows = [["", *self.figures]]
        rows += [[name, *(f"{figures[name]:.4g}" for figures in self.figures.values())] for name in names]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ((cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join("  ".join(row).rstrip() for row in cells)


class Evaluator:
    """Runs methods over a data set with Lightning, and keeps a line of JSON for every sample.

    The figures are computed from the lines alone. So an evaluation that was killed goes on with the batches that it
    lacks, and comes to the same figures; batches are always the same samples, and torch is seeded by the batch, so that
    sampling is paired between methods and does not depend on what ran before. The same holds for several processes, if
    they share the folder.

    Args:
        model: the model; each method is put on it in turn.
        data: its ``test_dataloader`` says which samples, in which order, how collated and in batches of how many.
        metrics: torchmetrics by name, whose states are sums, concatenations, maxima or minima.
        step: the samples of a batch, from the model and the batch.
        seed: of torch.
        trainer_options: arguments of Lightning's Trainer, which replace ours (``accelerator="auto"``, ``devices=1``).

    Raises:
        ValueError: if there are no metrics, or one has states that cannot be merged.
    """

    def __init__(
        self,
        model: nn.Module,
        data: LightningDataModule,
        metrics: Mapping[str, Metric],
        step: Callable[[nn.Module, Any], Sequence[Sample]],
        *,
        seed: int = 0,
        trainer_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not metrics:
            raise ValueError("metrics must hold at least one, got none")
        for name, metric in metrics.items():
            if metric.full_state_update is not False or not set(metric._reductions.values()) <= set(_MERGED):
                raise ValueError(
                    f"metrics must have states that are sums, concatenations, maxima or minima, and full_state_update "
                    f"False, got {type(metric).__name__} as {name}"
                )
        self.model, self.data, self.metrics, self.step = model, data, dict(metrics), step
        self.seed, self.trainer_options = seed, dict(trainer_options or {})

    def run(self, methods: Mapping[str, Method], folder: str | Path) -> Evaluation:
        """Evaluate the model under each method, or go on where that was killed.

        Args:
            methods: by name, which is that of a file; say in it what the method's parameters are.
            folder: where the lines are kept, of this model, data and metrics; created if need be.

        Raises:
            ValueError: if the folder holds an evaluation of another model, other data or metrics, if a name is no file
                name, or step does not return a sample for each of the batch's.
            TypeError: if the data set has no length.
            RuntimeError: if samples are missing at the end.
        """
        folder = Path(folder)
        for name in methods:
            if not name.replace("-", "_").isidentifier():
                raise ValueError(f"methods must be named by letters, digits, - and _, got {name!r}")
        identity = {
            "model": _fingerprint(self.model),
            "metrics": {name: f"{type(m).__module__}.{type(m).__qualname__}" for name, m in self.metrics.items()},
            "seed": self.seed,
        }
        for name, method in methods.items():
            batches = _Batches(self.data, folder, name, identity)
            with torch.random.fork_rng(), warnings.catch_warnings(), method(self.model):
                warnings.filterwarnings("ignore", message=".*does not have many workers.*")
                warnings.filterwarnings("ignore", message="Total length of .* is zero")  # all samples are on file
                # Lightning 2.6 asks for a class that torch 2.15 deprecates.
                warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
                trainer = Trainer(**self._options(name))
                trainer.predict(_Run(self, folder, name), datamodule=batches, return_predictions=False)
                trainer.strategy.barrier()
            samples = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))["samples"]
            missing = samples - len(_read(folder, name))
            if missing:
                raise RuntimeError(f"{missing} of {samples} samples of {name} are missing in {folder}")
        lines = {name: list(_read(folder, name).values()) for name in methods}
        return Evaluation({name: self._figures(of_method) for name, of_method in lines.items()}, lines)

    def _options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {
            "accelerator": "auto",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        } | self.trainer_options
        callbacks = list(options.pop("callbacks", None) or [])
        if options.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(_NamedBar(name))
        return options | {"callbacks": callbacks}

    def _figures(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        merged = {name: _local(metric).cpu() for name, metric in self.metrics.items()}
        for line in lines:
            for name, states in line["states"].items():
                metric = merged[name]
                metric.merge_state({state: _decoded(metric, state, value) for state, value in states.items()})
        for metric in merged.values():
            metric._update_count = 1  # torchmetrics warns of figures of a metric that it has not seen updated
        return _named(merged)


class _Run(LightningModule):
    """One method's pass over the data: a line for every sample."""

    def __init__(self, evaluator: Evaluator, folder: Path, name: str) -> None:
        super().__init__()
        self.model, self.evaluate, self.seed = evaluator.model, evaluator.step, evaluator.seed
        self.metrics = nn.ModuleDict({name: _local(metric) for name, metric in evaluator.metrics.items()})
        self.folder, self.name = folder, name

    def predict_step(self, batch: tuple[list[int], Any], batch_idx: int) -> list[int]:
        """Score the samples of a batch, keep their lines, and return their places."""
        places, content = batch
        key = f"{self.seed}/{places[0]}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
        samples = self.evaluate(self.model, content)
        if len(samples) != len(places):
            raise ValueError(f"step must return a sample for each of the batch's {len(places)}, got {len(samples)}")
        lines = [json.dumps(self._line(place, sample)) for place, sample in zip(places, samples, strict=True)]
        _append(self.folder / f"{self.name}.{self.global_rank}.jsonl", lines)
        return places

    def _line(self, place: int, sample: Sample) -> dict[str, Any]:
        unknown = sorted(sample.scored.keys() - set(self.metrics))
        if unknown:
            raise ValueError(f"scored must name metrics among {', '.join(self.metrics)}, got {', '.join(unknown)}")
        scored: dict[str, Metric] = {name: self.metrics[name] for name in sample.scored}  # type: ignore[misc]
        for name, metric in scored.items():
            metric.reset()
            metric.update(**sample.scored[name])
        states = {
            name: {state: _encoded(getattr(metric, state)) for state in metric._defaults}
            for name, metric in scored.items()
        }
        return {"sample": place, "record": dict(sample.record), "figures": _named(scored), "states": states}


class _Batches(LightningDataModule):
    """The batches of another module's test data that are not on file yet, each with the places of its samples."""

    def __init__(self, data: LightningDataModule, folder: Path, name: str, identity: Mapping[str, Any]) -> None:
        super().__init__()
        self.data, self.folder, self.method, self.identity = data, folder, name, identity

    def prepare_data(self) -> None:
        """Prepare the other module's data."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Set up the other module's test data."""
        self.data.trainer = self.trainer
        self.data.setup("test")

    def predict_dataloader(self) -> DataLoader:
        """A loader whose samples are whole batches, so that Lightning shares out batches over processes."""
        loader = self.data.test_dataloader()
        try:
            samples = len(loader.dataset)
        except TypeError:
            raise TypeError(f"data must be a data set with a length, got {type(loader.dataset).__name__}") from None
        if loader.batch_size is None:
            raise ValueError("data must come in batches of a fixed number of samples, got batch_size None")
        identity = {**self.identity, "samples": samples, "batch_size": loader.batch_size}
        trainer = self.trainer
        assert trainer is not None  # noqa: S101 - only a trainer asks
        if trainer.is_global_zero:
            _claim(self.folder, identity)
        trainer.strategy.barrier()
        done = _read(self.folder, self.method)
        trainer.strategy.barrier()  # nobody writes before everybody has read
        starts = range(0, samples, loader.batch_size)
        batches = [list(range(start, min(start + loader.batch_size, samples))) for start in starts]
        pending = [places for places in batches if not done.keys() >= set(places)]
        dataset = _Collated(loader.dataset, pending, loader.collate_fn)
        return DataLoader(dataset, batch_size=None, num_workers=loader.num_workers, pin_memory=loader.pin_memory)


class _Collated(Dataset[tuple[list[int], Any]]):
    """Batches of given places of a data set."""

    def __init__(
        self, dataset: Dataset[Any], batches: Sequence[list[int]], collate: Callable[[list[Any]], Any]
    ) -> None:
        self.dataset, self.batches, self.collate = dataset, batches, collate

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[list[int], Any]:
        places = self.batches[number]
        return places, self.collate([self.dataset[place] for place in places])


class _NamedBar(TQDMProgressBar):
    """Lightning's bar, under a method's name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @property
    def predict_description(self) -> str:
        """The method's name."""
        return self.name


def _local(metric: Metric) -> Metric:
    """A metric of the same kind without samples, which knows of no other process."""
    local = metric.clone()
    local.reset()
    local.distributed_available_fn = _alone
    return local


def _alone() -> bool:
    return False


def _named(metrics: Mapping[str, Metric]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        values = {f"{name}_{key}": x for key, x in value.items()} if isinstance(value, dict) else {name: value}
        figures |= {key: float(x) for key, x in values.items()}
    return figures


def _encoded(state: Tensor | list[Tensor]) -> Any:
    if isinstance(state, Tensor):
        return state.tolist()
    return [{"dtype": str(x.dtype).removeprefix("torch."), "values": x.tolist()} for x in state]


def _decoded(metric: Metric, state: str, value: Any) -> Tensor | list[Tensor]:
    default = metric._defaults[state]
    if isinstance(default, Tensor):
        return torch.tensor(value, dtype=default.dtype)
    return [torch.tensor(x["values"], dtype=getattr(torch, x["dtype"])) for x in value]


def _append(path: Path, lines: Sequence[str]) -> None:
    """Add whole lines to a file, after the last whole one, and see them on the disk."""
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    """The lines of a method by place of their sample, in its order; a last line that was broken off is none."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{name}.*.jsonl")):
        for line in _whole_lines(path):
            found[line["sample"]] = line
    return dict(sorted(found.items()))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_bytes().decode()
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, must be a JSON object: {error}") from error


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Record whose evaluation a folder holds; refuse to go on with another one's."""
    path = folder / IDENTITY
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in identity if identity[name] != before.get(name))
        if differing:
            raise ValueError(
                f"folder must hold an evaluation with the same {', '.join(differing)}, got {folder}: "
                f"remove it to start afresh"
            )
    else:
        write_whole(path, json.dumps(identity, indent=2) + "\n")


def _fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes and some of the values of a model's parameters and buffers."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, math.ceil(len(flat) / _FINGERPRINTED))].double().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()
