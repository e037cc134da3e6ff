"""What a recipe is: a model, its training data by index, its loss, and the gates that it must pass."""

from __future__ import annotations

import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attn.shared_eval.models.gates import Gate

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule
    from transformers import PreTrainedTokenizerBase

ENTRY_POINTS = "attn.recipes"


class RecipeError(ValueError):
    """A request that no recipe or run answers."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How one small model is made: a real transformers or diffusers class, trained on data drawn by index.

    All recipes train in the same way: AdamW, warm-up, cosine decay. One that needs something else, such as a curriculum
    with frozen parts, overrides `lightning_module` or `datamodule`. A recipe is registered as an entry point of the
    group ``attn.recipes``, in whatever package it lives.

    Args:
        name: the model's name, and the folder of its checkpoint.
        package: package that ships the checkpoint, in its folder ``checkpoints``.
        steps: optimizer steps.
        batch_size: samples a step.
        learning_rate: peak, reached after ``warmup`` of the steps; cosine decay to ``final_learning_rate`` of the peak.
        warmup: share of the steps in which the learning rate grows linearly.
        final_learning_rate: share of the peak that is left at the end.
        weight_decay: of AdamW, on matrices only: not on norms, biases and embeddings.
        betas: of AdamW.
        gradient_clip: largest norm of the gradient.
        ema: decay of the exponential moving average of the weights that is shipped, or None.
        precision: Lightning's name, such as ``bf16-mixed``, which pays from a width of about 192 up.
        seed: of weights, data and dropout.
        parent: name of the model that `build` starts from; only the tensors that differ from it are stored.
        notes: departures from the design and the measurements that caused them; they go to the card.
    """

    name: str
    package: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    final_learning_rate: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0
    ema: float | None = None
    precision: str = "32-true"
    seed: int = 0
    parent: str | None = None
    notes: str = ""

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained model.

        Draws its weights from torch's global generator, which the engine seeds. An ``nn.ModuleDict`` is a model of
        several parts, such as a pipeline: each part is stored on its own, with its own class and configuration.
        """

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The training samples with these indices, collated; a pure function of ``seed`` and ``indices``."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The scalar training loss of a batch; what it draws, it draws from torch's global generator."""

    def auxiliary_heads(self) -> nn.ModuleDict:
        """Heads for auxiliary losses, trained with the model and thrown away; none by default.

        They draw their weights from torch's global generator, which the engine seeds.
        """
        return nn.ModuleDict()

    def training_loss(self, model: nn.Module, heads: nn.ModuleDict, batch: dict[str, Tensor]) -> Tensor:
        """The loss that is minimized: `loss`, and what the auxiliary heads add to it."""
        return self.loss(model, batch)

    @abstractmethod
    def gates(self) -> list[Gate]:
        """What the trained model must measure."""

    @abstractmethod
    def narrow(self) -> Recipe:
        """The same recipe with a model of width 32 or so and a few steps, for smoke tests."""

    def lightning_module(self) -> LightningModule:
        """The Lightning module that trains this recipe."""
        from attn.shared_eval.models.training import RecipeModule

        return RecipeModule(self)

    def datamodule(self, *, batch_scale: int = 1, num_workers: int = 0) -> LightningDataModule:
        """The Lightning data module that draws this recipe's batches, ``batch_scale`` times as large."""
        from attn.shared_eval.models.training import RecipeData

        return RecipeData(self, batch_scale=batch_scale, num_workers=num_workers)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, which is stored with the model, or None."""
        return None

    @property
    def checkpoint_folder(self) -> Path:
        """Where the shipped checkpoint lies, inside ``package``."""
        return Path(str(importlib.resources.files(self.package))) / "checkpoints" / self.name


def seeded_build(recipe: Recipe) -> nn.Module:
    """The untrained model of a recipe, a function of its seed alone; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return recipe.build()


def registered_recipes() -> list[str]:
    """Names of all recipes of the installed packages, sorted."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINTS))


def find_recipe(name: str) -> Recipe:
    """The registered recipe of this name.

    Raises:
        RecipeError: if no installed package registers it, or it goes by another name than its entry point.
    """
    found = entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        raise RecipeError(f"name must be one of {', '.join(registered_recipes()) or '(no recipes)'}, got {name!r}")
    recipe: Recipe = next(iter(found)).load()()
    if recipe.name != name:
        raise RecipeError(f"recipe registered as {name!r} must have that name, got {recipe.name!r}")
    return recipe
