"""The checkpoint format: half-precision safetensors, configuration and card, admitted by hash and replaced whole.

A checkpoint is a folder: ``manifest.json`` with size and SHA-256 of every other file, ``card.json``, the tokenizer's
files, and for each part of the model ``config.json`` with the weights beside it (in a folder named after the part, if
there are several).
A variant stores only the tensors that differ from its parent's. Nothing is downloaded, nothing is unpickled.
"""

import hashlib
import json
import os
import pkgutil
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from attn.shared_eval.models.card import Card, Parent
from attn.shared_eval.models.recipe import find_recipe

MANIFEST = "manifest.json"
CARD = "card.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
LARGEST_WEIGHT = 1e4
# What from_pretrained of the library looks for.
WEIGHTS = {
    "transformers": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
    "attn": "model.safetensors",
}


class CheckpointError(ValueError):
    """A checkpoint that must not be used; the message names the file."""


@dataclass(frozen=True)
class MiniModel:
    """A loaded model: in float32, in evaluation mode, with its tokenizer (or None) and its card.

    A model of several parts is an ``nn.ModuleDict``.
    """

    model: nn.Module
    tokenizer: Any
    card: Card


def load_mini(name: str, *, random: bool = False) -> MiniModel:
    """The shipped model of this name, every file checked by hash before use; never downloads.

    Args:
        name: a registered recipe, such as ``mini-bert``.
        random: the same configuration with untrained weights, drawn from the recipe's seed: the negative control.

    Raises:
        RecipeError: if no recipe has this name.
        CheckpointError: if a file is missing, truncated, altered or not listed, or if the parent of a variant is not
            the one that it was made from.
    """
    loaded = load(find_recipe(name).checkpoint_folder, random=random)
    if loaded.card.name != name:
        raise CheckpointError(f"{find_recipe(name).checkpoint_folder} holds another model, {loaded.card.name}")
    return loaded


def load(folder: Path, *, random: bool = False) -> MiniModel:
    """The model in a checkpoint's folder; see `load_mini`."""
    files = verified_files(folder)
    card = _card(folder, files)
    model = _build(folder, files, seed=card.seed)
    if not random:
        weights = _weights(folder, files, card)
        for part, module in parts(model).items():
            _fill(module, weights[part], folder / part)
    return MiniModel(model.eval(), _tokenizer(folder) if TOKENIZER in files else None, card)


def save(folder: Path, model: nn.Module, card: Card, tokenizer: Any = None) -> None:
    """Write a checkpoint, or replace the one that is there, whole or not at all.

    Floating-point tensors are rounded to float16. If ``card.parent`` is given, tensors that equal the parent's are
    left out.

    Raises:
        ValueError: if a weight is 1e4 or more in absolute value, or not finite.
    """
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    lent = {} if card.parent is None else parent_weights(card.parent)
    for part, module in parts(model).items():
        library, config = _configuration(module)
        tensors = half_precision(module)
        changed = {
            name: tensor
            for name, tensor in tensors.items()
            if name not in lent.get(part, {}) or not torch.equal(tensor, lent[part][name])
        }
        (staged / part).mkdir(parents=True, exist_ok=True)
        (staged / part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (staged / part / WEIGHTS[library]).write_bytes(safetensors.torch.save(changed, metadata={"format": "pt"}))
    if tokenizer is not None:
        tokenizer.save_pretrained(staged)
    (staged / CARD).write_text(card.to_json(), encoding="utf-8")
    entries = {path: _entry((staged / path).read_bytes()) for path in _listing(staged)}
    (staged / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    replace_folder(staged, folder)


def replace_folder(staged: Path, folder: Path) -> None:
    """Put the folder ``staged`` in the place of ``folder``, by renaming.

    A folder cannot be renamed over another. The old one steps aside first and goes last: a kill in between leaves both
    versions whole on the disk, never a mixture.
    """
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    staged.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def verified_files(folder: Path) -> dict[str, bytes]:
    """The contents of every file of a checkpoint, checked against the manifest; keys are paths within the folder.

    Raises:
        CheckpointError: if the manifest or a file is missing, or a file is truncated, altered or not listed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{manifest} is missing: there is no checkpoint in this folder")
    try:
        entries = json.loads(manifest.read_bytes())
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{manifest} is not a manifest: {error}") from error
    for name in _listing(folder):
        if name not in listed:
            raise CheckpointError(f"{folder / name} is not listed in {MANIFEST}")
    contents = {}
    for name, (size, sha256) in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {MANIFEST} lists it")
        content = path.read_bytes()
        if len(content) < size:
            raise CheckpointError(f"{path} is truncated: {len(content)} of {size} bytes")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(f"{path} is altered: its SHA-256 is not the one in {MANIFEST}")
        contents[name] = content
    return contents


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model by name; a model of one part has the empty name."""
    return dict(model.items()) if isinstance(model, nn.ModuleDict) else {"": model}


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, under their first name."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), (name, tensor.detach()))
    return dict(named.values())


def half_precision(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module as they are stored: floating-point ones in float16.

    Raises:
        ValueError: if a weight is 1e4 or more in absolute value, or not finite.
    """
    stored = {}
    for name, tensor in unique_tensors(module).items():
        if tensor.is_floating_point():
            if not tensor.abs().lt(LARGEST_WEIGHT).all():
                largest = tensor.abs().max().item()
                raise ValueError(f"{name} must stay below {LARGEST_WEIGHT:g} to be stored in float16, got {largest:g}")
            tensor = tensor.to(torch.float16)
        stored[name] = tensor.cpu().contiguous()
    return stored


def round_weights(model: nn.Module) -> None:
    """Round the weights of a model in place to what its checkpoint stores.

    Raises:
        ValueError: if a weight is 1e4 or more in absolute value, or not finite.
    """
    for module in parts(model).values():
        stored = half_precision(module)
        for name, tensor in unique_tensors(module).items():
            tensor.copy_(stored[name])


def parent_of(name: str) -> Parent:
    """The reference to a shipped model that a variant's card holds."""
    folder = find_recipe(name).checkpoint_folder
    files = verified_files(folder)
    return Parent(name=name, sha256={part: _sha256(files[path]) for part, path in _weight_files(files).items()})


def parent_weights(parent: Parent) -> dict[str, dict[str, Tensor]]:
    """Stored tensors of a variant's parent, by part and name.

    Raises:
        CheckpointError: if the shipped parent is another one than the variant was made from.
    """
    folder = find_recipe(parent.name).checkpoint_folder
    files = verified_files(folder)
    for part, path in _weight_files(files).items():
        if parent.sha256.get(part) != _sha256(files[path]):
            raise CheckpointError(f"{folder / path} is not the parent that the variant was made from")
    return _weights(folder, files, _card(folder, files))


def read_card(folder: Path) -> Card:
    """The card of the checkpoint in a folder, all of whose files are checked."""
    return _card(folder, verified_files(folder))


def _card(folder: Path, files: Mapping[str, bytes]) -> Card:
    if CARD not in files:
        raise CheckpointError(f"{folder / CARD} is not listed in {MANIFEST}")
    try:
        card = Card.model_validate_json(files[CARD])
    except ValidationError as error:
        raise CheckpointError(f"{folder / CARD} is not a card: {error}") from error
    return card


def _weight_files(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path.rpartition("/")[0]: path for path in files if path.endswith(".safetensors")}


def _weights(folder: Path, files: Mapping[str, bytes], card: Card) -> dict[str, dict[str, Tensor]]:
    weights = {part: safetensors.torch.load(files[path]) for part, path in _weight_files(files).items()}
    if card.parent is not None:
        lent = parent_weights(card.parent)
        weights = {part: lent.get(part, {}) | changed for part, changed in weights.items()}
    if not weights:
        raise CheckpointError(f"{folder} holds no safetensors")
    return weights


def _build(folder: Path, files: Mapping[str, bytes], *, seed: int) -> nn.Module:
    configs = {path.rpartition("/")[0]: json.loads(files[path]) for path in files if path.rpartition("/")[2] == CONFIG}
    if set(configs) != set(_weight_files(files)):
        raise CheckpointError(f"{folder} must hold a {CONFIG} beside each weight file")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = {part: _instantiate(configs[part]) for part in sorted(configs)}
    return built[""] if "" in built else nn.ModuleDict(built)


def _configuration(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The library of a module's class, and what is needed to build the module again."""
    cls = type(module)
    library = cls.__module__.partition(".")[0]
    config: Any = getattr(module, "config", None)
    if library == "transformers":
        return library, json.loads(config.to_json_string()) | {"architectures": [cls.__name__], "dtype": "float16"}
    if library == "diffusers":
        return library, json.loads(module.to_json_string())  # type: ignore[operator]
    if library == "attn" and isinstance(config, Mapping):
        return library, {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": dict(config)}
    raise TypeError(
        "every part of a model must be a transformers or diffusers class, or a class of this project whose attribute "
        f"config maps the arguments that build it, got {cls.__module__}.{cls.__qualname__}"
    )


def _instantiate(config: dict[str, Any]) -> nn.Module:
    if "architectures" in config:
        import transformers

        cls = getattr(transformers, config["architectures"][0])
        return cls(cls.config_class.from_dict(config | {"dtype": "float32"}))
    if "_class_name" in config:
        import diffusers

        return getattr(diffusers, config["_class_name"]).from_config(config)
    if not config["class"].startswith("attn."):
        raise CheckpointError(f"class must be one of this project, got {config['class']!r}")
    return pkgutil.resolve_name(config["class"])(**config["arguments"])


def _fill(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    tensors = unique_tensors(module)
    if set(tensors) != set(weights):
        differing = sorted(set(tensors) ^ set(weights))
        raise CheckpointError(f"{where} does not hold the tensors of its configuration: {', '.join(differing[:5])}")
    for name, tensor in tensors.items():
        if tensor.shape != weights[name].shape:
            shapes = f"{tuple(tensor.shape)}, got {tuple(weights[name].shape)}"
            raise CheckpointError(f"{where}: {name} must have the shape of its configuration {shapes}")
        tensor.copy_(weights[name])


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _listing(folder: Path) -> list[str]:
    """Paths of all files below a folder, except its manifest."""
    found = (Path(root, name).relative_to(folder) for root, _, names in os.walk(folder) for name in names)
    return sorted(path.as_posix() for path in found if path != Path(MANIFEST))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": _sha256(content)}
