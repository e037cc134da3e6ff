"""Recurrent generation: the state takes the place of keys and values, and nothing else changes."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, DynamicCache, StaticCache

from attn.core_kernels import LinearState
from attn.hedgehog import convert, set_mode
from attn.hedgehog.cache import LinearCacheLayer

DECODERS = ["llama", "qwen3", "gpt2"]


@pytest.fixture
def converted(tiny_model, randomize):
    def make(name="llama", layers=None, **options):
        model = convert(tiny_model(name, num_hidden_layers=3), layers=layers, **options)
        randomize(model)
        return model

    return make


@pytest.mark.parametrize("layers", [None, [0, 2], [1]])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_prefill_and_decoding_equal_the_parallel_form(name, layers, converted, batch_for):
    model = converted(name, layers)
    batch = batch_for(model, padding="left", tokens=12)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache, logits = None, []
    for start, stop in ((0, 5), (5, 8), (8, 9), (9, 10), (10, 12)):  # prompt, a chunk, single tokens, a chunk
        output = model(
            input_ids=ids[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            cache=cache,
            use_cache=True,
        )
        cache = output.cache
        logits.append(output.logits)
    visible = mask.bool()
    torch.testing.assert_close(torch.cat(logits, 1)[visible], expected[visible], rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_a_masked_token_in_decoding_is_not_seen(converted, batch_for):
    model = converted()
    ids = batch_for(model)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 7] = 0
    positions = torch.arange(9).expand(2, -1)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache = DynamicCache()
    for token in range(9):
        output = model(
            input_ids=ids[:, [token]],
            attention_mask=mask[:, : token + 1],
            position_ids=positions[:, [token]],
            cache=cache,
            use_cache=True,
        )
    torch.testing.assert_close(output.logits[:, 0], expected[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature_map", ["hedgehog", "elu", "relu", "performer", "cosformer", "t2r", "exp", "taylor"])
def test_every_feature_map_generates_what_it_predicts_without_a_cache(feature_map, converted, batch_for):
    # So few positions that cosFormer's weights differ from token to token.
    model = converted("llama", feature_map=feature_map, **{"max_positions": 20} if feature_map == "cosformer" else {})
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ids = batch_for(model)["input_ids"]
    cached, plain = (model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "top_k": 10}, {"num_return_sequences": 2, "do_sample": True}]
)
@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_beams_and_samples_equal_those_without_a_cache(name, layers, options, converted, batch_for):
    model = converted(name, layers)
    batch = batch_for(model, padding="left")
    sequences = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        sequences.append(model.generate(**batch, use_cache=use_cache, max_new_tokens=6, **options))
    assert torch.equal(*sequences)


@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_batch_generates_what_each_prompt_does_alone(name, layers, converted, batch_for):
    model = converted(name, layers)
    batch = batch_for(model, padding="left")
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, 9:]
    for row in (0, 1):
        prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        assert torch.equal(alone[0, prompt.shape[1] :], together[row])


def state_bytes(cache):
    return sum(tensor.nbytes for layer in cache.layers for tensor in layer.state)


def test_the_cache_does_not_grow(converted, batch_for):
    model = converted()
    ids = batch_for(model)["input_ids"]
    sizes = [
        state_bytes(model.generate(ids, max_new_tokens=new, do_sample=False, return_dict_in_generate=True).cache)
        for new in (2, 40)
    ]
    heads, features, head_dim = 4, 12, 6
    assert sizes == [3 * 2 * heads * features * (head_dim + 1) * 4] * 2  # layers, batch, ..., float32


@torch.no_grad()
def test_a_hybrid_model_keeps_keys_in_its_softmax_layers_only(converted, batch_for):
    model = converted(layers=[0, 2])
    cache = model(**batch_for(model), use_cache=True).cache
    assert [isinstance(layer, LinearCacheLayer) for layer in cache.layers] == [True, False, True]
    assert cache.layers[1].keys.shape[-2] == cache.get_seq_length(0) == 9


def test_a_conversation_goes_on_from_its_cache(converted, batch_for):
    model = converted()
    ids = batch_for(model)["input_ids"][:1]
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids, **options)
    prompt = torch.cat([first.sequences, ids], dim=1)
    continued = model.generate(prompt, cache=first.cache, **options).sequences
    assert torch.equal(continued, model.generate(prompt, **options).sequences)


@torch.no_grad()
def test_cache_rows_can_be_selected_repeated_and_forgotten(converted, batch_for):
    model = converted(layers=[0])
    ids = batch_for(model)["input_ids"]

    def next_logits(cache, tokens):
        return model(input_ids=tokens, cache=cache, use_cache=True).logits

    def fresh():
        return model(input_ids=ids, use_cache=True).cache

    token = torch.tensor([[7], [8]])
    expected = next_logits(fresh(), token)
    swapped = fresh()
    swapped.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(next_logits(swapped, token.flip(0)), expected.flip(0))
    chosen = fresh()
    chosen.batch_select_indices(torch.tensor([1]))
    torch.testing.assert_close(next_logits(chosen, token[1:]), expected[1:])
    repeated = fresh()
    repeated.batch_repeat_interleave(2)
    torch.testing.assert_close(next_logits(repeated, token.repeat_interleave(2, 0)), expected.repeat_interleave(2, 0))
    cache = fresh()
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(next_logits(cache, ids), model(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def test_a_bert_decoder_generates():
    config = BertConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=40,
        max_position_embeddings=64,
        is_decoder=True,
        initializer_range=0.4,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = convert(BertLMHeadModel(config).eval())
    ids = torch.randint(2, 40, (2, 7))
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


@torch.no_grad()
def test_half_precision_states_are_float32(tiny_model, batch_for):
    model = convert(tiny_model("llama", dtype=torch.bfloat16))
    output = model(**batch_for(model), use_cache=True)
    assert {tensor.dtype for layer in output.cache.layers for tensor in layer.state} == {torch.float32}
    assert isinstance(output.cache.layers[0].state, LinearState)
    output = model(input_ids=torch.tensor([[5], [6]]), cache=output.cache, use_cache=True)
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()


# --- refusals ---


@torch.no_grad()
def test_caches_that_cannot_hold_a_state_are_refused(converted, batch_for):
    model = converted()
    batch = batch_for(model)
    with pytest.raises(NotImplementedError, match=r"cache must be a DynamicCache .* got StaticCache"):
        model(**batch, cache=StaticCache(config=model.config, max_cache_len=16), use_cache=True)
    with pytest.raises(NotImplementedError, match=r"cache must be a DynamicCache .* got StaticCache"):
        model.generate(**batch, max_new_tokens=2, cache_implementation="static")


@torch.no_grad()
def test_a_cache_is_not_shared_between_modes(converted, batch_for):
    model = converted()
    batch = batch_for(model)
    linear = model(**batch, use_cache=True).cache
    set_mode(model, "softmax")
    with pytest.raises(ValueError, match="cache layer 0 must hold softmax keys, got a linear state"):
        model(**batch, cache=linear, use_cache=True)
    softmax = model(**batch, use_cache=True).cache
    set_mode(model, "distill")
    with pytest.raises(ValueError, match="distillation must see whole sequences, got a cache with 9 earlier tokens"):
        model(**batch, cache=softmax, use_cache=True)
    set_mode(model, "linear")
    softmax = DynamicCache()
    softmax.update(torch.zeros(2, 2, 9, 6), torch.zeros(2, 2, 9, 6), 0)
    with pytest.raises(ValueError, match="cache layer 0 must be empty or hold a linear state, got 9 softmax keys"):
        model(**batch, cache=softmax, use_cache=True)


@torch.no_grad()
def test_a_state_cannot_forget_single_tokens(converted, batch_for):
    model = converted()
    cache = model(**batch_for(model), use_cache=True).cache
    cache.crop(0)
    with pytest.raises(NotImplementedError, match="a linear attention state cannot drop tokens"):
        cache.crop(-1)


@torch.no_grad()
def test_attention_weights_are_refused_in_decoding(converted, batch_for):
    model = converted()
    cache = model(**batch_for(model), use_cache=True).cache
    with pytest.raises(NotImplementedError, match="output_attentions must be False once a linear layer has a cached"):
        model(input_ids=torch.tensor([[5], [6]]), cache=cache, use_cache=True, output_attentions=True)
