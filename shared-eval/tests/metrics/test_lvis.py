"""LVIS's AP: the ranking by loops, the federated rules one by one, and figures of the published scorer."""

import math

import numpy as np
import pytest
import torch

from attn.shared_eval.metrics import LvisFixedAP

FREQUENCIES = {1: "r", 4: "c", 7: "f", 9: "f"}
THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def draw(seed, found=9, true=4):
    generator = torch.Generator().manual_seed(seed)
    categories = torch.tensor([1, 4, 7])

    def boxes(count):
        corner = 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return torch.cat([corner, corner + 4 + 12 * torch.rand(count, 2, generator=generator)], dim=1)

    target = boxes(true)
    labels = categories[torch.randint(3, (true,), generator=generator)]
    near = target.repeat(2, 1)[:found] + torch.randn(min(found, 2 * true), 4, generator=generator)
    preds = torch.cat([near, boxes(found - len(near))])
    near_labels = labels.repeat(2)[: len(near)]
    other = categories[torch.randint(3, (found - len(near),), generator=generator)]
    return (
        {
            "boxes": preds,
            "scores": torch.rand(found, generator=generator),
            "labels": torch.cat([near_labels, other]),
        },
        {
            "boxes": target,
            "labels": labels,
            "negative": categories[torch.rand(3, generator=generator) < 0.5],
            "not_exhaustive": categories[torch.rand(3, generator=generator) < 0.3],
        },
    )


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def average_precision(images, category, threshold, most):
    """None without objects."""
    objects = sum(int((target["labels"] == category).sum()) for _, target in images)
    if not objects:
        return None
    ranked = []
    for number, (preds, _) in enumerate(images):
        ranked += [
            (-float(preds["scores"][i]), number, i) for i, c in enumerate(preds["labels"].tolist()) if c == category
        ]
    free = {
        (number, i)
        for number, (_, target) in enumerate(images)
        for i, c in enumerate(target["labels"].tolist())
        if c == category
    }
    points, right, wrong = [(0.0, 0.0)], 0, 0
    for _, number, i in sorted(ranked)[:most]:
        preds, target = images[number]
        if category not in target["labels"].tolist() + target["negative"].tolist():
            continue
        overlaps = {
            key: iou(preds["boxes"][i].tolist(), target["boxes"][key[1]].tolist()) for key in free if key[0] == number
        }
        best = max(overlaps, key=overlaps.get, default=None)
        if best is not None and overlaps[best] >= threshold:
            free.remove(best)
            right += 1
        elif category in target["not_exhaustive"].tolist():
            continue
        else:
            wrong += 1
        points.append((right / objects, right / (right + wrong)))
    levels = np.linspace(0, 1, 101)  # the release compares with these floats, of which that of 0.7 exceeds 7 / 10
    return sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 101


@pytest.mark.parametrize("most", [3, 10_000])
def test_figures_equal_ranking_by_loops(most):
    images = [draw(seed) for seed in range(6)]
    metric = LvisFixedAP(FREQUENCIES, most=most)
    for image in images:
        metric.update([image[0]], [image[1]])
    figures = {name: float(value) for name, value in metric.compute().items()}
    table = {c: [average_precision(images, c, t, most) for t in THRESHOLDS] for c in (1, 4, 7)}
    means = {c: sum(row) / 10 for c, row in table.items()}
    expected = {
        "ap": sum(means.values()) / 3,  # category 9 has no objects
        "ap50": sum(row[0] for row in table.values()) / 3,
        "ap75": sum(row[5] for row in table.values()) / 3,
        "ap_r": means[1],
        "ap_c": means[4],
        "ap_f": means[7],
    }
    assert figures == pytest.approx(expected, abs=1e-12)
    assert 0 < figures["ap"] < figures["ap50"] < 1


BOX = torch.tensor([[2.0, 2.0, 12.0, 10.0]])
ELSEWHERE = torch.tensor([[30.0, 30.0, 40.0, 40.0]])


def found(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return {"boxes": torch.cat(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def truth(labels=(1,), negative=(), not_exhaustive=()):
    return {
        "boxes": BOX.repeat(len(labels), 1),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "negative": torch.tensor(negative, dtype=torch.int64),
        "not_exhaustive": torch.tensor(not_exhaustive, dtype=torch.int64),
    }


def ap(*images, **options):
    metric = LvisFixedAP({1: "r", 2: "f"}, **options)
    metric.update([preds for preds, _ in images], [target for _, target in images])
    return float(metric.compute()["ap"])


def test_the_federated_rules():
    right, wrong = found((BOX, 0.5, 1)), found((ELSEWHERE, 0.9, 1))
    annotated = (right, truth())
    assert ap(annotated) == 1
    # A false alarm ahead of the right one halves the precision, unless nobody knows that it is false.
    assert ap(annotated, (wrong, truth(labels=(), negative=(1,)))) == 0.5
    assert ap(annotated, (wrong, truth(labels=()))) == 1
    both = found((BOX, 0.5, 1), (ELSEWHERE, 0.9, 1))
    assert ap((both, truth())) == 0.5
    assert ap((both, truth(not_exhaustive=(1,)))) == 1
    # Another category does not match.
    assert ap((found((BOX, 0.9, 2)), truth())) == 0


def test_the_best_detections_are_taken_over_all_images():
    crowd = found(*((ELSEWHERE, 0.9 - i / 10_000, 1) for i in range(400)))
    # More than 300 of one image, which nobody can judge, and still among the most.
    images = (crowd, truth(labels=())), (found((BOX, 0.1, 1)), truth())
    assert ap(*images) == 1
    assert ap(*images, most=401) == 1
    assert ap(*images, most=400) == 0


def test_masks_are_compared_by_pixels_and_boxes_are_not_looked_at():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = True
    seen = mask.clone()
    seen[0, 0, :2] = False  # 14 of 16 pixels: right up to the threshold 0.85
    preds = {"masks": seen, "boxes": ELSEWHERE, "scores": torch.ones(1), "labels": torch.tensor([1])}
    assert ap((preds, truth() | {"masks": mask}), iou_type="segm") == pytest.approx(8 / 10)


PUBLISHED = {
    "ap": 0.2862174086,
    "ap50": 0.7031005742,
    "ap75": 0.1497843704,
    "ap_r": 0.3129919893,
    "ap_c": 0.2811340192,
    "ap_f": 0.2645262172,
}


def test_figures_of_the_published_scorer():
    """The release's LVISEval (commit 7d7f07d) with the 10,000 best of each category and no limit per image."""
    metric = LvisFixedAP(FREQUENCIES)
    preds, target = zip(*(draw(seed, found=14, true=6) for seed in range(100, 112)), strict=True)
    metric.update(preds, target)
    assert {name: round(float(value), 10) for name, value in metric.compute().items()} == PUBLISHED


def test_without_objects_figures_are_undefined():
    metric = LvisFixedAP({1: "r", 2: "f"})
    metric.update([], [])
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update([{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}], [truth()])
    assert float(metric.compute()["ap_r"]) == 0
    assert math.isnan(metric.compute()["ap_f"])


def test_errors():
    with pytest.raises(ValueError, match="iou_type must be bbox or segm, got 'keypoints'"):
        LvisFixedAP({1: "r"}, "keypoints")
    with pytest.raises(ValueError, match="frequencies must be r, c or f, got 'x'"):
        LvisFixedAP({1: "x"})
    with pytest.raises(ValueError, match="most must be positive, got 0"):
        LvisFixedAP({1: "r"}, most=0)
    metric = LvisFixedAP({1: "r"})
    with pytest.raises(ValueError, match="preds and target must be of equal length, got 1 and 0"):
        metric.update([found((BOX, 0.5, 1))], [])
    with pytest.raises(ValueError, match="target must have boxes, labels, negative, not_exhaustive, got boxes, labels"):
        metric.update([found((BOX, 0.5, 1))], [{key: truth()[key] for key in ("boxes", "labels")}])
    with pytest.raises(ValueError, match="preds must have scores for each of 1 boxes, got 2"):
        metric.update([found((BOX, 0.5, 1)) | {"scores": torch.ones(2)}], [truth()])
    with pytest.raises(ValueError, match="labels of preds must be categories with a frequency, got 5"):
        metric.update([found((BOX, 0.5, 5))], [truth()])
