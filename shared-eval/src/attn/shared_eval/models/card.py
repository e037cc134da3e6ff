"""The card of a checkpoint: how it was made and what it measured."""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import platform
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from attn.shared_eval.models.gates import Figure

DISTRIBUTIONS = ("torch", "lightning", "transformers", "diffusers", "tokenizers", "safetensors", "attn-shared-eval")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Parent(_Frozen):
    """The model whose tensors a variant shares, and the hash of the weight file of each of its parts."""

    name: str
    sha256: dict[str, str]


class Card(_Frozen):
    """What is known about a checkpoint.

    Attributes:
        name: the model's name.
        recipe: class that trained it, as ``module:class``.
        recipe_sha256: hash of the recipe's module, comments and docstrings left out (`source_hash`).
        data_sha256: hash of the first training samples (`data_hash`).
        parent: the model that lends the tensors that are not stored, if it is a variant.
        seed, steps, batch_size: of the training that made it.
        parameters: number of weights, shared ones counted once.
        device: on what it was trained.
        versions: of the interpreter and the libraries.
        figures: gates of the shipped weights, and what rounding them to half precision changed.
        notes: departures from the design and the measurements that caused them.
    """

    name: str
    recipe: str
    recipe_sha256: str
    data_sha256: str
    parent: Parent | None = None
    seed: int
    steps: int
    batch_size: int
    parameters: int
    device: str
    versions: dict[str, str]
    figures: list[Figure]
    notes: str = ""

    def to_json(self) -> str:
        """The card as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"


def source_hash(cls: type) -> str:
    """SHA-256 of the source of the module that defines ``cls``, without comments, docstrings and layout."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(_skeleton(tree)).encode()).hexdigest()


def _skeleton(node: object) -> object:
    # ast.dump and ast.unparse differ between versions of Python; names, values and structure do not.
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
        body = fields.get("body")
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                fields["body"] = body[1:]
        return [type(node).__name__, {name: _skeleton(value) for name, value in fields.items()}]
    if isinstance(node, list):
        return [_skeleton(item) for item in node]
    return repr(node)


def data_hash(batch: Mapping[str, Tensor]) -> str:
    """SHA-256 of a batch: names, dtypes, shapes and bytes of its tensors."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        tensor = batch[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of the interpreter and of the libraries that a model depends on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
