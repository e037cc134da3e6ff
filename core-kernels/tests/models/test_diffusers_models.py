"""Probes on real model classes of diffusers, against a dense computation of what their processors hand to attention."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from attn.core_kernels import submap  # noqa: E402
from attn.core_kernels.models import KeyMass, RowEntropy, Submap, attention_layers, edit, probe  # noqa: E402

SDPA = torch.nn.functional.scaled_dot_product_attention


def sd3():
    config = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8}
    config |= {"num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "out_channels": 4}
    model = diffusers.SD3Transformer2DModel(**config, pooled_projection_dim=10, qk_norm="rms_norm")
    inputs = {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (2, 5, 12), "pooled_projections": (2, 10)}
    return model, inputs | {"timestep": torch.tensor([3.0, 3.0])}


def flux():
    config = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    config |= {"num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10}
    model = diffusers.FluxTransformer2DModel(**config, axes_dims_rope=[4, 4, 8])
    inputs = {"hidden_states": (2, 9, 4), "encoder_hidden_states": (2, 5, 12), "pooled_projections": (2, 10)}
    ids = {"img_ids": torch.arange(27.0).view(9, 3) % 4, "txt_ids": torch.zeros(5, 3)}
    return model, inputs | ids | {"timestep": torch.tensor([0.3, 0.3])}


def wan():
    config = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
    config |= {"out_channels": 4, "text_dim": 10, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2}
    model = diffusers.WanTransformer3DModel(**config, cross_attn_norm=True, rope_max_seq_len=32)
    inputs = {"hidden_states": (2, 4, 2, 8, 8), "encoder_hidden_states": (2, 5, 10)}
    return model, inputs | {"timestep": torch.tensor([3, 3])}


def unet():
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
    }
    config |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4}
    config |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12}
    model = diffusers.UNet2DConditionModel(**config, attention_head_dim=2)
    inputs = {"sample": (2, 4, 8, 8), "encoder_hidden_states": (2, 5, 12)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return model, inputs | {"timestep": torch.tensor(3), "encoder_attention_mask": mask}


MODELS = {"sd3": sd3, "flux": flux, "wan": wan, "unet": unet}


@pytest.fixture(params=MODELS)
def case(request):
    """A model and its inputs."""
    torch.manual_seed(0)
    model, inputs = MODELS[request.param]()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    inputs = {name: torch.randn(x) if isinstance(x, tuple) else x for name, x in inputs.items()}
    return model.eval(), inputs


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


class Recording(torch.overrides.TorchFunctionMode):
    """Dense maps of all attention that is computed, in order; head 1 of one call is edited."""

    def __init__(self, edited_call=None):
        self.maps, self.edited_call = [], edited_call

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not SDPA:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        query, key, value, mask = (arguments.get(name) for name in names)
        logits = query.double() @ key.double().mT * query.shape[-1] ** -0.5
        probability = (logits if mask is None else logits + mask).softmax(-1)
        if len(self.maps) == self.edited_call:
            probability = probability.clone()
            probability[:, 1] = sharpen(probability[:, 1])
        self.maps.append(probability)
        return (probability @ value.double()).to(query.dtype)


def sharpen(probability):
    return torch.nn.functional.normalize(probability.square(), p=1, dim=-1)


def attend_sharply(query, key, value, **rule):
    return sharpen(submap(query, key, **rule)) @ value


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_reads_are_those_of_the_dense_maps(case):
    model, inputs = case
    with Recording() as dense:
        run(model, inputs)
    with probe(model, [KeyMass(), RowEntropy(), Submap()], calls="all") as seen:
        run(model, inputs)
    assert set(seen.key_mass) == set(attention_layers(model))
    order = calls_of(model, inputs)
    assert len(order) == len(dense.maps)
    for layer, probability in zip(order, dense.maps, strict=True):
        assert len(seen.key_mass.calls[layer]) == 1
        close(seen.submap[layer], probability)
        close(seen.key_mass[layer], probability.sum(2))
        close(seen.row_entropy[layer], -torch.special.xlogy(probability, probability).sum(-1))


def calls_of(model, inputs):
    """The layers in the order in which they run."""
    order, handles = [], []
    for index, name in attention_layers(model).items():
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_hook(lambda *_, index=index: order.append(index)))
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return order


def test_the_model_is_bitwise_what_it_was_afterwards(case):
    model, inputs = case
    before, processors = run(model, inputs), model.attn_processors
    attributes = {name: list(vars(model.get_submodule(name))) for name in attention_layers(model).values()}
    with probe(model, [KeyMass()]):
        close(run(model, inputs), before)
    with pytest.raises(RuntimeError, match="in the block"), probe(model, [KeyMass()]):
        raise RuntimeError("in the block")
    assert torch.equal(run(model, inputs), before)
    assert all(model.attn_processors[name] is processor for name, processor in processors.items())
    assert attributes == {name: list(vars(model.get_submodule(name))) for name in attributes}


def test_an_edit_gives_the_output_of_the_edited_map(case):
    model, inputs = case
    order = calls_of(model, inputs)
    with Recording(edited_call=1):
        expected = run(model, inputs)
    with edit(model, attend_sharply, [order[1]], heads=[1]):
        edited = run(model, inputs)
    close(edited, expected)
    assert not torch.allclose(edited, run(model, inputs), rtol=1e-3, atol=1e-4)


def test_names_select_cross_attention():
    model, inputs = unet()
    inputs = {name: torch.randn(x) if isinstance(x, tuple) else x for name, x in inputs.items()}
    with probe(model, [KeyMass()], ["*.attn2"]) as seen:
        run(model, inputs)
    assert all(name.endswith("attn2") for name in seen.layers.values())
    assert len(seen.key_mass) * 2 == len(attention_layers(model))
    assert all(mass.shape[-1] == 5 and mass[1, :, 3:].abs().max() == 0 for mass in seen.key_mass.values())


def test_blocks_nest_and_a_read_sees_the_map_before_its_layers_edit(case):
    model, inputs = case
    first = calls_of(model, inputs)[0]
    with probe(model, [KeyMass()], [first]) as plain:
        run(model, inputs)
    with (
        probe(model, [KeyMass()], [first]) as outer,
        edit(model, attend_sharply, [first]),
        probe(model, [KeyMass()], [first]) as inner,
    ):
        run(model, inputs)
    assert torch.equal(outer.key_mass[first], plain.key_mass[first])
    assert torch.equal(inner.key_mass[first], plain.key_mass[first])


def test_a_processor_that_does_not_call_sdpa_is_refused():
    model, inputs = unet()
    inputs = {name: torch.randn(x) if isinstance(x, tuple) else x for name, x in inputs.items()}
    model.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    with (
        probe(model, [KeyMass()]),
        pytest.raises(NotImplementedError, match="does not call scaled_dot_product_attention in AttnProcessor"),
    ):
        run(model, inputs)
