"""The command line trains, and the data module refuses a file that is too short."""

import sys

import pytest
import torch

from attn.icl_regression.__main__ import main
from attn.icl_regression.training import ByteWindows, LanguageModelTraining


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"all happy families are alike. " * 40)
    return path


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_command_line_fits(text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["attn"])
    steps = []
    monkeypatch.setattr(LanguageModelTraining, "on_train_batch_end", lambda self, *_: steps.append(self.global_step))
    small = [f"--data.path={text}", "--data.tokens=32", "--model.hidden_size=16", "--trainer.max_epochs=2"]
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    main(["fit", *small, *quiet, f"--trainer.default_root_dir={text.parent}"])
    assert steps == [1, 2, 3, 4]


def test_training_lowers_the_loss(text):
    torch.manual_seed(0)
    training = LanguageModelTraining(hidden_size=16, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    data = ByteWindows(text, tokens=32)
    data.setup("fit")
    optimizer, windows = training.configure_optimizers(), data.train.tensors[0]
    losses = []
    for _ in range(20):
        losses.append(training.loss(windows))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(5.55, abs=0.3)  # ln 256
    assert losses[-1] < 0.8 * losses[0]


def test_a_short_file_is_refused(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"path must hold at least 2560 bytes, got 5 in .*short"):
        ByteWindows(path).setup("fit")
