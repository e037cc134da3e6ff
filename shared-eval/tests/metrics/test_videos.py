"""J and F of videos: contours by loops over pixels, hand-made masks, frames and objects averaged in that order."""

import math

import pytest
import torch

from attn.shared_eval.metrics import JAndF, contour_accuracy


def contour(mask):
    """Pixels that differ from the right, the lower or the lower right neighbor, if there is one."""
    height, width = mask.shape
    pixels = []
    for y in range(height):
        for x in range(width):
            neighbors = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(j < height and i < width and mask[j, i] != mask[y, x] for j, i in neighbors):
                pixels.append((y, x))
    return pixels


def f_by_loops(pred, target, radius):
    found, true = contour(pred), contour(target)
    if not found or not true:
        return float(not found and not true)

    def near(pixel, others):
        return any((pixel[0] - y) ** 2 + (pixel[1] - x) ** 2 <= radius**2 for y, x in others)

    precision = sum(near(pixel, true) for pixel in found) / len(found)
    recall = sum(near(pixel, found) for pixel in true) / len(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(("tolerance", "radius"), [(0.008, 1), (0.12, 3)])
def test_contour_accuracy_equals_loops_over_pixels(tolerance, radius):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(8, 1, 17, 21, generator=generator), 5, 1)[:, 0]
    preds, target = smooth[:4] > 0.5, smooth[4:] > 0.5  # 13 x 17: a diagonal of 21.4
    preds[0], target[1] = False, True
    expected = [f_by_loops(*pair, radius) for pair in zip(preds, target, strict=True)]
    assert contour_accuracy(preds, target, tolerance=tolerance).tolist() == pytest.approx(expected)
    assert len(set(expected)) > 2


def square(left, top, side=8, size=24):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_contours_within_the_tolerance_match():
    target = square(8, 8)
    near = contour_accuracy(
        torch.stack([square(8, 8), square(9, 8), square(8, 12), square(0, 0, 4)]), target.repeat(4, 1, 1)
    )
    assert near[:2].tolist() == [1, 1]  # a pixel aside is within 0.008 of the diagonal, rounded up
    assert 0 < near[2] < 1
    assert near[3] == 0
    nothing, whole = torch.zeros(24, 24, dtype=torch.bool), torch.ones(24, 24, dtype=torch.bool)
    assert float(contour_accuracy(nothing, nothing)) == 1
    assert float(contour_accuracy(whole, nothing)) == 1  # neither has a contour
    assert float(contour_accuracy(target, nothing)) == 0


def test_frames_are_averaged_before_objects():
    target = square(8, 8)
    nothing = torch.zeros_like(target)
    metric = JAndF()
    metric.update(
        [torch.stack([target]), torch.stack([target, nothing, nothing, nothing])],
        [torch.stack([target]), torch.stack([target, target, target, nothing])],
    )
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures == {"j": 0.75, "f": 0.75, "j_and_f": 0.75, "objects": 2}  # (1 + (1 + 0 + 0 + 1) / 4) / 2


def test_j_and_f_differ_and_are_averaged():
    target = square(8, 8)
    metric = JAndF()
    metric.update([square(9, 8)[None]], [target[None]])
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures["j"] == pytest.approx(56 / 72)
    assert figures["f"] == 1
    assert figures["j_and_f"] == pytest.approx((56 / 72 + 1) / 2)


def test_the_ends_can_be_left_out():
    target, nothing = square(8, 8), torch.zeros(24, 24, dtype=torch.bool)
    metric = JAndF(ends=False)
    metric.update([torch.stack([nothing, target, nothing])], [target.repeat(3, 1, 1)])
    assert float(metric.compute()["j_and_f"]) == 1


def test_errors_and_nothing():
    metric = JAndF()
    metric.update([], [])
    assert math.isnan(metric.compute()["j"])
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match="preds and target must be bool, got torch"):
        contour_accuracy(masks, masks.byte())
    with pytest.raises(ValueError, match=r"must have one shape .*, got \(2, 4, 4\) and \(4, 4\)"):
        contour_accuracy(masks, masks[0])
    with pytest.raises(ValueError, match="preds and target must be of equal length, got 1 and 0"):
        JAndF().update([masks], [])
    with pytest.raises(
        ValueError, match=r"preds must have 3 frames or more \(frames, height, width\), got \(2, 4, 4\)"
    ):
        JAndF(ends=False).update([masks], [masks])
    with pytest.raises(ValueError, match="preds must have 1 frames or more"):
        JAndF().update([masks[0]], [masks[0]])
