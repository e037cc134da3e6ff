"""The checkpoint format: exact to the rounding, replaced whole, and nothing used that its hash does not vouch for."""

import contextlib
import json
import pickle
import sys
import types
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

from attn.shared_eval.models import CheckpointError, checkpoint, load_mini
from attn.shared_eval.models.recipe import seeded_build
from attn.shared_eval.models.training import measured_card


def ship(recipe, change=None):
    model = seeded_build(recipe)
    if change:
        with torch.no_grad():
            change(model)
    card = measured_card(recipe, model, steps=0, batch_size=1, device="cpu")
    checkpoint.save(recipe.checkpoint_folder, model, card)
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_loaded_model_has_the_rounded_weights_in_float32(parity):
    exact = state(seeded_build(parity["parity"]))
    ship(parity["parity"])
    loaded = load_mini("parity").model
    assert type(loaded).__name__ == "BertForSequenceClassification"
    assert not loaded.training
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert_same(state(loaded), {name: tensor.half().float() for name, tensor in exact.items()})


def test_the_folder_loads_by_the_real_class(parity):
    from transformers import BertForSequenceClassification

    ship(parity["parity"])
    real = BertForSequenceClassification.from_pretrained(
        parity["parity"].checkpoint_folder, dtype=torch.float32, local_files_only=True
    )
    assert_same(state(real), state(load_mini("parity").model))


def test_random_weights_have_the_same_shapes_and_are_the_same_every_time(parity):
    ship(parity["parity"], lambda model: model.bert.embeddings.word_embeddings.weight.add_(1))
    trained, first, second = (state(load_mini("parity", random=random).model) for random in (False, True, True))
    assert_same(first, second)
    assert {name: tensor.shape for name, tensor in first.items()} == {n: t.shape for n, t in trained.items()}
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], trained[name])


def test_loading_leaves_the_global_generator_alone(parity):
    ship(parity["parity"])
    before = torch.get_rng_state()
    load_mini("parity", random=True)
    assert torch.equal(torch.get_rng_state(), before)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


FILES = ["model.safetensors", "config.json", "card.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "{} is altered: its SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "{} is truncated: "),
        (lambda path: path.write_bytes(b""), "{} is truncated: 0 of"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "{} is altered"),
        (lambda path: path.write_bytes(pickle.dumps(list(range(9999)))), "{} is altered"),
        (lambda path: path.unlink(), "{} is missing, but manifest.json lists it"),
        (lambda path: path.rename(path.with_name("other")), "other is not listed in manifest.json"),
    ],
)
@pytest.mark.parametrize("random", [False, True])
def test_a_damaged_file_is_refused_by_name(parity, name, damage, message, random):
    ship(parity["parity"])
    damage(parity["parity"].checkpoint_folder / name)
    with pytest.raises(CheckpointError, match=message.format(name)):
        load_mini("parity", random=random)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(parity, name):
    ship(parity["parity"])
    manifest = parity["parity"].checkpoint_folder / "manifest.json"
    entries = json.loads(manifest.read_text())
    del entries[name]
    manifest.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=f"{name} is not listed in manifest.json"):
        load_mini("parity")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": {"bytes": 1}}', b"\xff"])
def test_a_broken_manifest_is_refused_by_name(parity, content):
    ship(parity["parity"])
    (parity["parity"].checkpoint_folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json (is not a manifest|must)"):
        load_mini("parity")


def test_a_model_that_is_not_shipped_is_refused_by_name(parity):
    with pytest.raises(CheckpointError, match=r"parity.manifest.json is missing: there is no checkpoint"):
        load_mini("parity")


def test_a_checkpoint_under_another_name_is_refused(parity):
    ship(parity["parity"])
    parity["parity"].checkpoint_folder.rename(parity["parity-variant"].checkpoint_folder)
    with pytest.raises(CheckpointError, match="parity-variant holds another model, parity"):
        load_mini("parity-variant")


def relist(folder, name, content):
    (folder / name).write_bytes(content)
    entries = json.loads((folder / "manifest.json").read_text())
    entries[name] = checkpoint._entry(content)
    (folder / "manifest.json").write_text(json.dumps(entries))


def test_a_checkpoint_whose_tensors_are_not_those_of_its_configuration_is_refused(parity):
    ship(parity["parity"])
    folder = parity["parity"].checkpoint_folder
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    relist(folder, "model.safetensors", safetensors.torch.save(tensors | {"classifier.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"classifier.bias must have the shape .*\(2,\), got \(3,\)"):
        load_mini("parity")
    del tensors["classifier.bias"]
    relist(folder, "model.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match=r"does not hold the tensors of its configuration: classifier.bias"):
        load_mini("parity")


def test_a_class_of_strangers_is_not_built(parity):
    ship(parity["parity"])
    relist(
        parity["parity"].checkpoint_folder, "config.json", b'{"class": "os:system", "arguments": {"command": "false"}}'
    )
    with pytest.raises(CheckpointError, match="class must be one of this project, got 'os:system'"):
        load_mini("parity")


def test_a_variant_stores_what_differs_from_its_parent_and_loads_both(parity):
    ship(parity["parity"])
    trained = ship(parity["parity-variant"], lambda model: model.classifier.bias.add_(1))
    folder = parity["parity-variant"].checkpoint_folder
    assert list(safetensors.torch.load((folder / "model.safetensors").read_bytes())) == ["classifier.bias"]
    assert_same(state(load_mini("parity-variant").model), state(trained))


def test_a_variant_refuses_another_parent_by_name(parity):
    ship(parity["parity"])
    ship(parity["parity-variant"], lambda model: model.classifier.bias.add_(1))
    ship(replace(parity["parity"], seed=1))
    with pytest.raises(CheckpointError, match=r"parity.model.safetensors is not the parent that the variant was made"):
        load_mini("parity-variant")


def test_a_variant_refuses_a_damaged_parent_by_name(parity):
    ship(parity["parity"])
    ship(parity["parity-variant"])
    flip_a_bit(parity["parity"].checkpoint_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"parity.model.safetensors is altered"):
        load_mini("parity-variant")


@pytest.mark.parametrize("value", [1e4, -1e4, float("inf"), float("nan")])
def test_weights_that_float16_cannot_hold_are_refused_by_name(parity, value):
    with pytest.raises(ValueError, match=r"classifier.bias must stay below 10000 to be stored in float16, got"):
        ship(parity["parity"], lambda model: model.classifier.bias.fill_(value))
    assert not parity["parity"].checkpoint_folder.exists()


def test_a_model_of_several_parts_is_stored_part_by_part(parity):
    recipe = parity["parity"]
    card = measured_card(recipe, seeded_build(recipe), steps=0, batch_size=1, device="cpu")
    model = nn.ModuleDict({"text": seeded_build(recipe), "other": seeded_build(replace(recipe, seed=1))})
    checkpoint.round_weights(model)
    checkpoint.save(recipe.checkpoint_folder, model, card)
    assert sorted(path.name for path in recipe.checkpoint_folder.iterdir()) == [
        "card.json",
        "manifest.json",
        "other",
        "text",
    ]
    loaded = load_mini("parity").model
    assert isinstance(loaded, nn.ModuleDict)
    assert_same(state(loaded), state(model))


def test_tied_and_integer_tensors_keep_their_values(parity):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.register_buffer("count", torch.tensor(123456789))
    assert "lm_head.weight" not in checkpoint.unique_tensors(model)
    stored = checkpoint.half_precision(model)
    assert stored["count"].item() == 123456789


def test_an_unknown_class_is_refused(parity):
    recipe = parity["parity"]
    card = measured_card(recipe, seeded_build(recipe), steps=0, batch_size=1, device="cpu")
    with pytest.raises(TypeError, match=r"every part of a model must be .* got torch.nn.modules.linear.Linear"):
        checkpoint.save(recipe.checkpoint_folder, nn.Linear(1, 1), card)


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_a_write_that_dies_leaves_a_whole_checkpoint(parity, monkeypatch, step):
    ship(parity["parity"])
    old = state(load_mini("parity").model)
    calls = 0
    owner, real = {
        "rename": (checkpoint.Path, checkpoint.Path.rename),
        "rmtree": (checkpoint.shutil, checkpoint.shutil.rmtree),
    }[step]

    def dying(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    for stop in (1, 2, 3):
        calls = 0
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, dying)
            with contextlib.suppress(KeyboardInterrupt):
                ship(replace(parity["parity"], seed=stop))
        whole = [
            path for path in parity["parity"].checkpoint_folder.parent.iterdir() if (path / "manifest.json").exists()
        ]
        assert whole
        for folder in whole:
            checkpoint.load(folder)
        ship(parity["parity"])
        assert_same(state(load_mini("parity").model), old)
        assert [path.name for path in parity["parity"].checkpoint_folder.parent.iterdir()] == ["parity"]


class Part(nn.Module):
    """What a package of this project may ship: the attribute ``config`` holds the arguments that build it."""

    def __init__(self, width, bias=True):
        super().__init__()
        self.config = {"width": width, "bias": bias}
        self.linear = nn.Linear(width, 2, bias=bias)


def test_diffusers_and_own_classes_are_parts_too(parity, monkeypatch):
    import diffusers

    planted = types.ModuleType("attn.planted")
    planted.Part = Part
    monkeypatch.setitem(sys.modules, "attn.planted", planted)
    monkeypatch.setattr(Part, "__module__", "attn.planted")
    recipe = parity["parity"]
    card = measured_card(recipe, seeded_build(recipe), steps=0, batch_size=1, device="cpu")
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, sample_size=8)
    model = nn.ModuleDict({"vae": vae, "own": Part(3, bias=False)})
    checkpoint.round_weights(model)
    checkpoint.save(recipe.checkpoint_folder, model, card)
    loaded = load_mini("parity").model
    assert [type(part) for part in loaded.values()] == [Part, diffusers.AutoencoderKL]
    assert_same(state(loaded["vae"]), state(vae))
    assert_same(state(loaded["own"]), state(model["own"]))
    real = diffusers.AutoencoderKL.from_pretrained(recipe.checkpoint_folder / "vae", local_files_only=True)
    assert_same(state(real.float()), state(vae))


def test_the_tokenizer_is_stored_with_the_model(parity):
    from attn.shared_eval.data import shapes_tokenizer

    recipe = parity["parity"]
    model = seeded_build(recipe)
    card = measured_card(recipe, model, steps=0, batch_size=1, device="cpu")
    checkpoint.save(recipe.checkpoint_folder, model, card, shapes_tokenizer())
    text = "Not good at all , the red circle ? A <image>\n7"
    loaded = load_mini("parity").tokenizer
    assert loaded(text).input_ids == shapes_tokenizer()(text).input_ids
    assert loaded.special_tokens_map == shapes_tokenizer().special_tokens_map
    flip_a_bit(recipe.checkpoint_folder / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is altered"):
        load_mini("parity")
