"""Recall of proposals: a greedy matching by loops, crowds, ties of COCOeval's conventions, masks as boxes."""

import math

import pytest
import torch

from attn.shared_eval.metrics import ClassAgnosticRecall, detection, matched_objects

THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def draw(seed, found=12, true=5):
    generator = torch.Generator().manual_seed(seed)

    def boxes(count):
        corner = 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return torch.cat([corner, corner + 4 + 12 * torch.rand(count, 2, generator=generator)], dim=1)

    target = boxes(true)
    near = target.repeat(3, 1)[:found] + torch.randn(min(found, 3 * true), 4, generator=generator)
    preds = torch.cat([near, boxes(found - len(near))])
    return {"boxes": preds, "scores": torch.rand(found, generator=generator)}, {"boxes": target}


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def greedy(preds, target, threshold, most):
    order = sorted(range(len(preds["scores"])), key=lambda i: -float(preds["scores"][i]))[:most]
    free = set(range(len(target["boxes"])))
    found = 0
    for i in order:
        ious = {j: iou(preds["boxes"][i].tolist(), target["boxes"][j].tolist()) for j in free}
        best = max(ious, key=ious.get, default=None)
        if best is not None and ious[best] >= threshold:
            free.remove(best)
            found += 1
    return found


def test_recall_equals_greedy_matching_by_loops():
    images = [draw(seed) for seed in range(4)]
    metric = ClassAgnosticRecall(max_detections=(1, 3, 100))
    metric.update([preds for preds, _ in images[:1]], [target for _, target in images[:1]])
    metric.update([preds for preds, _ in images[1:]], [target for _, target in images[1:]])
    recall = {
        most: [sum(greedy(*image, threshold, most) for image in images) / 20 for threshold in THRESHOLDS]
        for most in (1, 3, 100)
    }
    expected = {f"ar_{most}": sum(values) / 10 for most, values in recall.items()}
    expected |= {"ar50": recall[100][0], "ar75": recall[100][5]}
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures == pytest.approx(expected)
    assert 0 < figures["ar_1"] < figures["ar_3"] < figures["ar_100"] < figures["ar50"]


def test_a_crowd_is_neither_counted_nor_held_against_a_detection():
    preds, target = draw(0)
    crowded = target | {"iscrowd": torch.tensor([1, 0, 0, 0, 0])}
    without = {"boxes": target["boxes"][1:]}
    preds = {"boxes": target["boxes"], "scores": torch.ones(5)}
    matches, objects = matched_objects(preds, crowded)
    assert objects == 4
    assert int(matches[-1, 0]) == int(matched_objects(preds, without)[0][-1, 0]) == 4


def test_masks_are_compared_by_pixels():
    true = torch.zeros(2, 8, 8, dtype=torch.bool)
    true[0, :4, :4], true[1, 4:, 4:] = True, True
    found = true.clone()
    found[0, 0, 0] = False  # 15 of 16 pixels
    found[1, 4:6] = False  # 8 of 16
    matches, objects = matched_objects(
        {"masks": found, "scores": torch.tensor([0.9, 0.8])}, {"masks": true}, iou_type="segm"
    )
    assert objects == 2
    assert matches[-1].tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1, 0]


def test_nothing_found_and_nothing_there():
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    preds, target = draw(0)
    metric = ClassAgnosticRecall()
    metric.update([none], [target])
    assert float(metric.compute()["ar_100"]) == 0
    empty = ClassAgnosticRecall()
    empty.update([preds, none], [{"boxes": torch.zeros(0, 4)}] * 2)
    assert math.isnan(empty.compute()["ar_100"])


def test_errors(monkeypatch):
    preds, target = draw(0)
    with pytest.raises(ValueError, match="iou_type must be bbox or segm, got 'keypoints'"):
        ClassAgnosticRecall("keypoints")
    with pytest.raises(ValueError, match=r"max_detections must hold positive numbers, got \(0, 1\)"):
        ClassAgnosticRecall(max_detections=(0, 1))
    with pytest.raises(ValueError, match="preds must have boxes, scores, got boxes"):
        matched_objects({"boxes": preds["boxes"]}, target)
    with pytest.raises(ValueError, match="target must have masks, got boxes"):
        matched_objects({"masks": torch.ones(1, 2, 2).bool(), "scores": torch.ones(1)}, target, iou_type="segm")
    with pytest.raises(ValueError, match="preds must have a score for each of 12 boxes, got 1"):
        matched_objects(preds | {"scores": torch.ones(1)}, target)
    with pytest.raises(ValueError, match=r"boxes must be of shape \(number, 4\), got \(5, 3\)"):
        matched_objects(preds, {"boxes": target["boxes"][:, :3]})
    with pytest.raises(ValueError, match=r"masks must be bool of shape .* got torch.float32 \(1, 2, 2\)"):
        matched_objects(
            {"masks": torch.ones(1, 2, 2), "scores": torch.ones(1)}, {"masks": torch.ones(1, 2, 2)}, iou_type="segm"
        )
    with pytest.raises(ValueError, match="preds and target must be of equal length, got 1 and 0"):
        ClassAgnosticRecall().update([preds], [])
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.cocoeval", None)
    with pytest.raises(ModuleNotFoundError, match=r"install attn-shared-eval\[coco\]"):
        detection.matched_objects(preds, target)
