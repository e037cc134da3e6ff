"""The command line, and the registry and the table of users behind it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import torch

from attn.shared_eval.models import __main__ as commands
from attn.shared_eval.models import find_recipe, load_mini, registered_recipes
from attn.shared_eval.models.users import users, variants

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(parity, tmp_path, monkeypatch, capsys):
    """Runs a command on the test recipes, each run kept below a temporary folder; returns exit code and output."""
    monkeypatch.setattr(commands, "find_recipe", parity.__getitem__)
    monkeypatch.setattr(commands, "registered_recipes", lambda: ["parity"])
    monkeypatch.setattr(commands, "users", lambda name: ["hedgehog"])
    monkeypatch.setattr(commands, "variants", lambda name: ["parity-variant"])
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()

    def command(*args):
        if args[0] == "train":
            args = (*args, "--folder", str(tmp_path / "build"), "--trainer.enable_progress_bar", "false")
        code = commands.main(list(args))
        return code, capsys.readouterr().out

    yield command
    torch.set_num_threads(threads)


def test_train_accept_check_and_list(run, tmp_path):
    assert run("check") == (0, "parity: not shipped\n")
    assert "not shipped" in run("list")[1]

    code, output = run("train", "parity")
    assert code == 0
    assert re.search(r"mean logit +│ 0\.\d+ +│ >= 0 +│ 16 +│ passes", output)
    assert not (tmp_path / "shipped").exists()

    code, output = run("train", "parity", "--accept")
    assert code == 0
    assert "measure the pins again: nox -s reproduce-hedgehog -- --repin" in output
    assert "train the variant again: nox -s train_mini -- parity-variant --accept" in output
    assert load_mini("parity").card.steps == 2

    assert run("check") == (0, "parity: sound\n")
    assert re.search(r"parity +│ .*Parity +│ [\d,]+ +│ mean logit 0\.\d+", run("list")[1])


def test_trainer_options_reach_the_trainer(run):
    code, output = run("train", "parity", "--trainer.max_steps", "3", "--data.batch_scale", "2")
    assert code == 0
    assert "3 steps of 16 on cpu" in output


def test_a_failing_gate_gives_exit_code_1_and_ships_nothing(run, parity, tmp_path):
    parity["parity"] = type(parity["parity"])(folder=tmp_path, low=1e3)
    for accept in ((), ("--accept",)):
        code, output = run("train", "parity", *accept)
        assert code == 1
        assert re.search(r"mean logit +│ 0\.\d+ +│ >= 1000 +│ 16 +│ fails", output)
    assert "parity is not accepted: mean logit 0." in output
    assert not (tmp_path / "shipped").exists()


def test_a_damaged_file_fails_the_check_by_name(run, parity):
    run("train", "parity", "--accept")
    (parity["parity"].checkpoint_folder / "model.safetensors").write_bytes(b"")
    code, output = run("check")
    assert code == 1
    assert "model.safetensors is truncated: 0 of" in output


def test_another_run_in_the_folder_gives_exit_code_2(run):
    run("train", "parity")
    code, output = run("train", "parity", "--trainer.max_steps", "3")
    assert code == 2
    assert "differs in max_steps: remove it to start afresh" in output


def test_an_unknown_model_gives_exit_code_2(capsys):
    assert commands.main(["train", "mini-beret"]) == 2
    assert "name must be one of" in capsys.readouterr().out
    assert "mini-bert" in ", ".join(registered_recipes())


def test_a_recipe_under_another_name_is_refused(monkeypatch):
    source = "attn.shared_eval.models.recipes.mini_bert:MiniBert"
    point = importlib.metadata.EntryPoint("mini-beret", source, "attn.recipes")
    monkeypatch.setattr("attn.shared_eval.models.recipe.entry_points", lambda **_: [point])
    with pytest.raises(ValueError, match="recipe registered as 'mini-beret' must have that name, got 'mini-bert'"):
        find_recipe("mini-beret")


def test_every_package_that_loads_a_model_is_listed_as_its_user():
    loaded = {
        (name, path.relative_to(ROOT / "packages").parts[0])
        for path in (ROOT / "packages").glob("*/src/**/*.py")
        for name in re.findall(r"load_mini\(\s*[\"']([\w-]+)", path.read_text(encoding="utf-8"))
    }
    assert {(name, paper) for name, paper in loaded if paper not in users(name)} == set()


def test_the_table_of_users_names_registered_models():
    table = tomllib.loads((ROOT / "shared-eval/src/attn/shared_eval/models/users.toml").read_text(encoding="utf-8"))
    assert set(table) <= set(registered_recipes())


def test_users_and_variants_of_a_model():
    assert users("mini-bert-noisy") == ["saliency-verbalization"]
    owners = {find_recipe(name).package: users(name) for name in registered_recipes()}
    assert owners.get("attn.hedgehog", ["hedgehog"]) == ["hedgehog"]
    assert variants("mini-bert") == []
