"""A recipe small enough for tests of the engine: a BERT of width 16 that tells even from odd first tokens."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attn.shared_eval.models import Gate, Recipe, checkpoint


@dataclass(frozen=True, kw_only=True)
class Parity(Recipe):
    folder: Path
    name: str = "parity"
    package: str = "attn.shared_eval.models"
    steps: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-3
    low: float = 0.0
    scale: float = 1.0

    @property
    def checkpoint_folder(self):
        return self.folder / "shipped" / self.name

    def build(self):
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            model.classifier.weight.mul_(self.scale)
        return model

    def batch(self, indices):
        rows = [torch.randint(32, (8,), generator=torch.Generator().manual_seed(i)) for i in indices]
        input_ids = torch.stack(rows)
        return {"input_ids": input_ids, "labels": input_ids[:, 0] % 2}

    def loss(self, model, batch):
        return model(**batch).loss

    def mean_logit(self, model, samples):
        return model(self.batch(range(samples))["input_ids"]).logits.abs().mean()

    def gates(self):
        return [Gate(name="mean logit", measure=self.mean_logit, low=self.low, samples=16, quick_samples=8)]

    def narrow(self):
        return self


@pytest.fixture
def parity(tmp_path, monkeypatch):
    """Recipes by name, found as if registered; their checkpoints are shipped below a temporary folder."""
    recipes = {
        "parity": Parity(folder=tmp_path),
        "parity-variant": Parity(folder=tmp_path, name="parity-variant", parent="parity"),
    }
    monkeypatch.setattr(checkpoint, "find_recipe", recipes.__getitem__)
    return recipes
