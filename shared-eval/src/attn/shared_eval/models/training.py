"""Training a recipe with Lightning: resumable, then measured, and accepted only if every gate passes."""

import hashlib
import json
import math
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attn.shared_eval.data import IndexStream
from attn.shared_eval.models import checkpoint
from attn.shared_eval.models.card import Card, data_hash, installed_versions, source_hash
from attn.shared_eval.models.gates import Figure, evaluate
from attn.shared_eval.models.recipe import Recipe, RecipeError, seeded_build

LAST = "last.ckpt"
RUN = "run.json"
EXPORT = "export"
HASHED_SAMPLES = 64


class GateError(ValueError):
    """A trained model that may not be shipped."""


class RecipeModule(LightningModule):
    """The common training: AdamW, linear warm-up, cosine decay, randomness that is a function of the batch's number."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = seeded_build(recipe).train()
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.heads = recipe.auxiliary_heads()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Seed dropout and the like by the batch's number: a resumed run needs no generator's state."""
        key = f"{self.recipe.seed}/{batch_idx}/{self.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The recipe's training loss."""
        loss = self.recipe.training_loss(self.model, self.heads, batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with decay on matrices only, and the schedule over the trainer's steps."""
        recipe = self.recipe
        decayed, others = decay_groups(self)
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
        steps = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps, recipe.warmup, recipe.final_learning_rate)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RecipeData(LightningDataModule):
    """Batches by number: the loader starts at the trainer's step, and each rank and worker draws its own share."""

    def __init__(self, recipe: Recipe, *, batch_scale: int = 1, num_workers: int = 0) -> None:
        super().__init__()
        if batch_scale < 1:
            raise ValueError(f"batch_scale must be positive, got {batch_scale}")
        self.recipe = recipe
        self.batch_size = recipe.batch_size * batch_scale
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader:
        """An endless loader; the trainer's ``max_steps`` ends it."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("RecipeData draws batches for a trainer: pass it to Trainer.fit")
        start = trainer.global_step * trainer.accumulate_grad_batches
        batch = partial(_rank_batch, self.recipe, self.batch_size, trainer.global_rank, trainer.world_size)
        stream = IndexStream(batch, start=start, rank=0, world_size=1)  # every rank takes its rows of every batch
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers)


def _rank_batch(recipe: Recipe, batch_size: int, rank: int, world_size: int, number: int) -> dict[str, Tensor]:
    first = number * batch_size
    return recipe.batch(range(first + rank, first + batch_size, world_size))


class _SaveLast(Checkpoint):
    """Keeps one file with the state of the training, replaced by rename."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.saved = path, every, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step > self.saved and (step % self.every == 0 or step == trainer.max_steps):
            self.saved = step
            fresh = self.path.with_suffix(".new")
            trainer.save_checkpoint(fresh, weights_only=False)
            if trainer.is_global_zero:
                fresh.replace(self.path)


def warmup_cosine(step: int, steps: int, warmup: float, final: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine from 1 to ``final``."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay: matrices, and norms, biases and embeddings."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    return decayed, [p for p in trainable if id(p) not in chosen]


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    trainer_options: Mapping[str, Any] | None = None,
    batch_scale: int = 1,
    num_workers: int = 0,
    save_every: int | None = None,
) -> nn.Module:
    """Train a recipe, or go on where a killed run stopped; the weights are the same to the bit on the same machine.

    Args:
        recipe: what to train.
        folder: where the state of the training is kept.
        trainer_options: arguments of Lightning's Trainer, which replace the recipe's.
        batch_scale: how many times larger the batch is than the recipe's.
        num_workers: processes that draw batches; does not change them.
        save_every: steps between two saved states; a fiftieth of the training by default.

    Returns: the model in float32, averaged if the recipe says so.

    Raises:
        RecipeError: if the folder holds a run of another recipe or with other options.
    """
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": recipe.precision,
        "max_steps": recipe.steps,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": recipe.gradient_clip,
        "deterministic": True,
        "enable_model_summary": False,
    } | dict(trainer_options or {})
    steps = options["max_steps"]
    _claim(folder, recipe, options, batch_scale)
    state = folder / LAST
    if not state.exists() or _load_state(state)["global_step"] < steps:
        options.setdefault("logger", CSVLogger(folder, name="log"))
        options.setdefault("log_every_n_steps", max(1, steps // 100))
        options["limit_train_batches"] = steps * options["accumulate_grad_batches"]
        averaging = [] if recipe.ema is None else [EMAWeightAveraging(decay=recipe.ema)]
        saving = _SaveLast(state, save_every or max(1, steps // 50))
        options["callbacks"] = [*(options.get("callbacks") or []), *averaging, saving]
        with _global_switches_restored(), warnings.catch_warnings():
            # Batches are pure functions of their number: one process may draw them, and any step may be resumed.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
            # Lightning 2.6 asks for a class that torch 2.15 deprecates.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            data = recipe.datamodule(batch_scale=batch_scale, num_workers=num_workers)
            resumed = state if state.exists() else None
            Trainer(**options).fit(recipe.lightning_module(), data, ckpt_path=resumed, weights_only=True)
    module = recipe.lightning_module()
    module.load_state_dict(_load_state(state)["state_dict"])
    model: nn.Module = module.model  # type: ignore[assignment]
    return model.eval()


def train(
    recipe: Recipe,
    folder: Path,
    *,
    trainer_options: Mapping[str, Any] | None = None,
    batch_scale: int = 1,
    num_workers: int = 0,
    save_every: int | None = None,
) -> Card:
    """Train a recipe (see `fit`), measure its gates, and write the checkpoint to ``folder/export``.

    The gates are measured before and after the weights are rounded to half precision; the rounded ones decide, and
    what rounding changes is a gate of its own.

    Returns: the card, whether the gates passed or not.
    """
    model = fit(
        recipe,
        folder,
        trainer_options=trainer_options,
        batch_scale=batch_scale,
        num_workers=num_workers,
        save_every=save_every,
    )
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # Lightning's other processes have done their part
        raise SystemExit(0)
    card = measured_card(
        recipe,
        model,
        steps=_load_state(folder / LAST)["global_step"],
        batch_size=recipe.batch_size * batch_scale,
        device=json.loads((folder / RUN).read_text(encoding="utf-8"))["device"],
    )
    checkpoint.save(folder / EXPORT, model, card, recipe.tokenizer)
    return card


def measured_card(recipe: Recipe, model: nn.Module, *, steps: int, batch_size: int, device: str) -> Card:
    """The card of a trained model, whose weights are rounded in place to what a checkpoint stores.

    Raises:
        ValueError: if a weight cannot be stored in half precision.
    """
    gates = recipe.gates()
    exact = evaluate(gates, model, seed=recipe.seed)
    checkpoint.round_weights(model)
    figures = evaluate(gates, model, seed=recipe.seed)
    figures += [
        Figure(
            name=f"{gate.name}, change by rounding",
            value=abs(after.value - before.value),
            low=None,
            high=gate.rounding,
            samples=gate.samples,
        )
        for gate, before, after in zip(gates, exact, figures, strict=True)
    ]
    return Card(
        name=recipe.name,
        recipe=f"{type(recipe).__module__}:{type(recipe).__qualname__}",
        recipe_sha256=source_hash(type(recipe)),
        data_sha256=data_hash(recipe.batch(range(HASHED_SAMPLES))),
        parent=None if recipe.parent is None else checkpoint.parent_of(recipe.parent),
        seed=recipe.seed,
        steps=steps,
        batch_size=batch_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device,
        versions=installed_versions(),
        figures=figures,
        notes=recipe.notes,
    )


def accept(recipe: Recipe, folder: Path) -> None:
    """Ship the checkpoint in ``folder/export``: weights, card and manifest replace the shipped ones together.

    Raises:
        GateError: if a gate fails, or the recipe has changed since the training; nothing is touched.
    """
    export = folder / EXPORT
    card = checkpoint.read_card(export)
    failed = [
        f"{figure.name} {figure.value:.4g}, must be {figure.band}" for figure in card.figures if not figure.passed
    ]
    if failed:
        raise GateError(f"{recipe.name} is not accepted: " + "; ".join(failed))
    if card.recipe_sha256 != source_hash(type(recipe)):
        raise GateError(f"{recipe.name} is not accepted: its recipe has changed since {export} was trained")
    shipped = recipe.checkpoint_folder
    staged = shipped.with_name(f".{shipped.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(export, staged)
    checkpoint.replace_folder(staged, shipped)


def problems(recipe: Recipe) -> list[str]:
    """What is wrong with a shipped checkpoint: files, quick gates, a card that no longer tells the truth."""
    try:
        shipped = checkpoint.load(recipe.checkpoint_folder)
    except checkpoint.CheckpointError as error:
        return [str(error)]
    card = shipped.card
    found = []
    if card.name != recipe.name:
        found.append(f"the card is of {card.name}")
    if card.recipe_sha256 != source_hash(type(recipe)):
        found.append(f"stale card: {card.recipe} has changed since the training")
    if card.data_sha256 != data_hash(recipe.batch(range(HASHED_SAMPLES))):
        found.append("stale card: the training data have changed since the training")
    quick = evaluate(recipe.gates(), shipped.model, seed=recipe.seed, quick=True)
    return found + [f"quick gate {f.name}: {f.value:.4g}, must be {f.band}" for f in quick if not f.passed]


def _claim(folder: Path, recipe: Recipe, options: Mapping[str, Any], batch_scale: int) -> None:
    """Record whose run a folder holds; refuse to go on with another one's."""
    run = {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name != "notes"}
    run |= {name: options.get(name) for name in ("max_steps", "precision", "accumulate_grad_batches", "devices")}
    run |= {"source": source_hash(type(recipe)), "batch_scale": batch_scale, "device": _device(options["accelerator"])}
    run = json.loads(json.dumps(run, default=str))
    path = folder / RUN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in run | before if run.get(name) != before.get(name))
        if differing:
            raise RecipeError(
                f"{folder} must hold a run of the same recipe with the same options, but it differs in "
                f"{', '.join(differing)}: remove it to start afresh"
            )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def _device(accelerator: str) -> str:
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"cpu, {platform.machine()}"


def _load_state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _global_switches_restored() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
