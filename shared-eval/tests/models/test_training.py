"""The engine: what it optimizes and how, kill and resume, gates that bar the way, cards that tell the truth."""

import importlib.util
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from attn.shared_eval.models import checkpoint, find_recipe, load_mini, registered_recipes
from attn.shared_eval.models.card import source_hash
from attn.shared_eval.models.gates import evaluate
from attn.shared_eval.models.recipe import seeded_build
from attn.shared_eval.models.training import (
    GateError,
    RecipeModule,
    accept,
    decay_groups,
    fit,
    problems,
    train,
    warmup_cosine,
)

QUIET = {"enable_progress_bar": False, "logger": False}
SCRIPT = Path(__file__).with_name("killed_runs.py")


def quietly(recipe, folder, **options):
    return fit(recipe, folder, trainer_options=QUIET | options.pop("trainer_options", {}), **options)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def differ(left, right):
    return any(not torch.equal(left[name], right[name]) for name in left)


# Smoke training of every registered recipe


@pytest.mark.parametrize("name", registered_recipes())
def test_three_steps_on_one_batch_lower_its_loss(name, tmp_path, monkeypatch):
    recipe = find_recipe(name).narrow()
    batch = recipe.batch(range(recipe.batch_size))
    monkeypatch.setattr(type(recipe), "batch", lambda self, indices: batch)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        before = recipe.loss(seeded_build(recipe).eval(), batch)
        model = quietly(replace(recipe, steps=3), tmp_path)
        torch.manual_seed(0)
        after = recipe.loss(model, batch)
    assert torch.isfinite(after)
    assert after < before


RUNS = [*registered_recipes(), f"{registered_recipes()[0]}:ema"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder of smoke trainings of five steps, saved every second, killed in the fourth; and the recipes' factory."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, SCRIPT, folder, *RUNS], check=True)
    spec = importlib.util.spec_from_file_location("killed_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return folder, module.smoke_recipe


@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_resumes_to_the_same_weights(run, killed, tmp_path, monkeypatch):
    folder, smoke_recipe = killed
    recipe = smoke_recipe(run)
    left = torch.load(folder / run / "last.ckpt", weights_only=True)
    assert left["global_step"] == 2
    uninterrupted = quietly(recipe, tmp_path)
    drawn = []
    real = type(recipe).batch
    monkeypatch.setattr(type(recipe), "batch", lambda self, i: drawn.append(i[0] // recipe.batch_size) or real(self, i))
    resumed = quietly(recipe, folder / run, save_every=2)
    assert_same(state(resumed), state(uninterrupted))
    assert differ(state(resumed), {k.removeprefix("model."): v for k, v in left["state_dict"].items()})
    assert drawn[:3] == [2, 3, 4]
    assert sorted(path.name for path in (folder / run).iterdir()) == ["last.ckpt", "run.json"]


# The engine


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(parity, tmp_path):
    recipe = parity["parity"]
    first, second, other = (
        state(quietly(replace(recipe, seed=seed), tmp_path / str(run))) for run, seed in enumerate((0, 0, 1))
    )
    assert_same(first, second)
    assert differ(first, other)


def test_an_average_is_shipped_where_the_recipe_asks_for_it(parity, tmp_path):
    plain, averaged = (quietly(replace(parity["parity"], ema=ema), tmp_path / str(ema)) for ema in (None, 0.5))
    assert differ(state(plain), state(averaged))


def test_dropout_depends_on_the_batch_and_not_on_the_generator(parity):
    module = RecipeModule(parity["parity"])
    draws = []
    for number in (5, 6, 5):
        torch.rand(number)
        module.on_train_batch_start({}, number)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_workers_do_not_change_the_weights(parity, tmp_path):
    recipe = replace(parity["parity"], steps=4)
    alone, together = (quietly(recipe, tmp_path / str(n), num_workers=n) for n in (0, 2))
    assert_same(state(alone), state(together))


def test_batches_follow_the_index_without_gap_or_repeat(parity, tmp_path, monkeypatch):
    drawn = []
    real = type(parity["parity"]).batch
    monkeypatch.setattr(type(parity["parity"]), "batch", lambda self, i: drawn.append(list(i)) or real(self, i))
    quietly(parity["parity"], tmp_path, batch_scale=2)
    assert drawn[:2] == [list(range(16)), list(range(16, 32))]


def test_fit_leaves_the_global_switches_alone(parity, tmp_path):
    before = torch.get_rng_state()
    quietly(parity["parity"], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_trainer_options_replace_the_recipe_s(parity, tmp_path):
    quietly(parity["parity"], tmp_path, trainer_options={"max_steps": 3, "accumulate_grad_batches": 2})
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_finished_run_is_not_trained_again(parity, tmp_path):
    first = quietly(parity["parity"], tmp_path)
    stamp = (tmp_path / "last.ckpt").stat().st_mtime_ns
    assert_same(state(first), state(quietly(parity["parity"], tmp_path)))
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("changed", "options", "named"),
    [
        ({"learning_rate": 1.0}, {}, "learning_rate"),
        ({"seed": 1, "batch_size": 4}, {}, "batch_size, seed"),
        ({}, {"batch_scale": 2}, "batch_scale"),
        ({}, {"trainer_options": {"max_steps": 3}}, "max_steps"),
    ],
)
def test_another_run_s_folder_is_refused(parity, tmp_path, changed, options, named):
    quietly(parity["parity"], tmp_path)
    with pytest.raises(ValueError, match=f"must hold a run of the same recipe .* differs in {named}: remove it"):
        quietly(replace(parity["parity"], **changed), tmp_path, **options)


def test_warmup_is_linear_and_the_rest_a_cosine():
    shares = [warmup_cosine(step, 100, 0.05, 0.05) for step in range(101)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == pytest.approx(1.0)
    assert shares[5 + 19] == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 5)) / 2)
    assert shares[100] == pytest.approx(0.05)
    assert warmup_cosine(0, 1, 0.05, 0.05) == 1.0


def test_only_matrices_decay():
    tied = nn.Embedding(4, 3)
    head = nn.Linear(3, 4)
    head.weight = tied.weight
    frozen = nn.Linear(2, 2).requires_grad_(False)
    model = nn.ModuleList(
        [tied, head, nn.LayerNorm(3), nn.Conv2d(1, 1, 2), nn.GroupNorm(1, 1), nn.Linear(3, 3), frozen]
    )
    decayed, others = decay_groups(model)
    assert [p.shape for p in decayed] == [model[3].weight.shape, model[5].weight.shape]
    assert {id(p) for p in decayed + others} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(decayed + others) == len({id(p) for p in decayed + others})


# Gates and cards


def trained(recipe, folder):
    return train(recipe, folder, trainer_options=QUIET)


def test_train_measures_the_rounded_weights_and_what_rounding_changed(parity, tmp_path):
    card = trained(parity["parity"], tmp_path / "run")
    model = checkpoint.load(tmp_path / "run" / "export").model
    value, change = card.figures
    assert value.name == "mean logit"
    with torch.no_grad():
        assert value.value == parity["parity"].mean_logit(model, 16).item()
        exact = parity["parity"].mean_logit(quietly(parity["parity"], tmp_path / "run"), 16).item()
    assert change.name == "mean logit, change by rounding"
    assert change.value == abs(value.value - exact) > 0
    assert (change.high, card.steps, card.batch_size) == (0.001, 2, 8)


def test_accept_ships_what_passes(parity, tmp_path):
    trained(parity["parity"], tmp_path / "run")
    accept(parity["parity"], tmp_path / "run")
    assert_same(state(load_mini("parity").model), state(checkpoint.load(tmp_path / "run" / "export").model))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_accept_refuses_a_failing_gate_and_leaves_the_shipped_file(parity, tmp_path):
    trained(parity["parity"], tmp_path / "good")
    accept(parity["parity"], tmp_path / "good")
    before = contents(parity["parity"].checkpoint_folder)
    strict = replace(parity["parity"], low=1e3, seed=1)
    trained(strict, tmp_path / "bad")
    with pytest.raises(GateError, match=r"parity is not accepted: mean logit 0\.\d+, must be >= 1000"):
        accept(strict, tmp_path / "bad")
    assert contents(parity["parity"].checkpoint_folder) == before


def test_accept_refuses_figures_that_rounding_changes(parity, tmp_path):
    large = replace(parity["parity"], scale=1e4)
    trained(large, tmp_path)
    with pytest.raises(GateError, match=r"mean logit, change by rounding .* must be <= 0\.001"):
        accept(large, tmp_path)


def test_accept_refuses_a_recipe_that_has_changed(parity, tmp_path, monkeypatch):
    trained(parity["parity"], tmp_path)
    monkeypatch.setattr("attn.shared_eval.models.training.source_hash", lambda cls: "0" * 64)
    with pytest.raises(GateError, match=r"its recipe has changed since .*export was trained"):
        accept(parity["parity"], tmp_path)


def shipped(recipe, folder):
    trained(recipe, folder)
    accept(recipe, folder)
    return recipe


def test_a_sound_checkpoint_has_no_problems(parity, tmp_path):
    assert problems(shipped(parity["parity"], tmp_path / "run")) == []


def test_a_stale_card_is_reported(parity, tmp_path, monkeypatch):
    recipe = shipped(parity["parity"], tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("attn.shared_eval.models.training.source_hash", lambda cls: "0" * 64)
        assert [text.split(":")[0] for text in problems(recipe)] == ["stale card"]
    real = type(recipe).batch
    monkeypatch.setattr(type(recipe), "batch", lambda self, i: {k: v ^ 1 for k, v in real(self, i).items()})
    assert problems(recipe) == ["stale card: the training data have changed since the training"]


def test_a_quick_gate_that_fails_and_a_damaged_file_are_reported(parity, tmp_path):
    recipe = shipped(parity["parity"], tmp_path / "run")
    assert problems(replace(recipe, low=1e3))[0].startswith("quick gate mean logit: 0.")
    (recipe.checkpoint_folder / "config.json").write_text("{}")
    assert "config.json is truncated" in problems(recipe)[0]


def module_with(source, tmp_path, name):
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].A


def test_the_source_hash_sees_code_and_not_comments_docstrings_or_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    plain = 'class A:\n    """Doc."""\n    x = 1\n    def f(self):\n        """Doc."""\n        return "text"\n'
    sources = {
        "one": plain,
        "two": '"""Module."""\n\n'
        + plain.replace('    """Doc."""\n', "").replace("1", "1  # why").replace('"text"', '(\n"text")'),
        "three": plain.replace("1", "2"),
        "four": plain.replace("text", "texT"),
    }
    one, two, three, four = (source_hash(module_with(text, tmp_path, name)) for name, text in sources.items())
    assert one == two
    assert len({one, three, four}) == 3


# What is shipped

SHIPPED = [name for name in registered_recipes() if (find_recipe(name).checkpoint_folder / "manifest.json").exists()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_sound(name):
    assert problems(find_recipe(name)) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_s_gates_passed_in_full_and_its_file_is_small(name):
    card = load_mini(name).card
    assert [figure.name for figure in card.figures if not figure.passed] == []
    recorded = {figure.name: (figure.low, figure.high) for figure in card.figures}
    assert all(recorded[gate.name] == (gate.low, gate.high) for gate in find_recipe(name).gates())
    for path in find_recipe(name).checkpoint_folder.rglob("*.safetensors"):
        assert path.stat().st_size < 16e6


@pytest.mark.parametrize("name", SHIPPED)
def test_random_weights_fail_the_gates(name):
    recipe = find_recipe(name)
    untrained = load_mini(name, random=True)
    assert not all(figure.passed for figure in evaluate(recipe.gates(), untrained.model, seed=0, quick=True))
