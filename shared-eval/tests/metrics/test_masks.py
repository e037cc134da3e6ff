"""Masks against masks: loops over pixels, the conventions for empty unions, torchmetrics' own where it agrees."""

import math

import pytest
import torch
from torchmetrics.segmentation import MeanIoU

from attn.shared_eval.metrics import MaskIoU, PointAccuracy, intersection_and_union


def draw(count=6, seed=0, size=(5, 7)):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(count, *size, generator=generator) < 0.4,
        (torch.rand(count, *size, generator=generator) < 0.5).to(torch.uint8),
    )


def pixels(pred, target, ignored=None):
    cells = [(bool(p), int(t)) for p, t in zip(pred.flatten(), target.flatten(), strict=True) if int(t) != ignored]
    return sum(p and t != 0 for p, t in cells), sum(p or t != 0 for p, t in cells)


def figures(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def test_figures_equal_loops_over_pixels():
    preds, target = draw()
    target[0, :2] = 255
    target[1] = 2 * target[1]  # two polygons of one object overlap
    metric = MaskIoU()
    metric.update(preds, target)
    counts = [pixels(p, t, ignored=255) for p, t in zip(preds, target, strict=True)]
    ious = [i / u for i, u in counts]
    expected = {
        "ciou": sum(i for i, _ in counts) / sum(u for _, u in counts),
        "miou": sum(ious) / 6,
        "precision_50": sum(iou >= 0.5 for iou in ious) / 6,
        "samples": 6,
        "empty_union": 0,
    }
    assert {name: figures(metric)[name] for name in expected} == pytest.approx(expected)
    assert abs(expected["ciou"] - expected["miou"]) > 1e-3


def test_mean_iou_equals_torchmetrics_where_no_union_is_empty():
    preds, target = draw()
    library = MeanIoU(num_classes=2, include_background=False, input_format="index")
    library.update(preds.long(), target.long())
    metric = MaskIoU()
    metric.update(preds, target)
    assert figures(metric)["miou"] == pytest.approx(float(library.compute()), rel=1e-6)


@pytest.mark.parametrize(
    ("empty", "mean", "share"), [("one", 2 / 3, 2 / 3), ("zero", 1 / 3, 1 / 3), ("skip", 0.5, 0.5)]
)
def test_conventions_for_an_empty_union(empty, mean, share):
    nothing, whole = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    metric = MaskIoU(empty=empty)
    metric.update([nothing, nothing, whole], [nothing.byte(), whole.byte(), whole.byte()])
    assert figures(metric)["miou"] == pytest.approx(mean)
    assert figures(metric)["precision_90"] == pytest.approx(share)
    assert figures(metric)["ciou"] == 4 / 8
    assert figures(metric)["empty_union"] == 1


def test_a_truth_of_ignored_pixels_alone_has_an_empty_union():
    metric = MaskIoU()
    metric.update(torch.ones(1, 2, 2, dtype=torch.bool), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert figures(metric)["miou"] == 1
    assert math.isnan(figures(metric)["ciou"])
    counting = MaskIoU(ignore_index=None)
    counting.update(torch.ones(1, 2, 2, dtype=torch.bool), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert figures(counting)["ciou"] == 1


def test_a_false_alarm_adds_its_area_to_the_union():
    metric = MaskIoU(empty="zero")
    metric.update(torch.ones(1, 3, 3, dtype=torch.bool), torch.ones(1, 3, 3, dtype=torch.bool))
    metric.update(torch.ones(1, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.bool))
    assert figures(metric)["ciou"] == 1 / 2


def test_an_iou_at_the_threshold_reaches_it():
    pred, true = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    metric = MaskIoU()
    metric.update([pred], [true])
    assert figures(metric)["precision_50"] == 1


def test_pixels_are_counted_exactly_beyond_float32():
    large = torch.ones(2, 4096, 4096, dtype=torch.bool)
    metric = MaskIoU()
    metric.update(large, large)
    metric.update([torch.tensor([[True]])], [torch.tensor([[True]])])
    assert int(metric.union) == 2 * 4096**2 + 1


def test_masks_may_have_sizes_of_their_own():
    metric = MaskIoU()
    sizes = ((2, 3), (4, 4))
    metric.update([torch.ones(s, dtype=torch.bool) for s in sizes], [torch.ones(s, dtype=torch.int64) for s in sizes])
    assert int(metric.intersection) == 6 + 16


def test_points_inside_masks():
    mask = torch.zeros(3, 4, dtype=torch.uint8)
    mask[1, 3] = 1
    metric = PointAccuracy()
    metric.update(torch.tensor([[3.9, 1.0], [1.0, 3.0], [4.0, 1.0], [-0.5, 1.0]]), [mask] * 4)
    assert float(metric.compute()) == 1 / 4


def test_without_samples_figures_are_undefined():
    for metric in MaskIoU(), MaskIoU(empty="skip"):
        metric.update([], [])
        assert math.isnan(figures(metric)["miou"])
        assert math.isnan(figures(metric)["ciou"])
    points = PointAccuracy()
    points.update(torch.zeros(0, 2), [])
    assert math.isnan(points.compute())


def test_errors():
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="empty must be one, zero or skip, got 'nan'"):
        MaskIoU(empty="nan")
    with pytest.raises(ValueError, match=r"thresholds must lie in \(0, 1\], got \(nan,\)"):
        MaskIoU(thresholds=[math.nan])
    with pytest.raises(TypeError, match=r"preds must be bool, got torch\.float32"):
        MaskIoU().update(mask.float(), mask)
    with pytest.raises(TypeError, match=r"target must be bool or integer, got torch\.float32"):
        MaskIoU().update(mask, mask.float())
    with pytest.raises(ValueError, match=r"target must have the shape of preds \(2, 2\), got \(2, 3\)"):
        MaskIoU().update(mask, torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="preds and target must be of equal length, got 1 and 2"):
        MaskIoU().update(mask, mask.repeat(2, 1, 1))
    with pytest.raises(ValueError, match=r"points must be of shape \(1, 2\), one a mask, got \(2, 2\)"):
        PointAccuracy().update(torch.zeros(2, 2), mask)


def test_counts_keep_leading_axes():
    preds, target = draw()
    intersection, union = intersection_and_union(preds.reshape(2, 3, 5, 7), target.reshape(2, 3, 5, 7))
    assert [(int(i), int(u)) for i, u in zip(intersection.flatten(), union.flatten(), strict=True)] == [
        pixels(p, t) for p, t in zip(preds, target, strict=True)
    ]
