"""Saving and loading converted models, and LoRA."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from attn.hedgehog import convert, from_pretrained, hedgehog_layers, lora_config, revert, set_mode
from attn.hedgehog.architectures import self_attentions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "layers"), [("llama", [1]), ("gpt2", None), ("bert", [0]), ("vit", None)])
@torch.no_grad()
def test_a_converted_model_survives_saving(name, layers, dtype, tiny_model, batch_for, randomize, tmp_path):
    model = convert(tiny_model(name, dtype=dtype), layers=layers, feature_dim=5)
    randomize(model)
    batch = batch_for(model, padding="right")
    model.save_pretrained(tmp_path / "first")
    loaded = from_pretrained(tmp_path / "first")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    for (key, value), (other, expected) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert key == other
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    loaded.save_pretrained(tmp_path / "second")
    assert torch.equal(from_pretrained(tmp_path / "second")(**batch).logits, model(**batch).logits)
    assert [path.suffix for path in (tmp_path / "second").glob("*model*")] == [".safetensors"]


@pytest.mark.parametrize("feature_map", ["performer", "cosformer", "t2r", "taylor"])
@torch.no_grad()
def test_other_feature_maps_survive_saving(feature_map, tiny_model, batch_for, tmp_path):
    options = {"seed": 4} if feature_map == "performer" else {}
    model = convert(tiny_model("llama"), feature_map=feature_map, **options)
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(**batch_for(model)).logits, model(**batch_for(model)).logits)


def test_a_loaded_model_generates_and_reverts(tiny_model, batch_for, tmp_path):
    original = tiny_model("llama")
    ids = batch_for(original)["input_ids"]
    expected = original(ids).logits
    model = convert(original)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, attn_implementation="eager")
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))
    revert(loaded)
    assert loaded.config._attn_implementation == "eager"
    torch.testing.assert_close(loaded(ids).logits, expected)


def test_options_of_transformers_are_passed_on(tiny_model, tmp_path):
    convert(tiny_model("llama")).save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.dtype == torch.float16
    assert {p.dtype for layer in hedgehog_layers(loaded) for p in layer.parameters()} == {torch.float32}


def test_sharded_weights_are_loaded(tiny_model, batch_for, tmp_path):
    model = convert(tiny_model("llama"))
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(from_pretrained(tmp_path)(**batch_for(model)).logits, model(**batch_for(model)).logits)


@pytest.mark.parametrize(
    ("name", "auto"), [("llama", AutoModelForCausalLM), ("bert", AutoModelForSequenceClassification)]
)
def test_plain_loading_is_refused(name, auto, tiny_model, tmp_path):
    convert(tiny_model(name)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"load this model with attn\.hedgehog\.from_pretrained.*not supported"):
        auto.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"load this model with attn\.hedgehog\.from_pretrained.*not supported"):
        auto.from_config(AutoConfig.from_pretrained(tmp_path))


def test_whoever_names_a_softmax_implementation_gets_the_softmax_model(tiny_model, batch_for, tmp_path):
    model = convert(tiny_model("llama"))
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    set_mode(model, "softmax")
    assert torch.equal(plain(**batch_for(model)).logits, model(**batch_for(model)).logits)


def test_a_reverted_model_is_saved_as_an_ordinary_one(tiny_model, tmp_path):
    revert(convert(tiny_model("llama"))).save_pretrained(tmp_path)
    assert "hedgehog" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"name_or_path must hold a converted model, got .* without a record of it"):
        from_pretrained(tmp_path)


def test_missing_or_superfluous_weights_are_refused(tiny_model, tmp_path):
    convert(tiny_model("llama"), layers=[0]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "model.layers.0.self_attn.hedgehog.query_map.projection.weight"
    save_file(
        {name: value for name, value in weights.items() if name != key},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"missing_keys.*layers.0.self_attn.hedgehog.query_map.projection.weight"):
        from_pretrained(tmp_path)
    save_file(
        weights | {key.replace("layers.0", "layers.1"): weights[key].clone()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"unexpected_keys.*layers.1.self_attn.hedgehog.query_map.projection.weight"):
        from_pretrained(tmp_path)


# --- LoRA ---


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_lora_trains_projections_and_maps_and_merges(name, tiny_model, batch_for, tmp_path):
    base = tiny_model(name)
    model = convert(copy.deepcopy(base))
    batch = batch_for(model)
    before = model(**batch).logits.detach()
    adapted = peft.get_peft_model(model, lora_config(model))
    assert torch.equal(adapted(**batch).logits, before)
    adapters = {
        key.split(".lora_A")[0].split("model.", 2)[-1] for key, p in adapted.named_parameters() if "lora_A" in key
    }
    assert len(adapters) == (4 if name == "gpt2" else 8)  # gpt2 fuses queries, keys and values
    trained = [key for key, p in adapted.named_parameters() if p.requires_grad]
    assert all(
        "lora_" in key or "hedgehog.query_map.modules" in key or "hedgehog.key_map.modules" in key for key in trained
    )
    assert sum("hedgehog" in key for key in trained) == 4
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch).logits.square().mean().backward()
        optimizer.step()
    after = adapted(**batch).logits.detach()
    assert (after - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(convert(copy.deepcopy(base)), tmp_path / "adapter")
    assert torch.equal(again(**batch).logits, after)
    merged = adapted.merge_and_unload()
    assert type(merged) is type(base)
    torch.testing.assert_close(merged(**batch).logits, after, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(from_pretrained(tmp_path / "merged")(**batch).logits, merged(**batch).logits)


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "bert", "roberta", "vit", "deit"]
)
def test_lora_names_projections_that_exist(name, tiny_model):
    model = tiny_model(name)
    targets = lora_config(model).target_modules
    modules = dict(model.named_modules())
    assert len(targets) == len(self_attentions(model)) * (2 if name == "gpt2" else 4)
    assert all(type(modules[target]).__name__ in ("Linear", "Conv1D") for target in targets)


def test_lora_options_and_refusal(tiny_model):
    config = lora_config(tiny_model("bert"), rank=4, alpha=2, dropout=0.1, task_type="SEQ_CLS", modules_to_save=None)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.modules_to_save) == (4, 2, 0.1, None)
    with pytest.raises(TypeError, match=r"model must have self-attention of one of the classes .*, got a Linear"):
        lora_config(torch.nn.Linear(2, 2))
