"""The three-line use: convert, distill, use."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from attn.hedgehog import convert, distill, hedgehog_layers

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture
def tokenizer():
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i + 2 for i in range(30)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(5, 30, (24,), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in torch.randint(0, 30, (length,), generator=generator)) for length in lengths]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_three_lines(name, tiny_model, texts, tokenizer, batch_for):
    model = tiny_model(name)
    softmax = model(**batch_for(model)).logits.detach()
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    convert(model)
    undistilled = model(**batch_for(model)).logits.detach()
    losses = distill(model, texts, tokenizer, validation=texts[:8], epochs=15, context=24, **QUIET)
    distilled = model(**batch_for(model)).logits.detach()

    assert set(losses) == {"train_loss", "eval_loss", "eval_kl"}
    assert (distilled - softmax).norm() < (undistilled - softmax).norm()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if "hedgehog" not in key)
    assert all(layer.mode == "linear" and layer.distillation_loss is None for layer in hedgehog_layers(model))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    if name != "bert":
        assert model.generate(batch_for(model)["input_ids"], max_new_tokens=3).shape == (2, 12)


def test_training_lowers_the_evaluated_divergence(tiny_model, texts, tokenizer):
    kls = [
        distill(
            convert(tiny_model("llama")),
            texts,
            tokenizer,
            validation=texts,
            steps=steps,
            epochs=20,
            context=24,
            **QUIET,
        )["eval_kl"]
        for steps in (1, 40)
    ]
    assert kls[1] < kls[0]


def test_batches_are_taken_as_they_come(tiny_model, batch_for):
    model = convert(tiny_model("vit"))
    before = [parameter.detach().clone() for layer in hedgehog_layers(model) for parameter in layer.parameters()]
    losses = distill(model, [batch_for(model)] * 3, steps=2, objective="output_mse", **QUIET)
    after = [parameter for layer in hedgehog_layers(model) for parameter in layer.parameters()]
    assert list(losses) == ["train_loss"]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_same_seed_gives_the_same_maps(tiny_model, texts, tokenizer):
    states = []
    for seed in (0, 0, 1):
        model = convert(tiny_model("bert"))
        distill(model, texts, tokenizer, steps=4, seed=seed, **QUIET)
        states.append(hedgehog_layers(model)[0].query_map.projection.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_what_cannot_be_distilled_is_refused(tiny_model, texts, tokenizer):
    with pytest.raises(ValueError, match="model must have converted attention layers, got a LlamaForCausalLM"):
        distill(tiny_model("llama"), texts, tokenizer)
    with pytest.raises(ValueError, match="model must have feature maps with parameters to train"):
        distill(convert(tiny_model("llama"), feature_map="elu"), texts, tokenizer)
    model = convert(tiny_model("llama"))
    with pytest.raises(TypeError, match="tokenizer must be given with texts, got None"):
        distill(model, texts)
    with pytest.raises(ValueError, match="context must lie in 2 to 2"):
        distill(model, ["w1 w2"], tokenizer)
