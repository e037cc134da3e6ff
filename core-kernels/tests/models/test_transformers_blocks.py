"""What blocks of probes and edits do around caches, generation, training and one another, and what they refuse."""

import contextlib
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

from attn import core_kernels  # noqa: E402
from attn.core_kernels import models  # noqa: E402
from attn.core_kernels.models import KeyMass, MeanMap, RowEntropy, RowLse, Submap, edit, probe  # noqa: E402
from attn.core_kernels.models.transformers_attention import _STATE  # noqa: E402

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


@pytest.fixture
def inputs():
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(autouse=True)
def nothing_left():
    """Every block gives back what it took, whatever happened in it."""
    yield
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert not _STATE.lent
    assert not _STATE.hooks
    assert not _STATE.names


def eager_maps(model, inputs):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return maps


def zero(query, key, value, **_):
    return torch.zeros(*query.shape[:3], value.shape[3])


def generate(model, inputs, **more):
    more = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False} | more
    return model.generate(**inputs, **more)


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_generate_gives_the_same_tokens_and_every_step_reads_its_own_map(model, inputs, more):
    expected = generate(model, inputs, **more)
    with probe(model, [KeyMass(), Submap()], calls="all") as seen:
        tokens = generate(model, inputs, **more)
    assert torch.equal(tokens, expected)
    beams = more.get("num_beams", 1)
    if beams > 1:
        assert [mass.shape for mass in seen.key_mass.calls[2]] == [(4, 4, keys) for keys in (7, 8, 9, 10)]
        return
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    maps = eager_maps(model, {"input_ids": tokens[:, :10], "attention_mask": mask})
    for layer, eager in enumerate(maps):
        for step, seen_map in enumerate(seen.submap.calls[layer]):
            rows = seen_map.shape[2]
            assert rows == (1 if step and more.get("use_cache", True) else 7 + step)
            expected = eager[:, :, 7 + step - rows : 7 + step, : 7 + step].clone()
            expected[0, :, : max(0, rows - 4 - step)] = 0  # queries at padding see nothing
            torch.testing.assert_close(seen_map, expected, rtol=1e-4, atol=1e-5)


def test_the_first_calls_are_the_prompts(model, inputs):
    with probe(model, [KeyMass()], calls="first") as seen:
        generate(model, inputs)
    assert seen.key_mass[0].shape == (2, 4, 7)
    assert len(seen.key_mass.calls[0]) == 1


@torch.no_grad()
def test_a_prompt_in_pieces_reads_the_rows_of_the_whole(model, inputs):
    whole = eager_maps(model, inputs)[1]
    cache = transformers.DynamicCache(config=model.config)
    with probe(model, [Submap()], calls="all") as seen:
        for piece in (slice(0, 4), slice(4, 7)):
            mask = inputs["attention_mask"][:, : piece.stop]
            model(input_ids=inputs["input_ids"][:, piece], attention_mask=mask, cache=cache)
    torch.testing.assert_close(seen.submap.calls[1][1], whole[:, :, 4:7], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_chosen_layers_and_heads_are_read(model, inputs):
    maps = eager_maps(model, inputs)
    with probe(model, [Submap(), KeyMass()], range(1, 3), heads={1: [3, 0], 2: [2]}) as seen:
        model(**inputs)
    assert list(seen.submap) == [1, 2]
    torch.testing.assert_close(seen.submap[1][1], maps[1][1][[3, 0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.submap[2][1], maps[2][1][[2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.key_mass[1][1], maps[1][1][[3, 0]].sum(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError, match=r"layer 0 is not probed: \[1, 2\] are"):
        seen.submap[0]
    with pytest.raises(AttributeError, match=r"no read has the field 'row_lse'; there are \['key_mass', 'submap'\]"):
        seen.row_lse  # noqa: B018


@torch.no_grad()
def test_layers_that_are_not_chosen_compute_bitwise_what_they_did_without_padding(model, inputs):
    states = model(inputs["input_ids"], output_hidden_states=True).hidden_states
    with probe(model, [KeyMass()], [2]):
        probed = model(inputs["input_ids"], output_hidden_states=True).hidden_states
    assert torch.equal(probed[2], states[2])


@torch.no_grad()
def test_nested_blocks_compose_in_any_order(model, inputs):
    with probe(model, [KeyMass()]) as plain:
        model(**inputs)
    for order in ("probe first", "edit first"):
        with contextlib.ExitStack() as blocks:
            if order == "edit first":
                blocks.enter_context(edit(model, zero, [1], heads=[0, 1]))
            seen = blocks.enter_context(probe(model, [KeyMass(), RowEntropy()]))
            if order == "probe first":
                blocks.enter_context(edit(model, zero, [1], heads=[0, 1]))
            model(**inputs)
        assert torch.equal(seen.key_mass[1], plain.key_mass[1])  # a layer's read is before its own edit
        assert not torch.equal(seen.key_mass[2], plain.key_mass[2])  # later layers see what came of it


@torch.no_grad()
def test_edits_of_different_heads_compose_and_of_the_same_are_refused(model, inputs):
    with edit(model, zero, [1]):
        expected = model(**inputs).logits
    with edit(model, zero, [1], heads=[0, 2]), edit(model, zero, [1], heads=[3, 1]):
        assert torch.equal(model(**inputs).logits, expected)
    with (
        edit(model, zero, [1], heads=[0, 2]),
        edit(model, zero, [1], heads=[2]),
        pytest.raises(ValueError, match=r"heads of nested edits must differ, got \[2\] twice at layer 1"),
    ):
        model(**inputs)


@torch.no_grad()
def test_an_exception_in_the_block_restores_the_model(model, inputs):
    before = model(**inputs).logits
    with pytest.raises(RuntimeError, match="stop"), probe(model, [KeyMass()]), edit(model, zero, [0]):
        raise RuntimeError("stop")
    assert torch.equal(model(**inputs).logits, before)
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_block_left_out_of_order_leaves_the_other_at_work(model, inputs):
    first, second = probe(model, [KeyMass()], [0]), probe(model, [KeyMass()], [1])
    first.__enter__()
    seen = second.__enter__()
    first.__exit__(None, None, None)
    model(**inputs)
    second.__exit__(None, None, None)
    assert list(seen.key_mass) == [1]
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_model_that_shares_the_config_is_not_read_and_computes_the_same(model, inputs):
    torch.manual_seed(5)
    other = transformers.LlamaForCausalLM(model.config).eval()
    before = other(inputs["input_ids"]).logits
    with probe(model, [KeyMass()]) as seen:
        assert torch.equal(other(inputs["input_ids"]).logits, before)
    assert not seen.key_mass


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_read_once_and_have_the_same_gradients(model, inputs, reentrant):
    def gradient():
        model.zero_grad()
        with probe(model, [KeyMass()], [0, 2], calls="all") as seen:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone(), seen

    model.train()
    expected, _ = gradient()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    actual, seen = gradient()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert [len(calls) for calls in seen.key_mass.calls.values()] == [1, 1]


def test_maps_can_be_trained_through_and_other_reads_leave_the_graph(model, inputs):
    with probe(model, [MeanMap(gradient=True), RowLse()], [1]) as seen:
        model(**inputs)
        assert not seen.row_lse[1].requires_grad
        seen.mean_map[1][1].square().sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_dropout_in_training_is_the_models_own_for_reads_and_refused_for_edits():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4)).train()
    ids = torch.arange(6)[None]
    torch.manual_seed(3)
    before = model(ids).logits
    torch.manual_seed(3)
    with probe(model, [RowEntropy()]) as seen:
        torch.testing.assert_close(model(ids).logits, before)
    assert len(seen.row_entropy) == 2
    with (
        edit(model, zero, [1]),
        pytest.raises(NotImplementedError, match=r"layer 'transformer.h.1.attn' drops 0.1 of its map"),
    ):
        model(ids)


@torch.no_grad()
def test_compiled_models_are_read_too(model, inputs):
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    with probe(model, [KeyMass()]) as plain:
        model(**inputs)
    compiled(**inputs)
    with probe(compiled, [KeyMass()]) as seen:
        probed = compiled(**inputs).logits
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(probed[valid], expected[valid], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(next(iter(seen.key_mass.values())), plain.key_mass[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_later_tokens_change_nothing_for_earlier_ones(model, inputs):
    """A mask function that is not registered makes a causal model bidirectional without a word."""
    ids = inputs["input_ids"]
    with probe(model, [KeyMass()], [0]), edit(model, zero, [2], heads=[0]):
        whole, part = model(ids).logits, model(ids[:, :4]).logits
    torch.testing.assert_close(whole[:, :4], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": [3]}, ValueError, r"layers must be among 0: model.layers.0.self_attn, .*, got 3"),
        ({"layers": ["nothing*"]}, ValueError, "layers must name attention layers, got 'nothing\\*'"),
        ({"layers": []}, ValueError, "layers must choose at least one layer, got none"),
        ({"layers": 1}, TypeError, "layers must be indices or names in a list or range, got 1"),
        ({"layers": [1.0]}, TypeError, "layers must be integers or names, got float"),
        ({"heads": []}, ValueError, r"heads must be at least one and each once, got \(\)"),
        ({"heads": [1, 1]}, ValueError, r"heads must be at least one and each once, got \(1, 1\)"),
        ({"heads": ["a"]}, TypeError, r"heads must be integers, got \('a',\)"),
        ({"layers": [1], "heads": {2: [0]}}, ValueError, r"heads must be given for the layers \[1\], got \[2\]"),
        ({"reads": []}, ValueError, "reads must be at least one, got none"),
        ({"reads": KeyMass()}, TypeError, "reads must be a list of reads, got one KeyMass"),
        ({"reads": [KeyMass]}, TypeError, "reads must be instances of the classes of attn.core_kernels.models, got"),
        ({"reads": [KeyMass(), KeyMass()]}, ValueError, r"give a name to all but one of \['key_mass'\]"),
        ({"calls": "none"}, ValueError, "calls must be 'last', 'first' or 'all', got 'none'"),
        ({"model": "llama"}, TypeError, "model must be a torch.nn.Module, got str"),
        ({"model": torch.nn.Linear(2, 2)}, NotImplementedError, "model must have attention layers .* got Linear"),
    ],
)
def test_bad_arguments_are_refused(model, arguments, error, message):
    with pytest.raises(error, match=message), probe(**{"model": model, "reads": [KeyMass()], **arguments}):
        pass


@torch.no_grad()
def test_heads_that_are_not_there_are_refused_at_the_call(model, inputs):
    with (
        probe(model, [KeyMass()], heads=[4]),
        pytest.raises(ValueError, match=r"heads must lie in \[0, 4\), got \[4\]"),
    ):
        model(**inputs)


@torch.no_grad()
def test_edits_that_are_none_are_refused(model, inputs):
    with pytest.raises(TypeError, match="edit must be callable, got int"), edit(model, 3):
        pass
    with (
        edit(model, lambda query, *_, **__: query[:, :1], [1]),
        pytest.raises(ValueError, match=r"edit must return .* = \[2, 4, 7, 8\] at layer 1, got \[2, 1, 7, 8\]"),
    ):
        model(**inputs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, head_dim=8)), "soft cap"),
        (
            lambda: transformers.GptOssForCausalLM(
                transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
            ),
            "attention sinks",
        ),
        (
            lambda: transformers.T5EncoderModel(
                transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
            ),
            "position bias",
        ),
    ],
)
def test_attention_that_is_no_plain_softmax_is_refused_at_chosen_layers_only(make, message, inputs):
    model = make().eval()
    before = model(**inputs)[0]
    with probe(model, [KeyMass()], [1]), pytest.raises(NotImplementedError, match=message):
        model(**inputs)
    assert torch.equal(model(**inputs)[0], before)


@torch.no_grad()
def test_masks_that_have_no_rule_are_refused_at_chosen_layers_and_kept_elsewhere(model, inputs):
    packed = {
        "input_ids": inputs["input_ids"],
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
        "use_cache": False,
    }
    dense = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones(2, 1, 7, 7).tril().bool()}
    for given, message in ((packed, "several sequences packed into a row"), (dense, "a dense mask of shape")):
        before = model(**given, output_hidden_states=True).hidden_states
        with probe(model, [KeyMass()], [2]), pytest.raises(NotImplementedError, match=message):
            model(**given)
        with edit(model, zero, [2], heads=[0]), contextlib.suppress(NotImplementedError):
            states: list[torch.Tensor] = []
            handle = model.model.layers[1].register_forward_hook(lambda *io, kept=states: kept.append(io[2]))
            model(**given)
        handle.remove()
        assert torch.equal(states[0], before[2])


def test_no_square_of_the_tokens_is_stored_with_padding(model):
    """The map of a head would be 64 MiB here, the mask alone 16 MiB."""
    from attn.core_kernels.counting import peak_memory

    ids = torch.ones(1, 4096, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    with torch.no_grad(), probe(model.model, [KeyMass(), RowEntropy()], [1]):
        peak = peak_memory(lambda: model.model(ids, attention_mask=mask))
    assert peak < 15 * 2**20


KEYS = torch.zeros(1, 1, 7, dtype=torch.bool).index_fill(2, torch.tensor([0, 4]), True)
ROWS = torch.tensor([5, 6])
OTHER = torch.tensor([1, 0])
MAPPING = torch.eye(7).roll(1, 0)[None]
EDITS = {
    "mix_values": (
        models.MixValues(torch.tensor([0.3, 1.0]), "uniform", ROWS),
        {"mix": torch.tensor([0.3, 1.0]), "target": "uniform", "rows": ROWS},
    ),
    "scale_keys": (models.ScaleKeys(KEYS, 0.4), {"keys": KEYS, "beta": 0.4}),
    "swap_map": (models.SwapMap(OTHER), {"source": OTHER}),
    "remap_columns": (
        models.RemapColumns(OTHER, MAPPING, torch.full((1, 7), 0.3), torch.full((1, 7), 1.5)),
        {"source": OTHER, "mapping": MAPPING, "blend": torch.full((1, 7), 0.3), "weights": torch.full((1, 7), 1.5)},
    ),
    "edit_map": (models.EditMap(torch.sqrt), {"fn": torch.sqrt}),
    "decay_outside_window": (
        models.DecayOutsideWindow(1, 0.5, 4, 0.5, 0.2, torch.arange(7) // 2),
        {"half_window": 1, "alpha": 0.5, "period": 4, "risk_half_width": 0.5, "beta": 0.2}
        | {"places": torch.arange(7) // 2},
    ),
    "boost_keys": (models.BoostKeys(KEYS, 0.5, ROWS), {"keys": KEYS, "gain": 0.5, "rows": ROWS}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_by_name_is_the_operator_in_the_chosen_heads(model, inputs, name):
    by_name, arguments = EDITS[name]
    impl = {} if name == "edit_map" else {"impl": "reference"}

    def by_operator(query, key, value, **rule):
        return getattr(core_kernels, name)(query, key, value, **arguments, **rule, **impl)

    with edit(model, by_operator, [1], heads=[2, 1]):
        expected = model(**inputs).logits
    with edit(model, by_name, [1], heads=[2, 1]):
        edited = model(**inputs).logits
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, model(**inputs).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chosen", [models.ScaleKeys(KEYS, 0.0), models.BoostKeys(KEYS, 0.5)])
def test_keys_that_are_generated_later_are_not_chosen(model, inputs, chosen):
    with edit(model, chosen), probe(model, [Submap()], [0], calls="all") as seen:
        tokens = generate(model, inputs)
    assert tokens.shape == (2, 11)
    assert seen.submap.calls[0][-1].shape == (2, 4, 1, 10)


def test_importing_the_package_imports_neither_library():
    code = "import sys, attn.core_kernels.models; print({'transformers', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
