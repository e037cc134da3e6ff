"""Scores of a region with torchmetrics' functions, structure distance by loops, keys of a real vision transformer."""

import math
from functools import partial

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from transformers import ViTConfig, ViTModel

from attn.shared_eval.metrics import ProjectedKeys, RegionScore, StructureDistance, dino_pixels, structure_distance

PSNR = partial(peak_signal_noise_ratio, data_range=1.0)
SSIM = partial(structural_similarity_index_measure, data_range=1.0)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images():
    preds, target = draw(3, 3, 16, 16), draw(3, 3, 16, 16, seed=1)
    region = draw(3, 16, 16, seed=2) < 0.5
    region[1] = False
    return preds, target, region


def test_psnr_is_that_of_the_whole_image_with_the_rest_black():
    preds, target, region = images()
    metric = RegionScore(PSNR)
    metric.update(preds, target, region)
    expected = []
    for i in (0, 2):  # the second image has no region
        error = sum(
            float(preds[i, c, y, x] - target[i, c, y, x]) ** 2
            for c in range(3)
            for y in range(16)
            for x in range(16)
            if region[i, y, x]
        )
        expected.append(10 * math.log10(1 / (error / (3 * 16 * 16))))
    assert float(metric.compute()) == pytest.approx(sum(expected) / 2)


def test_any_score_of_torchmetrics_will_do():
    preds, target, region = images()
    metric = RegionScore(SSIM)
    metric.update(preds, target, torch.ones_like(region))
    each = [float(SSIM(preds[i : i + 1], target[i : i + 1])) for i in range(3)]
    assert float(metric.compute()) == pytest.approx(sum(each) / 3)


def test_what_lies_outside_the_region_changes_nothing():
    preds, target, region = images()
    first, second = (RegionScore(PSNR) for _ in range(2))
    first.update(preds, target, region)
    second.update(torch.where(region[:, None], preds, 0.3), target, region)
    assert float(first.compute()) == float(second.compute())


def test_structure_distance_equals_loops():
    keys, other = draw(2, 4, 3) - 0.5, draw(2, 4, 3, seed=1) - 0.5

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    for b in range(2):
        left, right = keys[b].tolist(), other[b].tolist()
        squares = [(cosine(left[i], left[j]) - cosine(right[i], right[j])) ** 2 for i in range(4) for j in range(4)]
        assert float(structure_distance(keys, other)[b]) == pytest.approx(sum(squares) / 16)


def test_structure_ignores_the_length_of_keys_and_a_common_rotation():
    keys = draw(1, 5, 4) - 0.5
    rotation = torch.linalg.qr(draw(4, 4, seed=3)).Q
    scaled = keys * (1 + draw(1, 5, 1, seed=4))
    assert float(structure_distance(keys, scaled @ rotation)) == pytest.approx(0, abs=1e-24)
    assert float(structure_distance(keys, keys.flip(-1) * keys)) > 1e-3


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    return ViTModel(config).eval()


def test_keys_are_those_of_the_last_layer():
    model, pixels = vit(), draw(2, 3, 16, 16).float()
    projection = model.layers[-1].attention.k_proj
    keys = ProjectedKeys(model, projection)(pixels)
    with torch.no_grad():
        before = model.layers[-1].layernorm_before(model(pixels, output_hidden_states=True).hidden_states[1])
        torch.testing.assert_close(keys, projection(before))
    assert keys.shape == (2, 5, 12)
    assert not projection._forward_hooks


def test_distance_of_edited_images():
    model = vit()
    keys = ProjectedKeys(model, model.layers[-1].attention.k_proj)
    preds, target = draw(3, 3, 16, 16).float(), draw(3, 3, 16, 16, seed=1).float()
    metric = StructureDistance(keys)
    metric.update(preds, target)
    assert float(metric.compute()) == pytest.approx(
        float(structure_distance(keys(preds), keys(target)).mean()), rel=1e-4
    )
    same = StructureDistance(keys)
    same.update(preds, preds)
    assert float(same.compute()) == 0


def test_pixels_of_dino_are_not_divided_by_255():
    pixels = dino_pixels(torch.full((1, 3, 300, 600), 100.0), size=30)
    assert pixels.shape == (1, 3, 30, 60)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(
        [(100 - 0.485) / 0.229, (100 - 0.456) / 0.224, (100 - 0.406) / 0.225]
    )
    assert dino_pixels(torch.zeros(1, 3, 100, 400)).shape == (1, 3, 120, 480)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_images_figures_are_undefined():
    assert math.isnan(RegionScore(PSNR).compute())
    assert math.isnan(StructureDistance(lambda x: x).compute())


def test_errors():
    preds, target, region = images()
    metric = RegionScore(PSNR)
    with pytest.raises(ValueError, match=r"target must have the shape of preds \(3, 3, 16, 16\), got \(2, 3, 16, 16\)"):
        metric.update(preds, target[:2], region)
    with pytest.raises(TypeError, match=r"region must be bool, got torch\.float64"):
        metric.update(preds, target, region.double())
    with pytest.raises(ValueError, match=r"preds and region must be .*, got \(3, 3, 16, 16\) and \(3, 1, 16, 16\)"):
        metric.update(preds, target, region[:, None])
    with pytest.raises(ValueError, match=r"other_keys must have one shape .*, got \(1, 2, 3\) and \(1, 2, 4\)"):
        structure_distance(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="projection must be a module of the model, got another Linear"):
        ProjectedKeys(vit(), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"images must be of shape \(batch, 3, height, width\), got \(1, 1, 4, 4\)"):
        dino_pixels(torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="preds and target must be of equal length, got 3 and 2"):
        StructureDistance(lambda x: x).update(preds, target[:2])
