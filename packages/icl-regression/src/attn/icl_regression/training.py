"""Training on fresh prompts: Lightning module, data module, and the history of the heads."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric

from attn.icl_regression.model import MultiHeadICL, SideBySide
from attn.icl_regression.patterns import scales
from attn.icl_regression.task import Prompts, Stream, Task, random_stream

__all__ = ["HeadHistory", "ICLTraining", "PromptBatches", "PromptData", "Risk"]


ENDLESS = 2**40  # batches; of a stream without length, Lightning draws one ahead, and a resumed training would skip it


class Risk(Metric):
    """Mean squared error of each of several models, float64 ``[models]``; how prompts are batched does not matter.

    Args:
        models: how many.
    """

    total: Tensor
    count: Tensor
    full_state_update = False
    higher_is_better = False

    def __init__(self, models: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros(models, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Add predictions ``[models, batch, n_out]`` for targets ``[batch, n_out]``."""
        self.total += (predictions - target).double().square().mean(-1).sum(-1)
        self.count += len(target)

    def compute(self) -> Tensor:
        """NaN before the first update."""
        return self.total / self.count


class ICLTraining(LightningModule):
    """Adam on the mean squared error of the query's label; each of several models on its own.

    The defaults are the paper's.

    Args:
        model: one, or several on the same prompts.
        lr: learning rate.
        decay: share of the steps, the last ones, over which the learning rate falls to zero linearly; 0 keeps it.

    Raises:
        ValueError: if decay is not in [0, 1], or, when fitting, the trainer's max_steps do not say when it begins.
    """

    def __init__(self, model: MultiHeadICL | SideBySide, lr: float = 1e-3, decay: float = 0.0) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.model, self.lr, self.decay = model, lr, decay
        self.risk = Risk(len(model.heads))

    def training_step(self, batch: Prompts, batch_idx: int) -> Tensor:
        """The sum over models of the mean squared error: no model's gradient depends on another's."""
        predictions = self.model(batch.context, batch.query)
        return (predictions - batch.target).square().mean((1, 2)).sum()

    def validation_step(self, batch: Prompts, batch_idx: int) -> None:
        """Log ``risk/model_<i>``."""
        self.risk.update(self.model(batch.context, batch.query), batch.target)

    def test_step(self, batch: Prompts, batch_idx: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Compute and forget."""
        risks = self.risk.compute().float()  # of all processes
        self.log_dict({f"risk/model_{number}": value for number, value in enumerate(risks)}, sync_dist=True)
        self.risk.reset()

    def on_test_epoch_end(self) -> None:
        """Compute and forget."""
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam without weight decay."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if self.decay == 0:
            return optimizer
        steps = self.trainer.max_steps
        if steps < 1:
            raise ValueError(f"trainer.max_steps must be positive where decay is {self.decay}, got {steps}")
        falling = self.decay * steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / falling))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PromptBatches:
    """Batches by number; a resumed training goes on at the number where it was stopped.

    Every rank takes its rows of every batch, so that several processes train on the batches of one.

    Args:
        task: what draws the prompts.
        batch_size: prompts of a batch, over all ranks.
        batches: how many.
        seed: of the prompts.
        stream: training or test prompts.

    Raises:
        ValueError: if batch_size is not a multiple of the number of ranks.
    """

    def __init__(self, task: Task, batch_size: int, batches: int, *, seed: int, stream: Stream) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.ranks = torch.distributed.get_world_size() if distributed else 1
        if batch_size < 1 or batch_size % self.ranks:
            raise ValueError(f"batch_size must be a positive multiple of {self.ranks} (ranks), got {batch_size}")
        self.task, self.batch_size, self.batches, self.seed, self.stream = task, batch_size, batches, seed, stream
        self.done = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Prompts]:
        while self.done < self.batches:
            prompts = self.task.prompts(self.batch_size, random_stream(self.seed, self.stream, self.done))
            self.done += 1
            yield Prompts(*(part[self.rank :: self.ranks] for part in prompts))
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        """The number of batches that were drawn."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that number."""
        self.done = state["done"]


class PromptData(LightningDataModule):
    """Fresh prompts for every step, which the trainer's ``max_steps`` ends, and fixed ones to validate and test on.

    Args:
        task: what draws the prompts.
        batch_size: prompts of a batch, over all devices; the paper's is 256.
        eval_batches: batches of prompts to validate or test on.
        seed: of the prompts.
    """

    def __init__(self, task: Task, batch_size: int = 256, eval_batches: int = 40, seed: int = 1029) -> None:
        super().__init__()
        self.task, self.batch_size, self.eval_batches, self.seed = task, batch_size, eval_batches, seed

    def train_dataloader(self) -> PromptBatches:
        """An endless stream."""
        return PromptBatches(self.task, self.batch_size, ENDLESS, seed=self.seed, stream="train")

    def val_dataloader(self) -> PromptBatches:
        """The fixed prompts."""
        return PromptBatches(self.task, self.batch_size, self.eval_batches, seed=self.seed, stream="test")

    def test_dataloader(self) -> PromptBatches:
        """The fixed prompts."""
        return self.val_dataloader()


class HeadHistory(Callback):
    """omega and mu of every head in the course of a training, at steps that are spaced evenly in their logarithm.

    Args:
        steps: of the training.
        points: how often to look, at most.
    """

    def __init__(self, steps: int, points: int = 200) -> None:
        self.wanted = set(torch.logspace(0, torch.tensor(float(steps)).log10(), points).round().long().tolist())
        self.steps: list[int] = []
        self.omega: list[Tensor] = []
        self.mu: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look, if it is time."""
        if trainer.global_step in self.wanted:
            assert isinstance(pl_module, ICLTraining)  # noqa: S101
            with torch.no_grad():
                omega, mu = scales(pl_module.model.circuits())
            self.steps.append(trainer.global_step)
            self.omega.append(omega.cpu())
            self.mu.append(mu.cpu())

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"steps": self.steps, "omega": self.omega, "mu": self.mu}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self.omega, self.mu = (list(state_dict[name]) for name in ("steps", "omega", "mu"))
