"""Probes on real model classes of transformers, against the maps that their eager attention returns."""

import fnmatch

import pytest
import torch

transformers = pytest.importorskip("transformers")

from attn.core_kernels import submap  # noqa: E402
from attn.core_kernels.models import KeyMass, RowEntropy, Submap, attention_layers, edit, probe  # noqa: E402

TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 1, 2]}
IMAGE = 39


def tokens(causal=True):
    """Two rows of nine tokens, the first padded on the left or, for encoders, on the right."""
    ids = torch.randint(3, 38, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask if causal else mask.flip(1)}


def pixels():
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def picture_and_text(image_tokens, **more):
    """Two rows that hold a picture, the first padded on the left."""
    ids = torch.randint(3, 38, (2, image_tokens + 5), generator=torch.Generator().manual_seed(1))
    ids[:, 3 : 3 + image_tokens] = IMAGE
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, **more}


def qwen_picture():
    patches = torch.randn(32, 96, generator=torch.Generator().manual_seed(2))
    types = (picture_and_text(4)["input_ids"] == IMAGE).int()
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return picture_and_text(4, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=types)


def text_config(name, **more):
    return getattr(transformers, name)(**{**TEXT, **more})


def llava():
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text_config("LlamaConfig"), image_token_id=IMAGE, image_seq_length=16
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3_with_images():
    config = transformers.Gemma3Config(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen_vl(version):
    more = {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    vision = {"embed_dim": 32, "hidden_size": 32} if version == "2" else {**more, "window_size": 8}
    names = {"2": ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration")}
    config, model = names.get(version, ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"))
    config = getattr(transformers, config)(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config={**QWEN_VISION, **vision},
        image_token_id=IMAGE,
        vision_start_token_id=38,
        video_token_id=37,
    )
    return getattr(transformers, model)(config)


def causal(name, config=None, **more):
    return lambda: getattr(transformers, f"{name}ForCausalLM")(text_config(config or f"{name}Config", **more))


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    )


SLIDING = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
CLIP_TEXT = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
CASES = {
    "llama": (causal("Llama"), tokens, "*"),
    "qwen2": (causal("Qwen2"), tokens, "*"),
    "qwen3": (causal("Qwen3", head_dim=8), tokens, "*"),
    "gemma": (causal("Gemma", head_dim=8), tokens, "*"),
    "gemma2 without soft cap": (
        causal("Gemma2", **SLIDING, attn_logit_softcapping=None),
        lambda: {"input_ids": tokens()["input_ids"]},  # its own attention, eager, gives NaN for padding in float64
        "*",
    ),
    "gemma3 text": (causal("Gemma3", "Gemma3TextConfig", **SLIDING), tokens, "*"),
    "gemma3 without a picture": (gemma3_with_images, tokens, "*language_model*"),
    "mistral": (causal("Mistral", sliding_window=4), tokens, "*"),
    "gpt2": (gpt2, tokens, "*"),
    "bert": (lambda: transformers.BertModel(text_config("BertConfig")), lambda: tokens(causal=False), "*"),
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VISION)), pixels, "*"),
    "clip vision": (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), pixels, "*"),
    "clip text": (
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TEXT)),
        lambda: tokens(causal=False),
        "*",
    ),
    "siglip vision": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, vision_use_head=False)),
        pixels,
        "*",
    ),
    "siglip text": (
        lambda: transformers.SiglipTextModel(transformers.SiglipTextConfig(**CLIP_TEXT)),
        lambda: tokens(causal=False),
        "*",
    ),
    "llava": (llava, lambda: picture_and_text(16, **pixels()), "*language_model*"),
    "qwen2-vl": (lambda: qwen_vl("2"), qwen_picture, "*language_model*"),
    "qwen2.5-vl": (lambda: qwen_vl("2.5"), qwen_picture, "*language_model*"),
}


@pytest.fixture(params=CASES)
def case(request):
    """A model, its inputs, the layers that have maps, and the maps of its eager attention."""
    make, inputs, layers = CASES[request.param]
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # initial weights give maps that are nearly even
        parameter.data.mul_(3)
    inputs, own = inputs(), model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(own)
    return model, inputs, layers, maps


def close(actual, expected):
    """Equal to float32's rounding over two layers; eager softmax is in float32 whatever the model's dtype."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-6)


def seeing_rows(inputs, queries):
    """1 for queries that are tokens, 0 for padding, ``[batch, 1, queries]``."""
    mask = inputs.get("attention_mask", torch.ones(2, queries))
    return mask.float()[:, None]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "qwen2.5-vl"])
def test_the_maps_of_a_vision_tower_are_read_by_its_calls(name):
    # Qwen's towers call a layer once for every picture or window, of which "last" keeps one.
    make, inputs, _ = CASES[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), inputs()
    tower = model.model.vision_tower if name == "llava" else model.model.visual
    maps, own = {}, tower.config._attn_implementation

    def record(module, query, key, value, attention_mask, scaling=None, **_):
        probability = (scaling * query @ key.mT).softmax(-1)
        maps.setdefault(module, []).append(probability)
        return (probability @ value).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("recorded_map", record)
    tower.set_attn_implementation("recorded_map")
    model(**inputs)
    tower.set_attn_implementation(own)
    with probe(model, [Submap()], ["*vi*"], calls="all") as seen:  # vision_tower, visual
        model(**inputs)
    names = attention_layers(model)
    assert len(seen.submap) == len(maps) == 2
    for layer, calls in seen.submap.calls.items():
        expected = maps[model.get_submodule(names[layer])]
        assert len(calls) == len(expected)
        for actual, eager in zip(calls, expected, strict=True):
            close(actual, eager)


@torch.no_grad()
def test_pictures_whose_tokens_see_one_another_are_refused_by_name():
    model = gemma3_with_images().eval()
    inputs = picture_and_text(4, **pixels())
    types = (inputs["input_ids"] == IMAGE).long()
    message = "tokens that see one another whatever their order, such as an image's or a prefix's; leave it out"
    with probe(model, [KeyMass()], ["*language_model*"]), pytest.raises(NotImplementedError, match=message):
        model(**inputs, token_type_ids=types)
    with probe(model, [KeyMass()], ["*vision_tower*"]) as seen:
        model(**inputs, token_type_ids=types)
    assert len(seen.key_mass) == 2


@torch.no_grad()
def test_reads_are_those_of_the_eager_maps(case):
    model, inputs, layers, maps = case
    weights = seeing_rows(inputs, maps[0].shape[2])
    with probe(model, [KeyMass(weights), RowEntropy(), Submap()], [layers]) as seen:
        model(**inputs)
    assert len(seen.key_mass) == len(maps) == 2
    for layer, eager in zip(seen.key_mass, maps, strict=True):
        rows = eager * weights[..., None]
        close(seen.submap[layer] * weights[..., None], rows)
        close(seen.key_mass[layer], rows.sum(2))
        close(seen.row_entropy[layer] * weights, -torch.special.xlogy(rows, rows).sum(-1))


@torch.no_grad()
def test_outputs_under_a_probe_are_the_models_own_and_bitwise_so_afterwards(case):
    model, inputs, layers, _ = case
    config = model.config.to_dict()
    before = model(**inputs)[0]
    with probe(model, [KeyMass()], [layers]):
        probed = model(**inputs)[0]
    valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else slice(None)
    torch.testing.assert_close(probed[valid], before[valid], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**inputs)[0], before)
    assert model.config.to_dict() == config


def sharpen(probability):
    """The map squared, its rows summing to one again."""
    return torch.nn.functional.normalize(probability.square(), p=1, dim=-1)


def attend_sharply(query, key, value, **rule):
    """The edit, of the heads that it is given."""
    groups = query.shape[1] // key.shape[1]
    return sharpen(submap(query, key, **rule)) @ value.repeat_interleave(groups, 1)


def attend_eagerly(module, query, key, value, attention_mask, scaling=None, is_causal=None, **_):
    """The same with a dense map in heads 1 and 2 of the last layer, as transformers' eager attention computes."""
    groups = query.shape[1] // key.shape[1]
    logits = scaling * query @ key.repeat_interleave(groups, 1).mT + (0 if attention_mask is None else attention_mask)
    probability = logits.softmax(-1)
    if module.edited:
        probability = torch.where(HEADS[:, None, None], sharpen(probability), probability)
    return (probability @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


HEADS = torch.tensor([False, True, True, False])


@torch.no_grad()
def test_an_edit_gives_the_output_of_the_edited_map(case):
    model, inputs, layers, _ = case
    model, inputs = model.double(), {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    own = model.config._attn_implementation
    transformers.AttentionInterface.register("edited_map", attend_eagerly)
    transformers.AttentionMaskInterface.register("edited_map", transformers.masking_utils.eager_mask)
    names = attention_layers(model)
    last = max(index for index, name in names.items() if fnmatch.fnmatch(name, layers))
    for index, name in names.items():
        model.get_submodule(name).edited = index == last
    model.set_attn_implementation("edited_map")
    expected = model(**inputs)[0]
    model.set_attn_implementation(own)
    with edit(model, attend_sharply, [names[last]], heads=[1, 2]):
        edited = model(**inputs)[0]
    valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else slice(None)
    torch.testing.assert_close(edited[valid], expected[valid], rtol=1e-5, atol=1e-6)  # rotary angles are float32
    assert not torch.allclose(edited[valid], model(**inputs)[0][valid], rtol=1e-3, atol=1e-3)
