"""LinearAttention against section 3.1 as float64 loops, and against what holds by mathematics."""

import pytest
import torch

from attn.hedgehog.attention import ConvertedAttention, LinearAttention, hedgehog_layers, repeat_heads
from attn.hedgehog.feature_maps import FEATURE_MAPS, EluFeatureMap, TaylorFeatureMap, query_key_maps
from attn.hedgehog.losses import attention_cross_entropy, output_mse

HEADS, HEAD_DIM, TOKENS, VALUE_DIM = 4, 3, 9, 2


def draw(tokens=TOKENS, key_value_heads=HEADS, batch=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (HEADS, HEAD_DIM), (key_value_heads, HEAD_DIM), (key_value_heads, VALUE_DIM)
    return [torch.randn(batch, heads, tokens, width, generator=generator).double() for heads, width in shapes]


def attention(name="hedgehog", **options):
    torch.manual_seed(1)
    layer = LinearAttention(*query_key_maps(name, HEADS, HEAD_DIM, **options)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def equation(layer, query, key, value, causal, key_mask=None):
    groups = HEADS // key.shape[1]
    key = torch.stack([key[:, h // groups] for h in range(HEADS)], dim=1)
    value = torch.stack([value[:, h // groups] for h in range(HEADS)], dim=1)
    phi_q, phi_k = layer.query_map(query), layer.key_map(key)
    out = torch.zeros(*query.shape[:3], VALUE_DIM, dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(HEADS):
            for i in range(query.shape[2]):
                if key_mask is not None and not key_mask[b, i]:
                    continue  # the row of a token that is not there is zero
                numerator, denominator = torch.zeros(VALUE_DIM, dtype=torch.float64), 1e-12
                for j in range(i + 1 if causal else key.shape[2]):
                    if key_mask is None or key_mask[b, j]:
                        weight = phi_q[b, h, i] @ phi_k[b, h, j]
                        numerator, denominator = numerator + weight * value[b, h, j], denominator + weight
                out[b, h, i] = numerator / denominator
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_value_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_equals_the_equation(causal, key_value_heads, padding):
    layer, inputs = attention(), draw(key_value_heads=key_value_heads)
    key_mask = None
    if padding != "none":
        key_mask = torch.ones(2, TOKENS, dtype=torch.bool)
        key_mask[0, slice(0, 3) if padding == "left" else slice(-3, None)] = False
    out, _ = layer(*inputs, causal=causal, key_mask=key_mask)
    torch.testing.assert_close(out, equation(layer, *inputs, causal, key_mask))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_prompt_then_tokens_one_by_one_equals_all_at_once(name):
    options = {"max_positions": TOKENS} if name == "cosformer" else {}
    layer, inputs, positions = attention(name, **options), draw(), torch.arange(TOKENS)
    expected, final = layer(*inputs, causal=True)
    out, state = layer(*(x[:, :, :5] for x in inputs), causal=True)
    outputs = [out]
    for i in range(5, TOKENS):
        step = [x[:, :, i : i + 1] for x in inputs]
        out, state = layer(*step, causal=True, positions=positions[i : i + 1], state=state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, dim=2), expected)
    torch.testing.assert_close(state.key_value, final.key_value)


def test_two_segments_with_the_state_carried_equal_one():
    layer, inputs = attention(), draw()
    first, state = layer(*(x[:, :, :4] for x in inputs), causal=True)
    second, _ = layer(*(x[:, :, 4:] for x in inputs), causal=True, state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=2), layer(*inputs, causal=True)[0])


def test_a_step_that_is_padding_adds_nothing():
    layer, inputs, mask = attention(), draw(), torch.tensor([[False], [True]])
    _, before = layer(*(x[:, :, :5] for x in inputs), causal=True)
    out, after = layer(*(x[:, :, 5:6] for x in inputs), causal=True, state=before, key_mask=mask)
    _, unmasked = layer(*(x[:, :, 5:6] for x in inputs), causal=True, state=before)
    assert torch.equal(after.key_value, torch.stack([before.key_value[0], unmasked.key_value[1]]))
    assert not out[0].any()


def test_left_padding_changes_nothing_for_the_tokens_behind_it():
    layer, inputs = attention(), draw()
    padded = [torch.cat([torch.full_like(x[:, :, :3], 7.0), x], dim=2) for x in inputs]
    key_mask = torch.cat([torch.zeros(2, 3), torch.ones(2, TOKENS)], dim=1).bool()
    out, state = layer(*padded, causal=True, key_mask=key_mask)
    expected, expected_state = layer(*inputs, causal=True)
    torch.testing.assert_close(out[:, :, 3:], expected)
    torch.testing.assert_close(state.key, expected_state.key)
    assert out.isfinite().all()


def test_a_constant_value_comes_back_because_weights_sum_to_one():
    query, key, _ = draw()
    constant = torch.full((2, HEADS, TOKENS, VALUE_DIM), 2.5, dtype=torch.float64)
    for causal in True, False:
        torch.testing.assert_close(attention()(query, key, constant, causal=causal)[0], constant)


def test_the_output_has_the_dtype_of_the_value():
    layer, inputs = attention().bfloat16(), [x.bfloat16() for x in draw()]
    out, state = layer(*inputs, causal=True)
    assert out.dtype == torch.bfloat16
    assert state.key_value.dtype == torch.float32


def test_rows_of_zero_features_give_numbers():
    layer = LinearAttention(*query_key_maps("relu", HEADS, HEAD_DIM)).double()
    query, key, value = draw()
    out, _ = layer(-query.abs(), -key.abs(), value, causal=True)
    assert out.isfinite().all()


def converted(mode, **options):
    layer = ConvertedAttention(*query_key_maps("hedgehog", HEADS, HEAD_DIM, **options), mode=mode).double()
    with torch.no_grad():
        layer.key_map.projection.weight.mul_(1.5)
    return layer


def softmax_rows(query, key, causal, key_mask, scale):
    """Softmax attention weights in plain matrix form; rows without a visible key are zero."""
    visible = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    if key_mask is not None:
        visible = visible & key_mask[:, None, None]
    exponentials = (scale * query @ key.mT).exp() * visible
    return exponentials / exponentials.sum(dim=-1, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("mode", ["softmax", "distill"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("padded", "scale"), [(False, None), (True, 0.4)])
def test_until_it_is_linear_the_output_is_softmax(mode, causal, padded, scale):
    query, key, value = draw(key_value_heads=2)
    key_mask = None
    if padded:
        key_mask = torch.ones(2, TOKENS, dtype=torch.bool)
        key_mask[0, :2] = False
    out, state = converted(mode)(query, key, value, causal=causal, key_mask=key_mask, scale=scale)
    key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    expected = softmax_rows(query, key, causal, key_mask, scale or HEAD_DIM**-0.5) @ value
    torch.testing.assert_close(out, expected)
    assert state is None


def test_linear_mode_is_linear_attention():
    layer, inputs = converted("linear"), draw()
    out, _ = layer(*inputs, causal=True)
    torch.testing.assert_close(out, LinearAttention(layer.query_map, layer.key_map)(*inputs, causal=True)[0])
    assert not torch.allclose(out, converted("softmax")(*inputs, causal=True)[0])


@pytest.mark.parametrize("objective", ["cross_entropy", "output_mse"])
def test_distill_mode_records_the_loss_and_only_the_maps_learn(objective):
    layer, inputs = converted("distill"), [x.requires_grad_() for x in draw(key_value_heads=2)]
    layer.distillation_objective = objective
    out, _ = layer(*inputs, causal=True)
    query, key, value = (x.detach() for x in inputs)
    if objective == "cross_entropy":
        repeated = key.repeat_interleave(2, dim=1)
        expected = attention_cross_entropy(query, key, layer.query_map(query), layer.key_map(repeated))
        torch.testing.assert_close(layer.distillation_loss, expected.cross_entropy)
        torch.testing.assert_close(layer.teacher_entropy, expected.teacher_entropy)
    else:
        linear = LinearAttention(layer.query_map, layer.key_map)(query, key, value, causal=True)[0]
        torch.testing.assert_close(layer.distillation_loss, output_mse(linear, out))
        assert layer.teacher_entropy is None
    layer.distillation_loss.backward()
    assert all(x.grad is None for x in inputs)
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_hedgehog_layers_finds_them_all():
    layers = [converted("linear"), converted("linear")]
    model = torch.nn.Sequential(layers[0], torch.nn.Sequential(torch.nn.Linear(2, 2), layers[1]))
    assert hedgehog_layers(model) == layers


def test_an_error_names_the_argument():
    layer, inputs = attention("cosformer"), draw(tokens=1)
    _, state = layer(*inputs, causal=True)
    with pytest.raises(ValueError, match="state must be None when causal is False, got a state"):
        layer(*inputs, causal=False, state=state)
    with pytest.raises(ValueError, match="positions must be given with a state"):
        layer(*inputs, causal=True, state=state)
    with pytest.raises(ValueError, match="query_map and key_map must have the same number of features, got 3 and 13"):
        LinearAttention(EluFeatureMap(HEADS, HEAD_DIM), TaylorFeatureMap(HEADS, HEAD_DIM))
    with pytest.raises(ValueError, match="heads must be a multiple of the 3 key/value heads, got 4"):
        repeat_heads(torch.ones(1, 3, 2, 2), 4)
    with pytest.raises(ValueError, match="state must be None in mode 'softmax', got a state"):
        converted("softmax")(*inputs, causal=True, state=state)
    with pytest.raises(ValueError, match="model must have converted attention layers, got a Linear without any"):
        hedgehog_layers(torch.nn.Linear(2, 2))
