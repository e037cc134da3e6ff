"""The recall model: rotation, conversion, and that it is causal."""

import math

import pytest
import torch

from attn.hedgehog import FEATURE_MAPS, hedgehog_layers
from attn.hedgehog.recall import RecallModel, rotate
from attn.shared_eval.data import packed_recall


def batch(seed=0):
    drawn = packed_recall(3, pairs=6, queries=4, keys=8, values=5, seed=seed)
    return {"key_ids": drawn.key_ids, "value_ids": drawn.value_ids, "labels": drawn.labels}


def model(feature_map="softmax", **options):
    torch.manual_seed(0)
    return RecallModel(keys=8, values=5, dim=16, heads=2, feature_map=feature_map, **options).double()


def test_rotation_equals_its_formula():
    x = torch.randn(1, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = rotate(x)
    for position in range(5):
        for pair in range(3):
            angle = position * 10000 ** (-pair / 3)
            a, b = x[0, 0, position, pair], x[0, 0, position, pair + 3]
            torch.testing.assert_close(turned[0, 0, position, pair], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(turned[0, 0, position, pair + 3], b * math.cos(angle) + a * math.sin(angle))


def test_rotated_products_depend_on_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = rotate(query.expand(1, 1, 7, 8)) @ rotate(key.expand(1, 1, 7, 8)).mT
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1])


@pytest.mark.parametrize("feature_map", ["softmax", *FEATURE_MAPS])
def test_later_tokens_do_not_reach_earlier_ones(feature_map):
    network, inputs = model(feature_map), batch()
    logits = network(**inputs).logits
    inputs["key_ids"][:, 7:] = 0
    changed = network(**inputs).logits
    torch.testing.assert_close(logits[:, :7], changed[:, :7])
    assert not torch.allclose(logits[:, 7:], changed[:, 7:])


def test_the_loss_is_the_mean_over_what_is_asked():
    output, labels = model()(**batch()), batch()["labels"]
    likelihood = output.logits.log_softmax(dim=-1)
    asked = [-likelihood[b, i, labels[b, i]] for b in range(3) for i in range(10) if labels[b, i] != -100]
    torch.testing.assert_close(output.loss, torch.stack(asked).mean())


def test_conversion_keeps_the_weights_and_changes_the_attention():
    network, inputs = model(), batch()
    softmax, weights = network(**inputs).logits, dict(network.state_dict())
    network.convert("hedgehog", feature_dim=4)
    assert not torch.allclose(network(**inputs).logits, softmax)
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in weights.items())
    for layer in hedgehog_layers(network):
        assert layer.query_map.num_features == 8
        layer.mode = "softmax"
    torch.testing.assert_close(network(**inputs).logits, softmax)


def test_an_error_names_the_argument():
    with pytest.raises(ValueError, match="dim must be a multiple of twice the 3 heads, got 16"):
        RecallModel(dim=16, heads=3)
    with pytest.raises(ValueError, match=r"name must be one of hedgehog, .*, got 'hedgehogs'"):
        RecallModel(feature_map="hedgehogs")
