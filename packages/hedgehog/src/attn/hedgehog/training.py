"""The two stages of the paper as Lightning modules: attention distillation, and training with the task's loss."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import get_peft_model
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)

from attn.hedgehog.adapters import convert, lora_config
from attn.hedgehog.attention import ConvertedAttention, Objective, hedgehog_layers
from attn.hedgehog.feature_maps import FeatureMap
from attn.hedgehog.metrics import IGNORED, TaskMetrics

Batch = dict[str, Tensor]
Schedule = Literal["constant", "cosine", "warmup-cosine"]


class TrainableStateModule(LightningModule):
    """A module whose checkpoints hold what is trained, and not the frozen weights that its constructor gives."""

    strict_loading = False

    def on_validation_epoch_start(self) -> None:
        """Start all metrics anew: `Trainer.validate` leaves states of its inference mode, which a fit cannot update."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out."""
        trained = self.trained_parameters()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other weights than those that are trained here.

        Raises:
            ValueError: if names are missing or unknown.
        """
        trained, given = set(self.trained_parameters()), set(checkpoint["state_dict"])
        if trained != given:
            missing, unknown = sorted(trained - given), sorted(given - trained)
            raise ValueError(f"checkpoint must hold the trained weights, got {missing} missing and {unknown} unknown")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names of the state."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


class AttentionDistiller(TrainableStateModule):
    """Trains the feature maps of a converted model to mimic its softmax attention (section 4.2).

    All layers learn from one forward pass: each returns its softmax output, so that every layer sees the activations of
    the original model, and only the maps have gradients. The loss is averaged over layers. The maps of the best
    evaluation are kept at the end, and the model's modes and frozen weights are then as they were before.

    The defaults are LoLCATs': AdamW at 1e-2 without weight decay, ten times less when ten evaluations in a row bring no
    improvement, at least 1e-5.

    Args:
        model: with converted attention layers; called with each batch's tensors but ``labels``.
        objective: ``"cross_entropy"`` of attention weights (the paper's) or ``"output_mse"`` (LoLCATs').
        lr: learning rate of the maps.
        weight_decay: of the maps.
        factor: by which the learning rate shrinks on a plateau of ``eval_loss``.
        patience: evaluations without improvement until then.
        min_lr: least learning rate.

    Raises:
        ValueError: if the model has no converted layers, or their maps nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective = "cross_entropy",
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        factor: float = 0.1,
        patience: int = 10,
        min_lr: float = 1e-5,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective
        self.lr, self.weight_decay = lr, weight_decay
        self.factor, self.patience, self.min_lr = factor, patience, min_lr
        self.layers: list[ConvertedAttention] = hedgehog_layers(model)
        if not map_parameters(model):
            raise ValueError("model must have feature maps with parameters to train, got maps without any")
        self.eval_loss, self.eval_kl = MeanMetric(), MeanMetric()
        self.layer_losses = nn.ModuleList(MeanMetric() for _ in self.layers)
        self.best_loss = float("inf")
        self.best_maps: dict[str, Tensor] = {}
        self._before: _ModelState | None = None

    def setup(self, stage: str) -> None:
        """Put the layers in mode ``"distill"`` and freeze all but the maps."""
        self._before = _ModelState.of(self.model)
        self.model.requires_grad_(False)
        for parameter in map_parameters(self.model):
            parameter.requires_grad_(True)
        for layer in self.layers:
            layer.mode = "distill"
            layer.distillation_objective = self.objective

    def on_fit_start(self) -> None:
        """Keep Lightning from warning of a model in evaluation mode, which it is put in next."""
        self.model.train()

    def on_train_start(self) -> None:
        """Switch dropout off: the teacher is the model as it predicts."""
        self.model.eval()

    def teardown(self, stage: str) -> None:
        """Give the model back as it came, but for the maps."""
        if self._before is not None:
            self._before.restore()
            self._before = None
        for layer in self.layers:
            layer.distillation_loss = layer.teacher_entropy = None

    def distillation_losses(self, batch: Batch) -> Tensor:
        """The loss of every layer, ``[layers]``, on one batch."""
        run(self.model, {name: tensor for name, tensor in batch.items() if name != "labels"})
        return torch.stack([layer.distillation_loss for layer in self.layers if layer.distillation_loss is not None])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss over layers."""
        loss = self.distillation_losses(batch).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``eval_loss``, ``eval_kl`` (nats; not for ``"output_mse"``) and ``eval_loss/layer_<i>``."""
        self._evaluate(batch, "eval")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`, with names that begin with ``test``."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        losses, weight = self.distillation_losses(batch), visible_tokens(batch)
        self.eval_loss.update(losses.mean(), weight)
        self.log(f"{stage}_loss", self.eval_loss, prog_bar=True)
        for number, (metric, loss) in enumerate(zip(self.layer_losses, losses, strict=True)):
            metric.update(loss, weight)  # type: ignore[operator]
            self.log(f"{stage}_loss/layer_{number}", metric)  # type: ignore[arg-type]
        entropies = [layer.teacher_entropy for layer in self.layers if layer.teacher_entropy is not None]
        if entropies:
            self.eval_kl.update(losses.mean() - torch.stack(entropies).mean(), weight)
            self.log(f"{stage}_kl", self.eval_kl)

    def on_validation_epoch_end(self) -> None:
        """Remember the maps if they are the best so far."""
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        loss = float(self.eval_loss.compute())
        if loss < self.best_loss:
            self.best_loss = loss
            self.best_maps = {name: value.detach().clone() for name, value in self.trained_parameters().items()}

    def on_train_end(self) -> None:
        """Go back to the maps of the best evaluation."""
        if self.best_maps:
            self.load_state_dict(self.best_maps, strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the maps, and the best of them so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["best_loss"], checkpoint["best_maps"] = self.best_loss, self.best_maps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the maps, and the best of them so far."""
        super().on_load_checkpoint(checkpoint)
        self.best_loss, self.best_maps = checkpoint["best_loss"], checkpoint["best_maps"]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the maps, by the names of the state."""
        maps = {id(parameter) for parameter in map_parameters(self.model)}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in maps}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the maps; with a validation split, a learning rate that falls on a plateau of ``eval_loss``."""
        optimizer = torch.optim.AdamW(map_parameters(self.model), lr=self.lr, weight_decay=self.weight_decay)
        if not self.trainer.enable_validation:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=self.factor, patience=self.patience, min_lr=self.min_lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "eval_loss"}}


class HedgehogFinetune(TrainableStateModule):
    """Trains a model with its task's loss: the second stage of a conversion, or training from scratch.

    Feature maps are a parameter group of their own, without weight decay. With softmax attention left in place it is
    the baseline. The model must return ``loss`` and ``logits`` for a batch with ``labels``, as transformers' models do.

    Args:
        model: what is trained.
        metrics: what it is measured by in validation and test, besides its loss.
        lr: learning rate; the paper's for GPT-2 is 6e-4, LoLCATs' for LoRA 1e-4.
        map_lr: learning rate of the feature maps; None is lr.
        weight_decay: of everything but the maps.
        schedule: ``"constant"``; ``"cosine"`` down to zero over the training; or ``"warmup-cosine"``, the same after a
            linear rise over the first hundredth of the steps.
        lora: options of `lora_config`: train adapters and leave the model's own weights frozen; an empty dictionary is
            the paper's, rank 8 and alpha 16; None trains all weights.
        train_maps: also train the feature maps (LoLCATs offers both).

    Raises:
        TypeError: if lora is asked for and the model's class is not one of the adapters'.
    """

    def __init__(
        self,
        model: nn.Module,
        metrics: TaskMetrics | None = None,
        *,
        lr: float = 6e-4,
        map_lr: float | None = None,
        weight_decay: float = 0.01,
        schedule: Schedule = "constant",
        lora: dict[str, Any] | None = None,
        train_maps: bool = True,
    ) -> None:
        super().__init__()
        if lora is None:
            self.model = model.requires_grad_(True)
        else:
            self.model = get_peft_model(cast(PreTrainedModel, model), lora_config(model, **lora))
        if not train_maps:
            for parameter in map_parameters(self.model):
                parameter.requires_grad_(False)
        self.lr, self.map_lr, self.weight_decay, self.schedule = lr, map_lr, weight_decay, schedule
        self.eval_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.eval_metrics = None if metrics is None else cast(TaskMetrics, metrics.clone(prefix="eval_"))
        self.test_metrics = None if metrics is None else cast(TaskMetrics, metrics.clone(prefix="test_"))

    def on_fit_start(self) -> None:
        """Switch dropout on: Lightning leaves a model in evaluation mode if that is how it was loaded."""
        self.model.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The model's loss."""
        loss: Tensor = run(self.model, batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``eval_loss`` and the metrics as ``eval_<name>``."""
        self._evaluate(batch, "eval_loss", self.eval_loss, self.eval_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test_loss`` and the metrics as ``test_<name>``."""
        self._evaluate(batch, "test_loss", self.test_loss, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits."""
        logits: Tensor = run(self.model, batch).logits
        return logits

    def _evaluate(self, batch: Batch, name: str, mean: MeanMetric, metrics: TaskMetrics | None) -> None:
        output = run(self.model, batch)
        mean.update(output.loss, (batch["labels"] != IGNORED).sum())
        self.log(name, mean, prog_bar=True)
        if metrics is not None:
            metrics.observe(self.model, batch, output)
            self.log_dict(metrics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the maps in their own group."""
        maps = [parameter for parameter in map_parameters(self.model) if parameter.requires_grad]
        chosen = {id(parameter) for parameter in maps}
        trunk = [p for p in self.model.parameters() if p.requires_grad and id(p) not in chosen]
        map_lr = self.lr if self.map_lr is None else self.map_lr
        groups = [{"params": trunk, "lr": self.lr, "weight_decay": self.weight_decay}]
        groups += [{"params": maps, "lr": map_lr, "weight_decay": 0.0}] if maps else []
        optimizer = torch.optim.AdamW(groups)
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        # The estimate sets the loader up, and Lightning restores a loader's position only where it sets it up later on.
        self.trainer.fit_loop._combined_loader = None
        scheduler = (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            if self.schedule == "cosine"
            else get_cosine_schedule_with_warmup(optimizer, -(-steps // 100), steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def quiet_trainer(device: torch.device, **options: Any) -> Trainer:
    """Lightning's Trainer on one device, which prints and writes nothing.

    Args:
        device: where to compute.
        options: arguments of the Trainer, which replace these.
    """
    quiet: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**quiet | options)


def converted_causal_lm(
    name_or_path: str,
    *,
    feature_map: str = "hedgehog",
    map_options: dict[str, Any] | None = None,
    maps: str | None = None,
) -> PreTrainedModel:
    """A pretrained causal language model with its attention converted, for configurations.

    Args:
        name_or_path: of the softmax model.
        feature_map: a name in `FEATURE_MAPS`.
        map_options: options of the feature map.
        maps: checkpoint of an `AttentionDistiller` whose best maps are loaded.
    """
    return _converted(AutoModelForCausalLM.from_pretrained(name_or_path), feature_map, map_options, maps)


def converted_classifier(
    name_or_path: str,
    *,
    num_labels: int = 2,
    feature_map: str = "hedgehog",
    map_options: dict[str, Any] | None = None,
    maps: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with its attention converted, for configurations.

    Args:
        name_or_path: of the softmax model.
        num_labels: classes; 1 is regression.
        feature_map: a name in `FEATURE_MAPS`.
        map_options: options of the feature map.
        maps: checkpoint of an `AttentionDistiller` whose best maps are loaded.
    """
    model = AutoModelForSequenceClassification.from_pretrained(name_or_path, num_labels=num_labels)
    return _converted(model, feature_map, map_options, maps)


def load_maps(model: nn.Module, checkpoint: str) -> None:
    """Load the best maps of an `AttentionDistiller`'s checkpoint into a model that is converted alike, in place.

    Raises:
        ValueError: if the checkpoint's maps are not those of the model.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    trained = {
        name.removeprefix("model."): value for name, value in (state["best_maps"] or state["state_dict"]).items()
    }
    chosen = {id(parameter) for parameter in map_parameters(model)}
    expected = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    if set(trained) != expected:
        missing, unknown = sorted(expected - set(trained)), sorted(set(trained) - expected)
        raise ValueError(f"checkpoint must hold the maps of the model, got {missing} missing and {unknown} unknown")
    model.load_state_dict(trained, strict=False)


def _converted(
    model: PreTrainedModel, feature_map: str, map_options: dict[str, Any] | None, maps: str | None
) -> PreTrainedModel:
    convert(model, feature_map=feature_map, **(map_options or {}))
    if maps is not None:
        load_maps(model, maps)
    return model


def map_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all feature maps of a model."""
    maps = [module for module in model.modules() if isinstance(module, FeatureMap)]
    return list(dict.fromkeys(parameter for module in maps for parameter in module.parameters()))


def run(model: nn.Module, batch: Batch) -> Any:
    """The output of a model on a batch; a model that generates keeps no cache."""
    generates = getattr(model, "can_generate", None)
    options = {"use_cache": False} if generates is not None and generates() else {}
    return model(**batch, **options)


def visible_tokens(batch: Batch) -> Tensor:
    """The number of tokens of a batch that are not padding: the rows of attention that it weighs."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    first = next(iter(batch.values()))
    return torch.tensor(first.shape[:2].numel(), device=first.device)


@dataclass
class _ModelState:
    """What a training changes in a model besides weights: modes, what is frozen, and whether modules train."""

    modes: list[tuple[ConvertedAttention, Any, Any]]
    frozen: list[tuple[nn.Parameter, bool]]
    training: list[tuple[nn.Module, bool]]

    @classmethod
    def of(cls, model: nn.Module) -> "_ModelState":
        return cls(
            [(layer, layer.mode, layer.distillation_objective) for layer in hedgehog_layers(model)],
            [(parameter, parameter.requires_grad) for parameter in model.parameters()],
            [(module, module.training) for module in model.modules()],
        )

    def restore(self) -> None:
        for layer, mode, objective in self.modes:
            layer.mode, layer.distillation_objective = mode, objective
        for parameter, requires_grad in self.frozen:
            parameter.requires_grad_(requires_grad)
        for module, training in self.training:
            module.training = training
