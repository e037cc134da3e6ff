"""Conversion of real transformers classes: against the equations as loops in float64, and what must not change."""

import copy
import math

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig

from attn.hedgehog import convert, hedgehog_layers, revert, set_mode
from attn.hedgehog.architectures import self_attentions

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"]
ENCODERS = ["bert", "roberta", "vit", "deit"]
ALL = DECODERS + ENCODERS


# --- the equations, as loops over a whole attention module ---


def projections(name, attention, hidden):
    """Queries, keys and values [batch, heads, tokens, head_dim] before rotation, and the module's output map."""
    split = lambda x, heads: x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # noqa: E731
    if name == "gpt2":
        query, key, value = (hidden @ attention.c_attn.weight + attention.c_attn.bias).chunk(3, dim=-1)
        output = lambda x: x @ attention.c_proj.weight + attention.c_proj.bias  # noqa: E731
        return split(query, 4), split(key, 4), split(value, 4), output
    if name == "bert":
        query, key, value = (
            hidden @ layer.weight.T + layer.bias for layer in (attention.query, attention.key, attention.value)
        )
        return split(query, 4), split(key, 4), split(value, 4), lambda x: x
    query, key, value = (hidden @ layer.weight.T for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    return split(query, 4), split(key, 2), split(value, 2), lambda x: x @ attention.o_proj.weight.T


def rotate(x, theta=10000.0):
    """Rotary embedding: pairs (c, c + half) turn by position * theta^(-2c / head_dim)."""
    half = x.shape[-1] // 2
    turned = x.clone()
    for position in range(x.shape[-2]):
        for c in range(half):
            # transformers computes frequencies, angles and their cosine in float32
            frequency = 1.0 / theta ** torch.tensor(2 * c / x.shape[-1], dtype=torch.float32)
            angle = position * frequency
            a, b = x[..., position, c], x[..., position, c + half]
            turned[..., position, c] = a * angle.cos().double() - b * angle.sin().double()
            turned[..., position, c + half] = b * angle.cos().double() + a * angle.sin().double()
    return turned


def features(x, weight):
    """Hedgehog's features of one token: [softmax(x W), softmax(-x W)]."""
    u = [sum(x[c] * weight[c, f] for c in range(len(x))) for f in range(weight.shape[1])]
    up, down = [math.exp(value) for value in u], [math.exp(-value) for value in u]
    return [value / sum(up) for value in up] + [value / sum(down) for value in down]


def linear_layer(name, attention, hidden, key_mask, causal):
    """Section 3.1 of the paper for every batch entry, head and token, one at a time."""
    query, key, value, output = projections(name, attention, hidden)
    if name == "llama":
        query, key = rotate(query), rotate(key)
    batch, heads, tokens, _ = query.shape
    group = heads // key.shape[1]
    result = torch.zeros(batch, tokens, heads, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            weights = attention.hedgehog.query_map.projection.weight[h], attention.hedgehog.key_map.projection.weight[h]
            phi_q = [features(query[b, h, i].tolist(), weights[0]) for i in range(tokens)]
            phi_k = [features(key[b, h // group, j].tolist(), weights[1]) for j in range(tokens)]
            for i in range(tokens):
                total, mixed = 0.0, torch.zeros(value.shape[-1], dtype=torch.float64)
                for j in range(i + 1 if causal else tokens):
                    if key_mask[b, j]:
                        weight = sum(f * g for f, g in zip(phi_q[i], phi_k[j], strict=True))
                        total += weight
                        mixed += weight * value[b, h // group, j]
                result[b, i, h] = mixed / (total + 1e-12)
    return output(result.flatten(2))


@pytest.mark.parametrize(("name", "padding"), [("llama", "left"), ("gpt2", "left"), ("bert", "right")])
def test_a_converted_layer_equals_the_equations(name, padding, tiny_model, batch_for, randomize):
    model = convert(tiny_model(name, dtype=torch.float64))
    randomize(model)
    attention = self_attentions(model)[1][1]
    seen = {}
    attention.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(
            hidden=args[0] if args else kwargs["hidden_states"], output=output[0]
        ),
        with_kwargs=True,
    )
    batch = batch_for(model, padding=padding, tokens=6)
    with torch.no_grad():
        model(**batch)
        expected = linear_layer(name, attention, seen["hidden"], batch["attention_mask"], causal=name != "bert")
    visible = batch["attention_mask"].bool()
    torch.testing.assert_close(seen["output"][visible], expected[visible], rtol=1e-6, atol=1e-9)


# --- what a conversion leaves alone ---


@pytest.mark.parametrize("mode", ["softmax", "distill"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_softmax_and_distill_outputs_are_bit_identical_with_the_original(name, attention, mode, tiny_model, batch_for):
    model = tiny_model(name, attention=attention)
    batches = [batch_for(model, padding=padding) for padding in (None, "left", "right")]
    before = [model(**batch).logits for batch in batches]
    set_mode(convert(model), mode)
    for batch, logits in zip(batches, before, strict=True):
        assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_linear_outputs_differ_from_softmax(name, tiny_model, batch_for):
    model = tiny_model(name)
    before = model(**batch_for(model)).logits
    after = convert(model)(**batch_for(model)).logits
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@torch.no_grad()
def test_revert_restores_the_model_bit_for_bit_and_attribute_for_attribute(name, attention, tiny_model, batch_for):
    model = tiny_model(name, attention=attention)
    batch = batch_for(model, padding="left")
    logits = model(**batch).logits  # first, because transformers installs attributes of its own in a first pass

    def attributes():
        modules = {
            name: {key: value for key, value in vars(module).items() if not isinstance(value, torch.Tensor)}
            for name, module in model.named_modules()
        }
        return copy.deepcopy((list(modules), [list(value) for value in modules.values()], vars(model.config)))

    before, weights = attributes(), {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    convert(model, layers=[1])
    model(**batch)
    set_mode(model, "distill")
    model(**batch)
    assert revert(model) is model
    assert attributes() == before
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(**batch).logits, logits)


@torch.no_grad()
def test_only_the_chosen_layers_are_linear(tiny_model, batch_for):
    model = tiny_model("llama", num_hidden_layers=3)
    batch = batch_for(model, padding="left")
    before = model(**batch, output_hidden_states=True).hidden_states
    after = convert(model, layers=[1])(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])
    assert len(hedgehog_layers(model)) == 1


def test_the_original_weights_are_the_same_tensors(tiny_model):
    model = tiny_model("llama")
    before = dict(model.named_parameters())
    after = dict(convert(model).named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert set(after) - set(before) == {
        f"model.layers.{index}.self_attn.hedgehog.{which}_map.projection.weight"
        for index in (0, 1)
        for which in ("query", "key")
    }


@torch.no_grad()
def test_a_copy_of_a_converted_model_is_independent_of_it(tiny_model, batch_for):
    model = convert(tiny_model("gpt2"))
    batch = batch_for(model)
    logits = model(**batch).logits
    other = copy.deepcopy(model)
    revert(other)
    assert torch.equal(model(**batch).logits, logits)
    assert not torch.equal(other(**batch).logits, logits)


# --- what must hold for linear layers ---


@pytest.mark.parametrize("layers", [None, [0], [1]])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_future_does_not_reach_the_past(name, layers, tiny_model, batch_for):
    model = convert(tiny_model(name), layers=layers)
    batch = batch_for(model)
    changed = batch["input_ids"].clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 38 + 2
    before, after = model(**batch).logits, model(input_ids=changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-5)
    assert (after[:, 5:] - before[:, 5:]).abs().max() > 1e-2


@torch.no_grad()
def test_an_encoder_sees_all_tokens(tiny_model, batch_for):
    model = convert(tiny_model("bert"))
    batch = batch_for(model)
    changed = batch["input_ids"].clone()
    changed[:, -1] = (changed[:, -1] + 7) % 38 + 2
    states = [model.bert(input_ids=ids).last_hidden_state[:, 0] for ids in (batch["input_ids"], changed)]
    assert (states[0] - states[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [*DECODERS, "bert", "roberta"])
@torch.no_grad()
def test_padding_changes_nothing(name, tiny_model, batch_for):
    model = convert(tiny_model(name))
    ids = batch_for(model)["input_ids"][:1]
    decoder = name in DECODERS
    pads = torch.full((1, 4), 3)
    padded = torch.cat([pads, ids] if decoder else [ids, pads], dim=1)
    mask = (torch.arange(13) >= 4 if decoder else torch.arange(13) < 9).long()[None]
    positions = {"position_ids": (torch.arange(13) - 4).clamp(min=0)[None]} if decoder else {}
    alone = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    batched = model.base_model(input_ids=padded, attention_mask=mask, **positions).last_hidden_state
    torch.testing.assert_close(batched[:, 4:] if decoder else batched[:, :9], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature_map", ["hedgehog", "elu", "relu", "performer", "cosformer", "t2r", "exp", "taylor"])
@torch.no_grad()
def test_every_feature_map_converts(feature_map, tiny_model, batch_for):
    for name in ("llama", "vit"):
        model = tiny_model(name)
        batch = batch_for(model)
        before = model(**batch).logits
        logits = convert(model, feature_map=feature_map)(**batch).logits
        assert logits.isfinite().all()
        assert (logits - before).abs().max() > 1e-3


def test_options_reach_the_maps(tiny_model):
    model = convert(tiny_model("llama"), feature_dim=3, negation=False, activation="exp_dim")
    layer = hedgehog_layers(model)[0]
    assert layer.query_map.num_features == layer.key_map.num_features == 3
    assert model.config.hedgehog["map_options"] == {"feature_dim": 3, "negation": False, "activation": "exp_dim"}
    assert layer.query_map.projection.weight.shape == (4, 6, 3)  # a map per query head, though keys have two heads


# --- weights and distillation ---


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@torch.no_grad()
def test_output_attentions_gives_the_weights_of_linear_layers(name, tiny_model, batch_for, randomize):
    model = convert(tiny_model(name, attention="eager"), layers=[0])
    randomize(model)
    linear, softmax = model(**batch_for(model), output_attentions=True).attentions
    assert linear.shape == softmax.shape
    torch.testing.assert_close(linear.sum(-1), torch.ones_like(linear[..., 0]))
    assert linear.min() >= 0
    if name in DECODERS:
        assert linear.triu(1).abs().max() == 0
    assert model(**batch_for(model)).get("attentions") is None


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_the_distillation_loss_is_the_cross_entropy_of_the_two_weights(name, padding, tiny_model, batch_for, randomize):
    model = convert(tiny_model(name, attention="eager"))
    randomize(model)
    batch = batch_for(model, padding=padding)
    maps = {}
    for mode in ("softmax", "linear"):
        set_mode(model, mode)
        maps[mode] = model(**batch, output_attentions=True).attentions[0].detach().double()
    set_mode(model, "distill")
    model(**batch)
    rows = -(maps["softmax"] * maps["linear"].clamp(min=1e-12).log()).sum(-1)
    visible = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()[:, None].expand_as(rows)
    layer = hedgehog_layers(model)[0]
    torch.testing.assert_close(layer.distillation_loss.double(), rows[visible].mean(), rtol=1e-4, atol=1e-5)
    entropy = torch.special.entr(maps["softmax"]).sum(-1)[visible].mean()
    torch.testing.assert_close(layer.teacher_entropy.double(), entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["cross_entropy", "output_mse"])
def test_distillation_trains_the_maps_alone(objective, tiny_model, batch_for):
    model = convert(tiny_model("llama"))
    set_mode(model, "distill")
    for layer in hedgehog_layers(model):
        layer.distillation_objective = objective
    model(**batch_for(model))
    sum(layer.distillation_loss for layer in hedgehog_layers(model)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("hedgehog" in name), name
    losses = []
    optimizer = torch.optim.AdamW(parameters := [p for n, p in model.named_parameters() if "hedgehog" in n], lr=1e-2)
    for _ in range(15):
        model(**batch_for(model))
        loss = sum(layer.distillation_loss for layer in hedgehog_layers(model))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert losses[-1] < 0.98 * losses[0]


def test_distillation_ignores_attention_dropout(tiny_model, batch_for):
    model = tiny_model("llama", attention_dropout=0.5)
    batch = batch_for(model)
    logits = model(**batch).logits
    set_mode(convert(model), "distill")
    model.train()
    assert torch.equal(model(**batch).logits, logits)


def test_linear_layers_have_no_attention_dropout(tiny_model, batch_for):
    model = convert(tiny_model("llama", attention_dropout=0.5))
    batch = batch_for(model)
    logits = model(**batch).logits
    assert torch.equal(model.train()(**batch).logits, logits)


def test_leaving_a_mode_forgets_the_loss(tiny_model, batch_for):
    model = convert(tiny_model("llama"))
    set_mode(model, "distill")
    model(**batch_for(model))
    set_mode(model, "linear")
    assert hedgehog_layers(model)[0].distillation_loss is None


# --- training ---


@pytest.mark.parametrize("mode", ["linear", "distill"])
def test_gradient_checkpointing_changes_no_gradient(mode, tiny_model, batch_for):
    gradients = []
    for checkpointing in (False, True):
        model = convert(tiny_model("llama"))
        if checkpointing:
            model.activation_checkpointing_enable()
        set_mode(model.train(), mode)
        logits = model(**batch_for(model), use_cache=False).logits
        losses = [layer.distillation_loss for layer in hedgehog_layers(model)]
        (logits.square().mean() if mode == "linear" else sum(losses)).backward()
        gradients.append([layer.query_map.projection.weight.grad for layer in hedgehog_layers(model)])
    torch.testing.assert_close(*gradients)
    assert gradients[0][0].abs().max() > 0


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_compiled_models_agree(name, tiny_model, batch_for):
    model = convert(tiny_model(name))
    batch = batch_for(model, padding="right")
    options = {"use_cache": False} if name in DECODERS else {}
    expected = model(**batch, **options).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)(**batch, **options).logits
    torch.testing.assert_close(compiled, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@torch.no_grad()
def test_half_precision_models_stay_close_to_float32(name, dtype, tiny_model, batch_for):
    exact, model = tiny_model(name), tiny_model(name, dtype=dtype)
    model.load_state_dict(exact.state_dict())
    convert(exact)
    convert(model)
    assert {parameter.dtype for layer in hedgehog_layers(model) for parameter in layer.parameters()} == {torch.float32}
    logits = model(**batch_for(model, padding="right")).logits
    assert logits.dtype == dtype
    expected = exact(**batch_for(exact, padding="right")).logits
    assert (logits.float() - expected).norm() < 0.1 * expected.norm()


# --- refusals ---


def test_an_unknown_model_class_is_refused_by_name(tiny_model):
    config = transformers.OPTConfig(
        hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, word_embed_proj_dim=16
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(TypeError, match=r"model must .*LlamaAttention.* got a OPTForCausalLM"):
        convert(model)
    with pytest.raises(TypeError, match="model must be a transformers PreTrainedModel, got Linear"):
        convert(torch.nn.Linear(2, 2))


def test_a_model_is_converted_once(tiny_model):
    model = tiny_model("bert")
    for act in (revert, lambda model: set_mode(model, "linear")):
        with pytest.raises(ValueError, match=r"model must .*converted.* got a BertForSequenceClassification"):
            act(model)
    convert(model)
    with pytest.raises(ValueError, match="model must be unconverted, got one that is converted already"):
        convert(model)
    with pytest.raises(ValueError, match=r"mode must be one of .*'linear'.*, got 'cubic'"):
        set_mode(model, "cubic")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [2]}, ValueError, "layers must lie in 0 to 1, got 2"),
        ({"layers": [-1]}, ValueError, "layers must lie in 0 to 1, got -1"),
        ({"layers": []}, ValueError, "layers must name at least one layer, got none"),
        ({"feature_map": "porcupine"}, ValueError, "must be one of hedgehog, .*'porcupine'"),
        ({"feature_map": "elu", "spikes": 3}, TypeError, "spikes"),
    ],
)
def test_a_refused_conversion_leaves_the_model_alone(options, error, message, tiny_model):
    model = tiny_model("llama")
    keys, config = list(model.state_dict()), model.config.to_dict()
    with pytest.raises(error, match=message):
        convert(model, **options)
    assert list(model.state_dict()) == keys
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"


def test_sliding_window_layers_are_refused_and_may_stay_softmax(tiny_model, batch_for):
    with pytest.raises(NotImplementedError, match=r"layers must be without a sliding window, got layer 0 .*4 tokens"):
        convert(tiny_model("mistral", sliding_window=4))
    windows = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
    model = tiny_model("qwen2", **windows)
    with pytest.raises(NotImplementedError, match="got layer 1"):
        convert(model)
    before = model(**batch_for(model), output_hidden_states=True).hidden_states
    set_mode(convert(model, layers=[0]), "softmax")
    after = model(**batch_for(model), output_hidden_states=True).hidden_states
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_other_attention_implementations_are_refused(tiny_model):
    with pytest.raises(NotImplementedError, match="attn_implementation 'eager' or 'sdpa', got 'flex_attention'"):
        convert(tiny_model("llama", attention="flex_attention"))


def test_gpt2s_own_upcast_attention_is_refused(tiny_model):
    with pytest.raises(NotImplementedError, match="model must not have reorder_and_upcast_attn with eager attention"):
        convert(tiny_model("gpt2", attention="eager", reorder_and_upcast_attn=True))


def test_masks_that_sums_cannot_express_are_refused(tiny_model, batch_for):
    model = convert(tiny_model("llama"))
    ids = batch_for(model)["input_ids"]
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    pairs = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    for mode in ("linear", "distill"):
        set_mode(model, mode)
        with pytest.raises(NotImplementedError, match="not packed sequences"):
            model(input_ids=ids, position_ids=packed, use_cache=False)
        with pytest.raises(NotImplementedError, match=r"attention_mask must be a padding mask \[batch, tokens\]"):
            model(input_ids=ids, attention_mask=pairs)
    set_mode(model, "softmax")
    model(input_ids=ids, position_ids=packed, use_cache=False)
    model(input_ids=ids, attention_mask=pairs)


def test_arguments_without_a_linear_form_are_refused(tiny_model, batch_for):
    model = convert(tiny_model("gpt2"))
    with pytest.raises(NotImplementedError, match="linear attention has no head_mask"):
        model(**batch_for(model), head_mask=torch.ones(2, 4))


def test_a_decoder_turned_bidirectional_is_bidirectional(tiny_model, batch_for):
    model = tiny_model("llama")
    model.config.is_causal = False
    convert(model)
    batch = batch_for(model)
    changed = batch["input_ids"].clone()
    changed[:, -1] = (changed[:, -1] + 7) % 38 + 2
    first, second = (model(input_ids=ids, use_cache=False).logits[:, 0] for ids in (batch["input_ids"], changed))
    assert (first - second).abs().max() > 1e-3


# --- cross-attention ---


@torch.no_grad()
def test_cross_attention_keeps_softmax():
    config = GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=40, n_positions=64, add_cross_attention=True, initializer_range=0.4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    inputs = {
        "input_ids": torch.randint(0, 40, (2, 9)),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    before = model(**inputs).logits
    convert(model)
    assert len(hedgehog_layers(model)) == 2
    assert not any("crossattention" in key and "hedgehog" in key for key in model.state_dict())
    linear = model(**inputs, use_cache=False).logits
    assert (linear - before).abs().max() > 1e-3
    torch.testing.assert_close(model(**inputs, use_cache=True).logits, linear)
    set_mode(model, "softmax")
    assert torch.equal(model(**inputs).logits, before)


def test_the_record_survives_the_configs_own_round_trip(tiny_model):
    model = convert(tiny_model("bert"), layers=[1], bias=True)
    assert isinstance(model.config, PretrainedConfig)
    assert model.config.to_dict()["hedgehog"] == {
        "feature_map": "hedgehog",
        "layers": [1],
        "map_options": {"bias": True},
    }
