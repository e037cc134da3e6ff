"""Trees written from scenes and read back against the scenes; real entries of the releases; malformed trees."""

import io
import json
import os
import pickle
import re
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from attn.shared_eval.data.benchmarks import (
    AmberDescription,
    AmberQuestion,
    amber,
    coco,
    lvis,
    pie,
    pope,
    read_amber,
    read_coco,
    read_lvis,
    read_pie,
    read_pope,
    read_reasonseg,
    read_refcoco,
    reasonseg,
    refcoco,
    write_amber,
    write_coco,
    write_lvis,
    write_pie,
    write_pope,
    write_reasonseg,
    write_refcoco,
)
from attn.shared_eval.data.shapesworld import caption, edits, family, referring, render
from attn.shared_eval.data.shapesworld.grammar import HELD_OUT, KINDS, PARTNERS
from attn.shared_eval.metrics import AmberWords, LvisFixedAP

SIZE = 48
SCENES = [family("basic", objects=(3, 5)).scene("test", index) for index in range(4)]


def edit(file, change):
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def close(path, scene):
    """Whether the file shows the scene, but for the losses of JPEG."""
    seen = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return abs(seen - render(scene, SIZE).image).mean() < 4


def test_coco_holds_what_the_scenes_hold(tmp_path):
    write_coco(tmp_path, SCENES, SIZE, "train2014")
    images = read_coco(tmp_path, "train2014", captions=True)
    assert [image.id for image in images] == [1, 2, 3, 4]
    for scene, image in zip(SCENES, images, strict=True):
        picture = render(scene, SIZE)
        assert close(image.path, scene)
        assert [entry.category for entry in image.objects] == [shape.kind for shape in scene.objects]
        np.testing.assert_array_equal(image.masks(), picture.masks())
        for entry, box, mask in zip(image.objects, picture.boxes(), picture.masks(), strict=True):
            assert entry.box == (*box[:2], *(box[2:] - box[:2]))
            assert entry.area == mask.sum()
            assert not entry.crowd
        assert len(image.captions) == 5
        assert image.captions[1] == caption(scene, variant=1).text
    assert not any(image.captions for image in read_coco(tmp_path, "train2014"))


def test_pycocotools_reads_the_tree_of_coco(tmp_path):
    write_coco(tmp_path, SCENES, SIZE)
    with redirect_stdout(io.StringIO()):
        library = COCO(tmp_path / "annotations" / "instances_val2014.json")
        said = COCO(tmp_path / "annotations" / "captions_val2014.json")
    assert [category["name"] for category in library.loadCats(library.getCatIds())] == list(KINDS)
    for number, scene in enumerate(SCENES, start=1):
        annotations = library.loadAnns(library.getAnnIds(imgIds=[number]))
        assert [KINDS[annotation["category_id"] - 1] for annotation in annotations] == [s.kind for s in scene.objects]
        assert len(said.getAnnIds(imgIds=[number])) == 5


def test_refcoco_has_a_sentence_for_every_expression(tmp_path):
    kinds = ("attribute", "relation", "superlative", "location")
    write_refcoco(tmp_path, {"val": SCENES[:2], "testA": SCENES[2:]}, SIZE)
    for split, scenes in (("val", SCENES[:2]), ("testA", SCENES[2:])):
        references = read_refcoco(tmp_path, "refcoco", split)
        expected = Counter((e.text, scene.index, e.target) for scene in scenes for e in referring(scene, kinds))
        found: Counter = Counter()
        for reference in references:
            (scene,) = (scene for scene in scenes if close(reference.path, scene))
            masks = render(scene, SIZE).masks()
            (target,) = (i for i, mask in enumerate(masks) if np.array_equal(mask, reference.mask()))
            found[reference.text, scene.index, target] += 1
            assert reference.exists
            assert reference.true_text is None
        assert found == expected
        assert len({reference.id for reference in references}) == len(references)


def test_false_premises_of_refcoco_have_an_empty_mask(tmp_path):
    write_refcoco(tmp_path, {"val": SCENES}, SIZE, split_by="berkeley", kinds=("attribute", "false_premise"))
    references = read_refcoco(tmp_path, "refcoco", "val", split_by="berkeley")
    false = [reference for reference in references if not reference.exists]
    assert 0 < len(false) < len(references)
    for reference in references:
        assert reference.mask().any() == reference.exists
    texts = {e.text for scene in SCENES for e in referring(scene, ["attribute"])}
    assert {reference.true_text for reference in false} <= {*texts, ""}


def test_variants_of_refcoco(tmp_path):
    write_refcoco(tmp_path, {"val": SCENES[:1]}, SIZE)
    file = tmp_path / "refcoco" / "refs(unc).p"
    refs = pickle.loads(file.read_bytes())
    first = refs[0]["sentences"][0]
    for annotations, sentence, exists in (
        ([1, 2], first, True),
        ([-1], first, False),
        (-1, first, False),
        (1, first | {"exist": False}, False),
        (1, {key: first[key] for key in ("sent_id", "sent")}, True),
    ):
        file.write_bytes(pickle.dumps([refs[0] | {"ann_id": annotations, "sentences": [sentence]}], protocol=0))
        (reference,) = read_refcoco(tmp_path, "refcoco", "val", images=tmp_path / "elsewhere")
        assert reference.exists == exists
        assert reference.path.parent == tmp_path / "elsewhere"
        if annotations == [1, 2]:
            np.testing.assert_array_equal(reference.mask(), render(SCENES[0], SIZE).masks()[:2].any(0))


def test_no_pickle_runs(tmp_path):
    write_refcoco(tmp_path, {"val": SCENES[:1]}, SIZE)

    class Run:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Run()]))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p must be a pickle of lists, .* got the class \w+\.mkdir"):
        read_refcoco(tmp_path, "refcoco", "val")
    assert not (tmp_path / "ran").exists()


def test_reasonseg_holds_the_masks(tmp_path):
    write_reasonseg(tmp_path, SCENES, SIZE)
    items = {item.name: item for item in read_reasonseg(tmp_path, "val")}
    assert items
    long = 0
    for scene in SCENES:
        item = items.get(f"basic_test_0_{scene.index}")
        said = referring(scene, ["reasoning", "attribute"])
        if item is None:
            assert not said
            continue
        assert item.texts == (said[0].text,)
        assert item.is_sentence == (said[0].kind == "reasoning")
        long += item.is_sentence
        assert close(item.path, scene)
        np.testing.assert_array_equal(item.target(), render(scene, SIZE).masks()[said[0].target])
        false = [e.text for e in referring(scene, ["false_premise"], each=2)]
        assert [premise.question for premise in item.false_premises] == false
    assert long


def test_small_polygons_of_reasonseg_lie_upon_large_ones(tmp_path):
    Image.new("RGB", (12, 10)).save(tmp_path / "a.jpg")

    def box(x0, y0, x1, y1):
        return [[x0 + 0.9, y0], [x1, y0], [x1, y1], [x0, y1 + 0.9]]

    shapes = [
        {"label": "target", "points": box(4, 3, 6, 5)},
        {"label": "Ignore", "points": box(2, 1, 9, 8)},
        {"label": "Flag", "points": box(0, 0, 11, 9)},
        {"label": "target", "points": box(0, 0, 10, 9)},
    ]
    text = {"text": ["the café"], "is_sentence": False, "shapes": shapes}
    (tmp_path / "a.json").write_text(json.dumps(text, ensure_ascii=False), encoding="cp1252")
    (item,) = read_reasonseg(tmp_path, ".")
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[0:10, 0:11] = 1
    expected[1:9, 2:10] = 255
    expected[3:6, 4:7] = 1
    np.testing.assert_array_equal(item.target(), expected)
    assert item.texts == ("the café",)
    assert item.false_premises == ()


def test_lvis_lists_what_is_absent(tmp_path):
    file = write_lvis(tmp_path, SCENES, SIZE)
    images, categories = read_lvis(file, tmp_path)
    names = {category.id: category.name for category in categories}
    assert len(categories) == 120
    assert {c.name for c in categories if c.frequency == "r"} == {f"{color}_{kind}" for kind, color in HELD_OUT}
    for scene, entry in zip(SCENES, images, strict=True):
        present = {f"{shape.color}_{shape.kind}" for shape in scene.objects}
        assert {o.category for o in entry.image.objects} == present
        assert len(entry.negative) == 10
        assert not {names[number] for number in entry.negative} & present
        assert close(entry.image.path, scene)
        np.testing.assert_array_equal(entry.image.masks(), render(scene, SIZE).masks())
    edit(file, lambda content: [annotation.pop("segmentation") for annotation in content["annotations"]])
    boxes_only = read_lvis(file, tmp_path)[0][0].image
    assert len(boxes_only.objects) == len(SCENES[0].objects)
    with pytest.raises(ValueError, match="segmentation must be a list of polygons"):
        boxes_only.masks()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_annotations_of_lvis_as_detections_have_an_ap_of_one(tmp_path, iou_type):
    images, categories = read_lvis(write_lvis(tmp_path, SCENES, SIZE), tmp_path)
    numbers = {category.name: category.id for category in categories}
    metric = LvisFixedAP({category.id: category.frequency for category in categories}, iou_type)
    for entry in images:
        left, top, width, height = torch.tensor([found.box for found in entry.image.objects]).T
        labels = torch.tensor([numbers[found.category] for found in entry.image.objects])
        found = {
            "boxes": torch.stack([left, top, left + width, top + height], dim=1),
            "masks": torch.from_numpy(entry.image.masks()),
            "labels": labels,
        }
        known = {name: torch.tensor(sorted(getattr(entry, name))) for name in ("negative", "not_exhaustive")}
        metric.update([found | {"scores": torch.ones(len(labels))}], [found | known])
    assert float(metric.compute()["ap"]) == 1


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_pope_asks_for_present_and_absent_kinds(tmp_path, ending):
    write_pope(tmp_path, SCENES, SIZE)
    for file in tmp_path.glob("*.json"):
        file.rename(file.with_suffix(f".{ending}"))
    kinds = {f"COCO_val2014_{i:012d}.jpg": {s.kind for s in scene.objects} for i, scene in enumerate(SCENES, 1)}
    frequency = Counter(kind for present in kinds.values() for kind in present)
    for negatives in ("random", "popular", "adversarial"):
        found = read_pope(tmp_path, negatives=[negatives])
        assert [question.id for question in found] == list(range(1, len(found) + 1))
        assert [question.label for question in found] == [True, False] * (len(found) // 2)
        for name, present in kinds.items():
            assert close(tmp_path / "val2014" / name, SCENES[list(kinds).index(name)])
            mine = [question for question in found if question.image == name]
            asked = [question.text.removesuffix(" in the image?").split()[-1] for question in mine]
            assert len(set(asked)) == len(asked) == 2 * min(3, len(present))
            assert all((kind in present) == q.label for kind, q in zip(asked, mine, strict=True))
            if negatives == "popular":
                absent = sorted((frequency[kind] for kind in KINDS if kind not in present), reverse=True)
                assert [frequency[kind] for kind in asked[1::2]] == absent[: len(asked) // 2]
            if negatives == "adversarial":
                left = [kind for kind in KINDS if kind not in present]
                for kind, other in zip(asked[::2], asked[1::2], strict=True):
                    count = {k: sum({kind, k} <= group for group in kinds.values()) for k in left}
                    assert count[other] == max(count.values())
                    left.remove(other)


def test_amber_tells_what_is_true(tmp_path):
    write_amber(tmp_path, SCENES, SIZE)
    items = read_amber(tmp_path)
    described = [item for item in items if isinstance(item, AmberDescription)]
    asked = [item for item in items if isinstance(item, AmberQuestion)]
    scenes = {f"AMBER_{i}.jpg": scene for i, scene in enumerate(SCENES, 1)}
    assert [item.image for item in described] == list(scenes)
    assert [item.id for item in items] == list(range(1, len(items) + 1))
    for item in described:
        kinds = {shape.kind for shape in scenes[item.image].objects}
        assert set(item.truth) == kinds
        assert set(item.hallucinated) == {PARTNERS[kind] for kind in kinds} - kinds
        assert close(tmp_path / "image" / item.image, scenes[item.image])
    for item in asked:
        shapes = scenes[item.image].objects
        words = item.text.removesuffix(" in this image?").split()
        if item.kind == "existence":
            assert not item.label
            assert words[-1] not in {shape.kind for shape in shapes}
        elif item.kind == "state":
            assert item.label == ((words[-2], words[-1]) in {(shape.kind, shape.color) for shape in shapes})
        elif item.kind == "number":
            kind = next(k for k in KINDS if words[-1].startswith(k))
            number = ["zero", "one", "two", "three", "four", "five", "six"].index(words[2])
            assert item.label == (number == sum(shape.kind == kind for shape in shapes))
        elif item.kind == "relation":
            subject, relation, other = re.fullmatch(
                r"Is the (.+) (left of|right of|above|below) the (.+) in this image\?", item.text
            ).groups()
            (a,), (b,) = (
                [s for s in shapes if set(w.split()) <= {s.kind, s.color, s.size, s.pattern}] for w in (subject, other)
            )
            truth = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
            assert item.label == truth[relation]
    assert {item.kind for item in asked} == {"existence", "state", "number", "relation"}
    assert {item.label for item in asked if item.kind == "relation"} == {True, False}
    parts = {"existence": {"existence"}, "attribute": {"state", "number"}, "relation": {"relation"}}
    for part, kinds in parts.items():
        assert {item.kind for item in read_amber(tmp_path, f"discriminative-{part}")} == kinds
    assert read_amber(tmp_path, "generative") == described
    assert read_amber(tmp_path, "discriminative") == asked
    assert AmberWords.read(tmp_path).known == set(KINDS)


def test_the_border_of_pie_is_edited_where_the_release_says_so(tmp_path):
    chosen = edits(SCENES[0], ["change_color"])
    write_pie(tmp_path, chosen, SIZE)
    expected = chosen[0].mask(SIZE)
    np.testing.assert_array_equal(read_pie(tmp_path)[0].mask, expected)
    expected[0, :] = expected[-1, :] = expected[:, 0] = expected[:, -1] = True
    np.testing.assert_array_equal(read_pie(tmp_path, edited_border=True)[0].mask, expected)


WRITERS = {
    "coco": (lambda folder: write_coco(folder, SCENES, SIZE), "annotations/instances_val2014.json"),
    "refcoco": (lambda folder: write_refcoco(folder, {"val": SCENES}, SIZE), "refcoco/refs(unc).p"),
    "reasonseg": (lambda folder: write_reasonseg(folder, SCENES[1:], SIZE), None),
    "lvis": (lambda folder: write_lvis(folder, SCENES, SIZE), "lvis_v1_val.json"),
    "pope": (lambda folder: write_pope(folder, SCENES, SIZE), "coco_pope_random.json"),
    "amber": (lambda folder: write_amber(folder, SCENES, SIZE), "annotations.json"),
    "pie": (lambda folder: write_pie(folder, [e for s in SCENES for e in edits(s)], SIZE), "mapping_file.json"),
}
MODULES = {"coco": coco, "refcoco": refcoco, "reasonseg": reasonseg, "lvis": lvis, "pope": pope} | {
    "amber": amber,
    "pie": pie,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_tree_that_was_cut_off_is_not_taken_for_whole(name, tmp_path, monkeypatch):
    write, annotations = WRITERS[name]
    calls = []

    def cut_off(scene, size):
        calls.append(scene)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(scene, size)

    monkeypatch.setattr(MODULES[name], "render", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert calls
    if annotations:
        assert not (tmp_path / annotations).exists()
    else:
        assert all(file.with_suffix(".jpg").exists() for file in tmp_path.rglob("*.json"))
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith((".tmp", ".part"))]


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_scenes_give_the_same_tree(name, tmp_path):
    write, _ = WRITERS[name]
    trees = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write(folder)
        trees.append({f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    assert trees[0] == trees[1]


def spoil(*path, value=None):
    """A change of a JSON file: the value at a path is replaced, or dropped if there is none."""

    def change(content):
        for step in path[:-1]:
            content = content[step]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


INSTANCES = "annotations/instances_val2014.json"
PIE_KEY = "000000000000"


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("coco", INSTANCES, spoil("images"), r"instances_val2014.json must have the key 'images' \(list\), got only"),
        (
            "coco",
            INSTANCES,
            spoil("images", 1, "height"),
            r"images\[1\] must have the key 'height' \(int\), got only id",
        ),
        ("coco", INSTANCES, spoil("annotations", 2, value=7), r"annotations\[2\] must be an object, got int"),
        ("coco", INSTANCES, spoil("annotations", 2, "area", value="x"), r"'area' \(int or float\), got str"),
        (
            "coco",
            INSTANCES,
            spoil("annotations", 0, "bbox", value=[1]),
            r"'bbox' of left, top, width, height, got \[1\]",
        ),
        ("coco", INSTANCES, spoil("annotations", 0, "image_id", value=99), r"a 'image_id' that is listed .* got 99"),
        ("coco", "annotations/captions_val2014.json", spoil("annotations", 0, "caption"), r"key 'caption' \(str\)"),
        ("refcoco", "refcoco/instances.json", spoil("annotations", 0, "category_id", value=99), "a 'category_id' that"),
        ("lvis", "lvis_v1_val.json", spoil("images", 0, "neg_category_ids"), r"key 'neg_category_ids' \(list\)"),
        (
            "lvis",
            "lvis_v1_val.json",
            spoil("categories", 3, "frequency", value="x"),
            r"categories\[3\] must .* got 'x'",
        ),
        ("amber", "annotations.json", spoil(0, "hallu"), r"annotations.json\[0\] must have the key 'hallu' \(list\)"),
        ("amber", "annotations.json", spoil(-1, "type", value="x"), r"must have a 'type' of generative, .* got 'x'"),
        ("amber", "annotations.json", spoil(5), r"query_all.json\[5\] must have a 'id' that is listed .* got 6"),
        ("pie", "mapping_file.json", spoil(PIE_KEY, "blended_word"), rf"{PIE_KEY} must have the key 'blended_word'"),
        (
            "pie",
            "mapping_file.json",
            spoil(PIE_KEY, "mask", value=[9999, 1]),
            rf"{PIE_KEY} must have a 'mask' of starts",
        ),
        ("pie", "mapping_file.json", spoil(PIE_KEY, "mask", value=[1]), rf"{PIE_KEY} must have a 'mask' of starts"),
    ],
)
def test_a_malformed_tree_is_refused_by_file_and_key(name, file, change, message, tmp_path):
    WRITERS[name][0](tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(ValueError, match=message) as refused:
        read(name, tmp_path)
    assert str(tmp_path) in str(refused.value)


def read(name, folder):
    return {
        "coco": lambda: read_coco(folder, "val2014", captions=True),
        "refcoco": lambda: read_refcoco(folder, "refcoco", "val"),
        "reasonseg": lambda: read_reasonseg(folder, "val"),
        "lvis": lambda: read_lvis(folder / "lvis_v1_val.json", folder),
        "pope": lambda: read_pope(folder),
        "amber": lambda: read_amber(folder),
        "pie": lambda: read_pie(folder),
    }[name]()


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_missing_or_no_json_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read(name, tmp_path)
    WRITERS[name][0](tmp_path)
    file = next(f for f in sorted(tmp_path.rglob("*")) if f.suffix in (".json", ".p"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"{file.name.replace('(', '.').replace(')', '.')}.* must be") as refused:
        read(name, tmp_path)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("text", value=[]), "must have a 'text' of one string or more"),
        (spoil("is_sentence", value=1), r"must have the key 'is_sentence' \(bool\), got int"),
        (spoil("shapes", 0, "label"), r"shapes\[0\] must have the key 'label' \(str\)"),
        (spoil("shapes", 0, "points", value=[[1, 2], [3]]), r"shapes\[0\] must have 'points' of two numbers each"),
        (
            spoil("false_premise_QA", value=[["a", "b"]]),
            "must have a 'false_premise_QA' of question, is_sentence, answer",
        ),
    ],
)
def test_a_malformed_item_of_reasonseg_is_refused(change, message, tmp_path):
    write_reasonseg(tmp_path, SCENES, SIZE)
    file = sorted(tmp_path.rglob("*.json"))[0]
    edit(file, change)
    with pytest.raises(ValueError, match=message) as refused:
        read_reasonseg(tmp_path, "val")
    assert str(file) in str(refused.value)
    file.with_suffix(".jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"must have a picture .*\.jpg beside it, got none"):
        read_reasonseg(tmp_path, "val")


def test_wrong_names_and_labels_are_refused(tmp_path):
    write_refcoco(tmp_path, {"val": SCENES[:1]}, SIZE)
    with pytest.raises(ValueError, match=r"split must be one of val in .*, got 'test'"):
        read_refcoco(tmp_path, "refcoco", "test")
    file = tmp_path / "refcoco" / "refs(unc).p"
    refs = pickle.loads(file.read_bytes())
    del refs[0]["sentences"][0]["sent"]
    file.write_bytes(pickle.dumps(refs))
    with pytest.raises(ValueError, match=r"refs\[0\]: sentences\[0\] must have the key 'sent' \(str\)"):
        read_refcoco(tmp_path, "refcoco", "val")
    write_pope(tmp_path, SCENES[:1], SIZE)
    with pytest.raises(ValueError, match="negatives must be some of random, popular, adversarial, got 'rare'"):
        read_pope(tmp_path, negatives=["rare"])
    file = Path(tmp_path, "coco_pope_popular.json")
    file.write_text(file.read_text().replace('"label": "no"', '"label": "No"'))
    with pytest.raises(ValueError, match=r"popular\.json: line 2 must have a 'label' of yes or no, got 'No'"):
        read_pope(tmp_path)
