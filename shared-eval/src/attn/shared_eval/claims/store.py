"""The store of outcomes: one folder per (experiment, seed, cache key), written atomically and checked when read."""

import datetime
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from attn.shared_eval.claims.experiment import Outcome
from attn.shared_eval.claims.files import write_whole

__all__ = ["Record", "cache_key", "load_outcome", "read", "source_hash", "write"]

# Of attn.shared_eval.claims, only what an experiment or its figures can depend on.
_VISIBLE = ("__init__.py", "experiment.py", "worker.py")
_ARRAY = "array "  # before each name in the file: an array may be called "file", which numpy reserves


class Record(BaseModel):
    """What is stored beside an outcome's arrays."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    figures: dict[str, float]
    data: dict[str, str]
    arrays_sha256: str
    seconds: float
    peak_memory_mib: float
    hardware: str
    versions: dict[str, str]
    date: datetime.date


def cache_key(source: str, **run: str) -> str:
    """The SHA-256 of everything that a run's outcome depends on.

    Args:
        source: what `source_hash` gives.
        run: what distinguishes the run: experiment, tier, seed, device, data_root.
    """
    facts = dict(run, source=source, python=platform.python_version(), torch=importlib.metadata.version("torch"))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def source_hash(paper: str, lock: Path | None) -> str:
    """The SHA-256 of a paper's code, of the code that it may use, and of the lock file.

    Args:
        paper: import name of the paper's package, "attn.hedgehog".
        lock: the workspace's lock file, if there is one.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    digest = hashlib.sha256(paper.encode())
    digest.update(_package_hash(paper).encode() + _package_hash("attn.shared_eval").encode())
    if importlib.util.find_spec("attn.core_kernels") is not None:  # a paper need not use it
        digest.update(_package_hash("attn.core_kernels").encode())
    if lock is not None:
        digest.update(lock.read_bytes())
    return digest.hexdigest()


def _package_hash(module: str) -> str:
    digest = hashlib.sha256()
    for folder in _folders(module):
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = parts[0] == "claims" and module == "attn.shared_eval" and parts[1:] not in [(x,) for x in _VISIBLE]
            if path.is_file() and "__pycache__" not in parts and not hidden:
                digest.update("/".join(parts).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _folders(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {module}", name=module)
    return [Path(folder) for folder in spec.submodule_search_locations]


def write(folder: Path, outcome: Outcome, **measured: object) -> Record:
    """Store an outcome in its folder; it is there entirely or not at all, whenever the process is killed.

    Args:
        folder: where to; made if need be.
        outcome: what to store.
        measured: the other fields of the record: seconds, peak_memory_mib, hardware, versions, date.

    Raises:
        TypeError: if an array holds Python objects, which could be read only by unpickling.
    """
    arrays = {name: np.asarray(value) for name, value in outcome.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} must hold numbers, booleans or text, got Python objects")
    packed = io.BytesIO()
    prefixed: dict[str, Any] = {_ARRAY + name: array for name, array in arrays.items()}
    np.savez(packed, **prefixed)
    record = Record.model_validate(
        {
            "figures": dict(outcome.figures),
            "data": dict(outcome.data),
            "arrays_sha256": hashlib.sha256(packed.getbuffer()).hexdigest(),
            **measured,
        }
    )
    write_whole(folder / "arrays.npz", packed.getvalue())
    write_whole(folder / "outcome.json", record.model_dump_json(indent=1))
    return record


def read(folder: Path) -> Record | None:
    """The stored record, or None if the folder holds no complete and unaltered outcome."""
    try:
        record = Record.model_validate_json((folder / "outcome.json").read_bytes())
        arrays = hashlib.sha256((folder / "arrays.npz").read_bytes()).hexdigest()
    except (FileNotFoundError, ValidationError):
        return None
    return record if arrays == record.arrays_sha256 else None


def load_outcome(folder: Path) -> Outcome:
    """The stored outcome, arrays and all.

    Raises:
        FileNotFoundError: if there is none.
    """
    record = read(folder)
    if record is None:
        raise FileNotFoundError(f"no complete outcome in {folder}")
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return Outcome(record.figures, {name.removeprefix(_ARRAY): arrays[name] for name in arrays}, record.data)
