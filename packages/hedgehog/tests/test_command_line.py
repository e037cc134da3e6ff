"""The command line on the shipped configurations."""

from pathlib import Path

import pytest
import yaml

from attn.hedgehog.__main__ import main

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "--trainer.log_every_n_steps=1",
    *["--data.init_args.train_examples=128", "--data.init_args.eval_examples=64"],
    *["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"],
]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each command logs to a folder of its own
def test_recall_is_fitted_and_evaluated_from_its_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "recall.yaml"), *SMALL])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    (resolved,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(resolved.read_text())["model"]["init_args"]["model"]["init_args"]["feature_map"] == "hedgehog"
    for command in "validate", "test", "predict":
        main([command, "--config", str(CONFIGS / "recall.yaml"), *SMALL, "--ckpt_path", str(checkpoint)])
    assert "test_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_configurations_are_complete(config, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS / config), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]
