"""Masks as polygons and back, exactly, by the rasterisers of both conventions."""

import sys

import numpy as np
import pytest
from pycocotools import mask as mask_library

from attn.shared_eval.data.benchmarks import decode_segmentation, polygons
from attn.shared_eval.data.benchmarks.reasonseg import paint
from attn.shared_eval.data.shapesworld import family, render

# polylines and fillPoly of OpenCV 4.14.0.
CONVEX = [
    "................",
    ".####...........",
    ".##########.....",
    ".##############.",
    ".#############..",
    "..############..",
    "..###########...",
    "..##########....",
    "..##########....",
    "....#######.....",
    "......#####.....",
    "........##......",
]
CROSSING = [
    "............#...",
    "...........##...",
    "..........##.###",
    "........#######.",
    "...###########..",
    "#########.##....",
    ".#######.##.....",
    "..#####.##......",
    "...###.##.......",
    ".....####.......",
    "....####........",
    "...#...#........",
]


def masks():
    generator = np.random.default_rng(0)
    yield from (generator.random((9, 12)) < share for share in (0.2, 0.5, 0.8, 0.95) for _ in range(8))
    for name in ("basic", "small", "marks"):
        for index in range(4):
            yield from render(family(name, overlap=True).scene("test", index), 64).masks()
    yield np.ones((3, 5), dtype=bool)
    yield np.zeros((3, 5), dtype=bool)
    frame = np.ones((7, 7), dtype=bool)
    frame[1:-1, 1:-1] = False
    frame[3, 3] = True
    yield frame


def test_polygons_of_corners_decode_to_the_mask():
    for mask in masks():
        flat = [outline.ravel().tolist() for outline in polygons(mask)]
        np.testing.assert_array_equal(decode_segmentation(flat, *mask.shape), mask)


def test_polygons_of_centers_paint_the_mask():
    for mask in masks():
        painted = np.zeros_like(mask)
        for outline in polygons(mask, through_centers=True):
            assert mask[outline[:, 1], outline[:, 0]].all()
            painted |= paint(outline, *mask.shape)
        np.testing.assert_array_equal(painted, mask)


@pytest.mark.parametrize(
    ("points", "rows"),
    [
        ([[1, 1], [14, 3], [9, 11], [2, 8]], CONVEX),
        ([[0, 5], [15, 2], [3, 11], [12, 0], [7, 11]], CROSSING),
        ([[4, 4], [4, 4], [11, 4]], ["." * 16] * 4 + ["....########...."] + ["." * 16] * 7),
    ],
)
def test_polygons_are_painted_as_opencv_paints_them(points, rows):
    painted = paint(np.array(points), 12, 16)
    assert ["".join(".#"[pixel] for pixel in row) for row in painted.astype(int).tolist()] == rows


def test_what_lies_outside_the_picture_is_not_painted():
    points = np.array([[-3, -3], [20, -3], [20, 4], [-3, 4]])
    painted = paint(points, 6, 8)
    assert painted[:5].all()
    assert not painted[5:].any()


def test_polygons_do_not_overlap_and_have_corners_only():
    for mask in masks():
        total = np.zeros(mask.shape, dtype=int)
        for outline in polygons(mask):
            total += decode_segmentation([outline.ravel().tolist()], *mask.shape)
            turns = np.diff(np.concatenate([outline, outline[:2]]), axis=0)
            assert ((turns == 0).sum(1) == 1).all()
            assert ((turns[1:] == 0) != (turns[:-1] == 0)).all()
        assert total.max(initial=0) <= 1


def test_run_lengths_decode_to_the_mask():
    picture = render(family("basic").scene("test", 0), 32)
    for mask, code in zip(picture.masks(), picture.rle(), strict=True):
        np.testing.assert_array_equal(decode_segmentation(code, 32, 32), mask)
        compressed = mask_library.encode(np.asfortranarray(mask.astype(np.uint8)))
        np.testing.assert_array_equal(decode_segmentation(compressed, 32, 32), mask)


@pytest.mark.parametrize("wrong", [None, "runs", [[0, 0, 1, 1]], [3, 4], {"counts": [4]}])
def test_other_codes_are_refused(wrong):
    with pytest.raises(ValueError, match="segmentation must be a list of polygons of three points or more"):
        decode_segmentation(wrong, 4, 4)


def test_another_size_and_a_missing_library_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"segmentation must have the size \[4, 5\], got \[5, 4\]"):
        decode_segmentation({"size": [5, 4], "counts": [20]}, 4, 5)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ModuleNotFoundError, match=r"install attn-shared-eval\[coco\]"):
        decode_segmentation([], 4, 4)
