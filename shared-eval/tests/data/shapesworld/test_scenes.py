"""Pictures and masks of scenes against formulas of the shapes, against each other, and against pinned hashes."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from attn.shared_eval.data.shapesworld import (
    FAMILIES,
    Background,
    Scene,
    ScenesDataset,
    Shape,
    class_label,
    family,
    picture_tensors,
    render,
)
from attn.shared_eval.data.shapesworld.grammar import (
    COLORS,
    DISTRACTORS,
    HELD_OUT,
    KINDS,
    NEAR_COLORS,
    NEAR_KINDS,
    PARTNERS,
    PATTERNS,
    POPULAR,
    SPLITS,
    STYLES,
    TEXTURES,
)

GOLDEN = json.loads(Path(__file__).with_name("golden_pictures.json").read_text(encoding="utf-8"))


def scenes(name, count=24, split="test", **overrides):
    world = family(name, **overrides)
    return [world.scene(split, index) for index in range(count)]


def digest(drawn, size):
    total = sha256()
    for scene in drawn:
        picture = render(scene, size)
        total.update(picture.image.tobytes() + picture.labels.tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("size", [48, 64, 96])
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_pinned(name, size):
    assert digest(scenes(name, 64), size) == GOLDEN[f"{name} {size}"]


def test_looks_are_pinned():
    looks = [*scenes("basic", 8, clutter=4, overlap=True)]
    looks += [replace(scene, style=style) for scene, style in zip(scenes("marks", 8), STYLES, strict=True)]
    assert digest(looks, 384) == GOLDEN["looks 384"]
    assert digest(looks, 16) == GOLDEN["looks 16"]
    assert digest(scenes("basic", 6, backgrounds=TEXTURES), 64) == GOLDEN["textures 64"]


# Where a shape of radius 1 at the origin is, from its definition; y grows downward.
HALF = 2**-0.5
INSIDE = {
    "circle": lambda x, y: x**2 + y**2 < 1,
    "square": lambda x, y: (abs(x) < HALF) & (abs(y) < HALF),
    "triangle": lambda x, y: (y < 0.5) & (y > 3**0.5 * abs(x) - 1),
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) < (np.maximum(abs(x), abs(y)) < 0.94) * 0.305,
    "diamond": lambda x, y: abs(x) / 0.635 + abs(y) < 1,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.525**2),
    "ellipse": lambda x, y: x**2 + (y * 16 / 9) ** 2 < 1,
    "hexagon": lambda x, y: (abs(y) < 0.866) & (abs(y) < 3**0.5 * (1 - abs(x))),
    "arrow": lambda x, y: (
        ((x > 700 / 4096) & (abs(y) < (1 - x) * 2900 / 3396)) | ((abs(y) < 0.281) & (x > -0.903) & (x < 0.2))
    ),
}


@pytest.mark.parametrize("angle", [0, 5, 64])
@pytest.mark.parametrize("kind", INSIDE)
def test_a_mask_is_the_shape_of_its_definition(kind, angle):
    size, x, y, r = 128, 0.45, 0.55, 0.35
    shape = Shape(kind, "red", "large", x, y, r, angle=angle)
    mask = render(Scene((shape,)), size).masks()[0]
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    turn = 2 * np.pi * angle / 128
    u, v = (columns - x) / r, (rows - y) / r
    expected = INSIDE[kind](u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn))
    assert (mask != expected).mean() < 0.011  # of 16,384 pixels; outlines are 250 to 500 pixels long
    assert abs(mask.sum() / expected.sum() - 1) < 0.04


@pytest.mark.parametrize("pattern", PATTERNS[1:])
@pytest.mark.parametrize("color", COLORS)
def test_a_patterned_shape_keeps_its_outline_before_any_grey(color, pattern):
    size, middle, r = 96, 47.5, 0.3
    shape = Shape("circle", color, "large", 0.5, 0.5, r, pattern=pattern)
    image = render(Scene((shape,), Background(base=(150, 150, 150))), size).image.astype(int)
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - middle, columns - middle) / size
    rim = image[(distance < r - 1.5 / size) & (distance > r - 2.5 / size)]
    assert (abs(rim - COLORS[color]).max(-1) < 24).mean() > 0.9
    inside = image[distance < 0.8 * r]
    other = abs(inside - COLORS[color]).max(-1) > 40  # what the pattern adds
    assert 0.15 < other.mean() < 0.7
    greys = inside[other & (np.ptp(inside, axis=-1) < 20)][:, 0]  # the backgrounds' are 108 to 180
    assert not ((greys > 108) & (greys < 180)).any()


def test_the_same_scene_at_any_size():
    for scene in scenes("basic", 6):
        small, large = (render(scene, size).masks().mean((1, 2)) for size in (96, 384))
        np.testing.assert_allclose(small, large, atol=2e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_boxes_and_runs_agree(name):
    for scene in scenes(name, 6, overlap=name == "basic"):
        picture = render(scene, 64)
        masks, amodal, extents = picture.masks(), picture.amodal_masks(), picture.extents()
        assert masks.shape == amodal.shape == (len(scene.objects), 64, 64)
        assert masks.sum(0).max() <= 1
        np.testing.assert_array_equal(picture.labels > 0, amodal.any(0))
        assert (masks <= amodal).all()
        assert (amodal <= extents).all()
        for i, (mask, box, rle) in enumerate(zip(masks, picture.boxes(), picture.rle(), strict=True)):
            hidden = amodal[i] & ~mask
            np.testing.assert_array_equal(hidden, amodal[i] & amodal[i + 1 :].any(0))
            pixels = [(r, c) for r in range(64) for c in range(64) if mask[r, c]]
            rows, columns = zip(*pixels, strict=True)
            assert box.tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
            flat = [value for n, value in zip(rle["counts"], [0, 1] * 4096, strict=False) for _ in range(n)]
            np.testing.assert_array_equal(np.array(flat).reshape(64, 64).T, mask)


def test_objects_alone_change_their_extent_alone():
    for scene in scenes("basic", 10, objects=(2, 4), overlap=True):
        without = replace(scene, objects=scene.objects[1:])
        changed = (render(scene, 64).image != render(without, 64).image).any(-1)
        assert changed.any()
        assert not (changed & ~render(scene, 64).extents()[0]).any()


def test_patch_labels_count_pixels():
    picture = render(family("small").scene("test", 3), 96)
    labels = picture.patch_labels(8)
    for row in range(12):
        for column in range(12):
            patch = picture.labels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            counts = [(patch == i + 1).sum() for i in range(len(picture.scene.objects))]
            most = int(np.argmax(counts))
            expected = most if counts[most] >= 16 else -1
            assert labels.object[row, column] == expected
            if expected >= 0:
                shape = picture.scene.objects[expected]
                assert list(COLORS)[labels.color[row, column]] == shape.color
                assert KINDS[labels.kind[row, column]] == shape.kind
            else:
                assert labels.color[row, column] == labels.kind[row, column] == -1
    assert (render(Scene(()), 64).patch_labels(16).object == -1).all()


def test_colors_are_those_of_the_words():
    for color, levels in COLORS.items():
        picture = render(Scene((Shape("square", color, "large", 0.5, 0.5, 0.4, tint=(4, -4, 8)),)), 64)
        assert picture.image[32, 32].tolist() == [
            min(255, max(0, level + change)) for level, change in zip(levels, (4, -4, 8), strict=True)
        ]
    assert np.ptp(render(replace(scenes("basic", 1)[0], style="grey"), 64).image, axis=-1).max() == 0


def test_eight_levels_of_movement_show_within_a_pixel():
    x = [0.5 + step / 128 for step in range(9)]
    sums = [render(Scene((Shape("square", "white", "medium", at, 0.5, 0.2),)), 16).image[8, :8].sum() for at in x]
    assert len(set(sums)) == 9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scene_depends_on_its_key_alone(name):
    world = family(name)
    forward = [world.scene("val", index) for index in range(8)]
    backward = [world.scene("val", index) for index in reversed(range(8))]
    assert forward == backward[::-1]
    assert [Scene.from_json(scene.to_json()) for scene in forward] == forward
    others = [world.scene(split, 0, seed=seed).objects for split in SPLITS for seed in range(2)]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_finds_room(name):
    for clutter in (0, 4):
        for scene in scenes(name, 150, "train", clutter=clutter):
            for i, shape in enumerate(scene.objects):
                assert shape.r < shape.x < 1 - shape.r
                assert shape.r < shape.y < 1 - shape.r
                for other in scene.objects[:i]:
                    assert (shape.x - other.x) ** 2 + (shape.y - other.y) ** 2 > (shape.r + other.r) ** 2


def test_clutter_leaves_the_objects_alone():
    levels = [scenes("small", 20, clutter=level) for level in range(5)]
    for index, plain in enumerate(levels[0]):
        for level, drawn in enumerate(levels):
            scene = drawn[index]
            count = len(plain.objects)
            assert scene.objects[:count] == plain.objects
            assert 0 <= len(scene.objects) - count <= DISTRACTORS[level]
            assert not {s.kind for s in scene.objects[count:]} & {s.kind for s in plain.objects}
    mean = [np.mean([len(s.objects) for s in drawn]) for drawn in levels]
    assert mean == sorted(mean)


def test_overlapping_objects_stay_visible():
    overlapping = 0
    for scene in scenes("basic", 40, objects=(4, 5), overlap=True):
        picture = render(scene, 64)
        share = picture.masks().sum((1, 2)) / picture.amodal_masks().sum((1, 2))
        assert (share >= 0.6).all()
        overlapping += (share < 1).any()
    assert overlapping > 10


def test_pairs_are_held_out():
    assert len({k for k, _ in HELD_OUT}) == 12
    assert {c for _, c in HELD_OUT} == set(COLORS)
    for name in ("basic", "small", "marks", "grid", "pairs", "cooccur", "two_of_a_kind"):
        seen = {(s.kind, s.color) for scene in scenes(name, 60, pairs="seen", clutter=2) for s in scene.objects}
        assert not seen & set(HELD_OUT), name
    held = {(s.kind, s.color) for scene in scenes("basic", 60, pairs="held_out") for s in scene.objects}
    assert held == set(HELD_OUT)


def test_families_are_what_they_say():
    for scene in scenes("related"):
        kinds, colors = ({getattr(s, field) for s in scene.objects} for field in ("kind", "color"))
        assert kinds in [set(pair) for pair in NEAR_KINDS]
        assert colors in [set(pair) for pair in NEAR_COLORS]
    labels = set()
    for scene in scenes("dual", 60, clutter=3):
        red, blue = sorted(scene.objects[:2], key=lambda s: s.color, reverse=True)
        assert (red.color, blue.color, red.r) == ("red", "blue", blue.r)
        assert scene.objects[scene.target] is red
        assert not {"red", "blue"} & {s.color for s in scene.objects[2:]}
        labels.add(class_label(scene))
    assert labels == set(range(4))
    assert {class_label(scene) for scene in scenes("classify", 100)} == set(range(12))
    for scene in scenes("marks"):
        assert all(s.mark for s in scene.objects)
    for grid in ((3, 9), (4, 8)):
        for scene in scenes("grid", 6, grid=grid):
            target = scene.objects[scene.target]
            alike = [(s.kind == target.kind) + (s.color == target.color) for s in scene.objects]
            assert alike.count(2) == 1
            assert 0.06 <= alike.count(1) / len(alike) <= 0.1
            assert len({s.x for s in scene.objects}) == grid[1]
    for scene in scenes("two_of_a_kind"):
        kinds = [s.kind for s in scene.objects]
        (kind,) = {kind for kind in kinds if kinds.count(kind) == 2}
        left, right = sorted(s.x for s in scene.objects if s.kind == kind)
        assert left < 0.31 < 0.69 < right
    for scene in scenes("pairs"):
        assert len({s.kind for s in scene.objects}) == len({s.color for s in scene.objects}) == len(scene.objects)


def test_partners_come_together_more_often_in_training():
    shares = []
    for split in ("train", "test"):
        kinds = [[s.kind for s in scene.objects] for scene in scenes("cooccur", 400, split)]
        assert all(len(set(k)) == len(k) for k in kinds)
        together = [PARTNERS[kind] in k for k in kinds for kind in POPULAR if kind in k]
        shares.append(np.mean(together))
        assert all(PARTNERS[kind] in k for k in kinds for kind in k if kind not in POPULAR)
    np.testing.assert_allclose(shares, [0.7, 0.35], atol=0.04)


def test_a_data_set_is_the_same_for_any_number_of_workers():
    data = ScenesDataset(family("basic"), "train", 12, size=48, item=picture_tensors)
    alone = [data[i]["image"] for i in range(12)]
    loaded = list(DataLoader(data, batch_size=None, num_workers=2))
    assert torch.equal(torch.stack(alone), torch.stack([item["image"] for item in loaded]))
    streamed = {}
    for rank in range(2):
        items = iter(data.stream(start=4, rank=rank, world_size=2))
        for item in (next(items) for _ in range(4)):
            streamed[int(item["index"])] = item["image"]
    assert sorted(streamed) == list(range(4, 12))
    assert all(torch.equal(alone[index], image) for index, image in streamed.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: family("nothing"), "family must be one of basic, .*, got 'nothing'"),
        (lambda: family("basic", kinds=("blob",)), r"kinds must be some of circle, .*, got \('blob',\)"),
        (lambda: family("basic", clutter=5), "clutter must be some of 0, 1, 2, 3, 4, got"),
        (lambda: family("basic", objects=(3, 2)), "objects must be two numbers 0 <= low <= high, got"),
        (lambda: family("basic", pairs="some"), "pairs must be one of all, seen, held_out, got 'some'"),
        (lambda: family("basic", kinds=("moon",), colors=("red",), pairs="seen"), "pairs must leave some of kinds"),
        (lambda: family("basic", style_share=float("nan")), r"style_share must lie in \[0, 1\], got nan"),
        (lambda: family("grid", grid=(0, 3)), "grid must be two numbers in 1 .. 16, got"),
        (lambda: family("grid", kinds=("star",), colors=("red",)).scene("test", 0), "kinds and colors must leave"),
        (lambda: family("basic", sizes=("large",), objects=(9, 9)).scene("test", 0), "objects must leave room"),
        (lambda: family("basic").scene("dev", 0), "split must be one of train, .*, got 'dev'"),
        (lambda: family("basic").scene("test", -1), "index must not be negative, got -1"),
        (lambda: class_label(Scene(())), "scene must be of the family classify or dual, got none"),
        (lambda: Shape("blob", "red", "small", 0, 0, 0.1), "kind must be one of circle, .*, got 'blob'"),
        (lambda: Shape("star", "mauve", "small", 0, 0, 0.1), "color must be one of red, .*, got 'mauve'"),
        (lambda: Shape("star", "red", "huge", 0, 0, 0.1), "size must be one of small, .*, got 'huge'"),
        (lambda: Shape("star", "red", "small", 0, 0, 0.1, "wavy"), "pattern must be one of plain, .*, got 'wavy'"),
        (lambda: Shape("star", "red", "small", 0, 0, 0.1, mark="x"), "mark must be one of digit 0, .*, got 'x'"),
        (lambda: Shape("star", "red", "small", 0, 0, 0.0), r"r must lie in \(0, 0.5\], got 0.0"),
        (lambda: Background("sky"), "kind must be one of plain, .*, got 'sky'"),
        (lambda: Background(palette=("mauve",)), "palette must be one of red, .*, got 'mauve'"),
        (lambda: Scene((), style="gloomy"), "style must be one of dark, .*, got 'gloomy'"),
        (lambda: Scene((), target=0), r"target must lie in 0 .. -1, got 0"),
        (lambda: render(Scene(()), 4), "size must be at least 8, got 4"),
        (lambda: render(Scene((Shape("star", "red", "small", 0, 0, 0.1),) * 255), 8), "at most 254 objects, got 255"),
        (lambda: render(Scene(()), 64).patch_labels(7), "patch must divide the picture's size 64, got 7"),
        (lambda: ScenesDataset(family("basic"), "test", -1, size=8, item=picture_tensors), "count must not be neg"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_settings_and_indices_are_refused():
    with pytest.raises(TypeError, match=r"overrides must be some of .*, got colour"):
        family("basic", colour="red")
    with pytest.raises(IndexError, match=r"index must lie in 0 .. 1, got 2"):
        ScenesDataset(family("basic"), "test", 2, size=8, item=picture_tensors)[2]
