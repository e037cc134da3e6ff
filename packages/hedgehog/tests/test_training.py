"""Distillation and finetuning: what learns, what stays, what is kept, and what a killed or a shared run ends in."""

import multiprocessing
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from transformers import GPT2Config, GPT2LMHeadModel

from attn.hedgehog import convert, hedgehog_layers
from attn.hedgehog.data import Batches, PackedRecallData, language_model_batch
from attn.hedgehog.metrics import RecallMetrics
from attn.hedgehog.recall import RecallModel
from attn.hedgehog.training import (
    AttentionDistiller,
    HedgehogFinetune,
    converted_causal_lm,
    load_maps,
    map_parameters,
    visible_tokens,
)

SIZES = {"pairs": 4, "queries": 4, "keys": 6, "values": 5}


def data(batches=8, batch_size=4, **options):
    examples = {"train_examples": batches * batch_size, "eval_examples": 20}
    return PackedRecallData(**SIZES, **{**examples, "batch_size": batch_size, **options})


def model(feature_map="hedgehog", layers=2, **options):
    torch.manual_seed(0)
    return RecallModel(keys=6, values=5, dim=8, heads=2, layers=layers, feature_map=feature_map, **options)


def teacher(**options):
    """A model whose softmax rows are far from uniform, so that there is something to learn."""
    network = model(**options)
    with torch.no_grad():
        for block in network.blocks:
            block.attention.query.weight.mul_(6)
            block.attention.key.weight.mul_(3)
    return network


def trainer(epochs=1, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": epochs, "num_sanity_val_steps": 0}
    return Trainer(**{**quiet, **chosen, **options})


def evaluate(module, batches):
    (figures,) = trainer().validate(module, batches, verbose=False)
    return figures


@pytest.mark.parametrize("objective", ["cross_entropy", "output_mse"])
def test_the_maps_learn_and_nothing_else_changes(objective):
    network = teacher()
    module = AttentionDistiller(network, objective=objective)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    untrained = evaluate(module, data())
    run = trainer(epochs=4)
    run.fit(module, data())
    assert run.callback_metrics["eval_loss"] < untrained["eval_loss"] - (0.05 if objective == "cross_entropy" else 1)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == ("mixer" not in name), name
    assert [layer.mode for layer in hedgehog_layers(network)] == ["linear", "linear"]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_every_layer_sees_the_activations_of_the_softmax_model():
    network = teacher()
    batch = next(iter(data().train_dataloader()))
    for layer in hedgehog_layers(network):
        layer.mode = "softmax"
    softmax = network(**batch).logits
    for layer in hedgehog_layers(network):
        layer.mode = "distill"
    assert torch.equal(network(**batch).logits, softmax)


def test_the_evaluation_is_the_mean_over_batches_and_layers():
    network = teacher()
    figures = evaluate(AttentionDistiller(network), data(eval_examples=10))
    losses, entropies = [], []
    for layer in hedgehog_layers(network):
        layer.mode = "distill"
    for batch in data(eval_examples=10, batch_size=10).val_dataloader():  # one batch instead of three uneven ones
        network(**batch)
        losses = [float(layer.distillation_loss.detach()) for layer in hedgehog_layers(network)]
        entropies = [float(layer.teacher_entropy) for layer in hedgehog_layers(network)]
    assert figures["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert figures["eval_kl"] == pytest.approx((sum(losses) - sum(entropies)) / 2, rel=1e-4)
    assert [figures[f"eval_loss/layer_{i}"] for i in range(2)] == pytest.approx(losses, rel=1e-5)


class Losses(Callback):
    """Keeps what every evaluation of a training gave."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        self.seen.append(float(trainer.callback_metrics["eval_loss"]))


def test_the_maps_of_the_best_evaluation_are_kept():
    losses = Losses()
    module = AttentionDistiller(teacher(), lr=2.0)  # too much, so that the last evaluation is not the best
    trainer(epochs=6, callbacks=[losses]).fit(module, data())
    assert losses.seen[-1] > min(losses.seen)
    assert evaluate(module, data())["eval_loss"] == pytest.approx(min(losses.seen), rel=1e-5)


def test_the_learning_rate_falls_on_a_plateau():
    module = AttentionDistiller(teacher(), lr=1.0, patience=0, factor=0.1, min_lr=0.05)
    run = trainer(epochs=8)
    run.fit(module, data(batches=2))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)


def test_the_defaults_of_distillation_are_those_of_the_reference():
    module = AttentionDistiller(teacher())
    run = trainer(limit_train_batches=1)
    run.fit(module, data())
    optimizer, scheduler = run.optimizers[0], run.lr_scheduler_configs[0].scheduler
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-2, 0.0)
    assert (scheduler.factor, scheduler.patience, scheduler.min_lrs) == (0.1, 10, [1e-5])


def test_finetuning_learns_the_task():
    module = HedgehogFinetune(model(), RecallMetrics(5), lr=1e-2, schedule="cosine")
    before = evaluate(module, data())
    run = trainer(epochs=6)
    run.fit(module, data(batches=20, batch_size=16))
    assert run.callback_metrics["eval_loss"] < before["eval_loss"] - 0.1
    assert run.callback_metrics["eval_accuracy"] > before["eval_accuracy"]
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_maps_have_a_parameter_group_without_weight_decay():
    network = model()
    module = HedgehogFinetune(network, lr=1e-3, map_lr=1e-2, weight_decay=0.3)
    trunk, maps = module.configure_optimizers().param_groups
    assert (trunk["lr"], trunk["weight_decay"], maps["lr"], maps["weight_decay"]) == (1e-3, 0.3, 1e-2, 0.0)
    assert {id(p) for p in maps["params"]} == {id(p) for p in map_parameters(network)}
    assert len(trunk["params"]) + len(maps["params"]) == len(list(network.parameters()))
    (only,) = HedgehogFinetune(model("softmax")).configure_optimizers().param_groups
    assert len(only["params"]) == len(list(model("softmax").parameters()))


def language_model(converted=True):
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    return convert(network) if converted else network


class Tokens(LightningDataModule):
    """Batches of random tokens for `language_model`."""

    def train_dataloader(self):
        ids = torch.randint(11, (32, 6), generator=torch.Generator().manual_seed(0))
        return Batches(ids, 4, collate=language_model_batch)

    val_dataloader = train_dataloader


@pytest.mark.parametrize(("converted", "train_maps"), [(True, True), (True, False), (False, True)])
def test_lora_trains_adapters_and_if_wanted_maps(converted, train_maps):
    module = HedgehogFinetune(language_model(converted), lora={"rank": 2}, train_maps=train_maps)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "lora" in name}
    assert len(adapters) == 2 * 2 * 2  # A and B of the fused and the output projection in two layers
    assert len(trained - adapters) == (4 if converted and train_maps else 0)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer().fit(module, Tokens())
    assert {name for name, value in module.named_parameters() if not torch.equal(value, before[name])} == trained


def test_a_converted_language_model_is_distilled_and_its_maps_go_into_the_second_stage(tmp_path):
    language_model(converted=False).save_pretrained(tmp_path / "model")
    module = AttentionDistiller(converted_causal_lm(str(tmp_path / "model")))
    trainer(epochs=2, enable_checkpointing=True, default_root_dir=tmp_path, log_every_n_steps=1).fit(module, Tokens())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    second = converted_causal_lm(str(tmp_path / "model"), maps=str(checkpoint))
    for (name, value), other in zip(module.model.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(value, other), name
    with pytest.raises(ValueError, match=r"checkpoint must hold the maps of the model, got \['.*\] missing and"):
        load_maps(model(), str(checkpoint))


def test_a_checkpoint_holds_what_is_trained(tmp_path):
    module = AttentionDistiller(teacher())
    run = trainer()
    run.fit(module, data())
    run.save_checkpoint(tmp_path / "maps.ckpt")
    saved = torch.load(tmp_path / "maps.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {name for name, _ in module.named_parameters() if "mixer" in name}
    other = HedgehogFinetune(model(), RecallMetrics(5))
    with pytest.raises(ValueError, match=r"checkpoint must hold the trained weights, got \['model.*missing"):
        trainer(max_steps=20).fit(other, data(), ckpt_path=tmp_path / "maps.ckpt", weights_only=True)


def fit_with_checkpoints(folder, *, kill_at=None, resume=None):
    """A distillation of 2 1/2 epochs, its state saved each step; the process is killed at a step if one is given."""

    class Kill(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            trainer.save_checkpoint(f"{folder}/step-{trainer.global_step}.ckpt")
            if trainer.global_step == kill_at:
                signal.raise_signal(signal.SIGKILL)

    seed_everything(1, verbose=False)
    module = AttentionDistiller(teacher(), patience=0)
    run = trainer(epochs=-1, max_steps=20, callbacks=[Kill()])
    run.fit(module, data(), ckpt_path=resume, weights_only=True if resume else None)
    return module


@pytest.mark.parametrize("kill_at", [5, 8, 11])
def test_a_killed_run_ends_in_the_same_weights(kill_at, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = fit_with_checkpoints(whole).state_dict()
    process = multiprocessing.get_context("fork").Process(
        target=fit_with_checkpoints, args=(killed,), kwargs={"kill_at": kill_at}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / f"step-{kill_at + 1}.ckpt").exists()
    resumed = fit_with_checkpoints(tmp_path, resume=killed / f"step-{kill_at}.ckpt").state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_two_processes_give_the_figures_of_one():
    figures = []
    for options in {}, {"strategy": "ddp_fork", "devices": 2}:
        module = HedgehogFinetune(model(), RecallMetrics(5), lr=1e-2)
        run = trainer(**options)
        run.fit(module, data(eval_examples=23))
        figures.append({name: float(value) for name, value in run.callback_metrics.items()})
    assert figures[1]["eval_loss"] == pytest.approx(figures[0]["eval_loss"], rel=1e-5)
    assert figures[1]["eval_accuracy"] == pytest.approx(figures[0]["eval_accuracy"], abs=1e-6)


def test_padding_does_not_count_as_tokens():
    assert visible_tokens({"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}) == 5
    assert visible_tokens({"key_ids": torch.ones(2, 3)}) == 6


def test_an_error_names_the_argument():
    with pytest.raises(ValueError, match="model must have converted attention layers, got a RecallModel without any"):
        AttentionDistiller(model("softmax"))
    with pytest.raises(ValueError, match="model must have feature maps with parameters to train, got maps without any"):
        AttentionDistiller(model("taylor"))
    with pytest.raises(TypeError, match=r"model must have self-attention of one of the classes .*, got a RecallModel"):
        HedgehogFinetune(model(), lora={})
