"""An evaluation small enough for tests; run as a program, one that kills itself.

Usage: killed_evaluation.py FOLDER, which gets the lines of an evaluation killed in the second method's third batch.
"""

import os
import signal
import sys
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy

from attn.shared_eval.evaluation import Evaluator, Sample
from attn.shared_eval.metrics import NeedleAccuracy

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Numbers(LightningDataModule):
    """Eleven pairs of a vector and whether its sum is positive, in batches of three."""

    def __init__(self, samples=11, batch_size=3):
        super().__init__()
        self.batch_size = batch_size
        x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
        self.dataset = TensorDataset(x, (x.sum(1) > 0).long())

    def test_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size)


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 1)


def step(network, batch):
    x, labels = batch
    scores = network(x).squeeze(1) + 0.1 * torch.randn(len(x))  # as if answers were drawn
    return [
        Sample(
            {
                "accuracy": {"preds": score[None].sigmoid(), "target": label[None]},
                "needles": {"scores": [float((score > 0) == label)], "depths": [0.3]},
                "mean_score": {"value": score},
            },
            {"score": float(score)},
        )
        for score, label in zip(scores, labels, strict=True)
    ]


@contextmanager
def flipped(network):
    network.weight.data.neg_()
    try:
        yield
    finally:
        network.weight.data.neg_()


def metrics():
    return {"accuracy": BinaryAccuracy(), "needles": NeedleAccuracy(2), "mean_score": MeanMetric()}


METHODS = {"baseline": lambda network: __import__("contextlib").nullcontext(), "flipped": flipped}


def evaluator(step=step, **options):
    return Evaluator(model(), Numbers(), metrics(), step, trainer_options=QUIET | options)


if __name__ == "__main__":
    batches = []

    def deadly_step(network, batch):
        batches.append(batch)
        if len(batches) == 4 + 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(network, batch)

    evaluator(deadly_step).run(METHODS, sys.argv[1])
