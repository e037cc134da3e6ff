"""Referring expressions against a reading of their words by separate code."""

import re

import numpy as np
import pytest

from attn.shared_eval.data import shapes_tokenizer
from attn.shared_eval.data.shapesworld import REFERRING, Scene, Shape, family, referring, render

KINDS = [
    *("circle", "square", "triangle", "cross", "star", "diamond"),
    *("ring", "heart", "ellipse", "hexagon", "moon", "arrow"),
]
WORDS = {
    "kind": KINDS,
    "color": ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black"],
    "size": ["small", "medium", "large"],
    "pattern": ["plain", "striped", "dotted", "checked"],
}
FACTS = {
    "with three corners": "triangle",
    "with four corners": "square diamond",
    "with six corners": "hexagon",
    "with five points": "star",
    "with two corners": "moon",
    "with a hole": "ring",
    "without corners": "circle ring ellipse",
    "that you see at night": "star moon",
    "that points the way": "arrow",
}
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth"]
RELATION = "left of|right of|above|below"


def scenes(count=25):
    worlds = [
        *(("basic", {"objects": (2, 6)}), ("small", {"clutter": 2}), ("two_of_a_kind", {})),
        *(("basic", {"styles": ("grey",), "style_share": 1.0, "objects": (3, 5)}), ("basic", {"objects": (1, 1)})),
    ]
    return [family(name, **settings).scene("test", i) for name, settings in worlds for i in range(count)]


def named(scene, words):
    """Objects of which every attribute among the words is true."""
    found = list(range(len(scene.objects)))
    for word in words.split():
        for attribute, vocabulary in WORDS.items():
            if word in vocabulary:
                found = [i for i in found if getattr(scene.objects[i], attribute) == word]
    return found


def lies(a, relation, b):
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation]


def meant(scene, text):
    """The objects that a text fits, by the plain meaning of its words, without any margins."""
    shapes = scene.objects
    if match := re.fullmatch(rf"the (.+) ({RELATION}) the (.+)", text):
        (anchor,) = named(scene, match[3])
        return [i for i in named(scene, match[1]) if i != anchor and lies(shapes[i], match[2], shapes[anchor])]
    if match := re.fullmatch(r"the (\w+) (.+) from the (left|right|top|bottom)", text):
        coordinate = "x" if match[3] in ("left", "right") else "y"
        order = sorted(named(scene, match[2]), key=lambda i: getattr(shapes[i], coordinate))
        order = order if match[3] in ("left", "top") else order[::-1]
        return [order[ORDINALS.index(match[1])]]
    if match := re.fullmatch(r"the (.+?) (?:on the|at the|in the) (.+?)(?: corner)?", text):
        halves = {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1)}
        sides = [halves[word] for word in match[2].split()]
        return [i for i in named(scene, match[1]) if all((getattr(shapes[i], c) - 0.5) * s > 0 for c, s in sides)]
    if match := re.fullmatch(rf"the (.*?)\s*shape ({'|'.join(FACTS)})", text):
        return [i for i in named(scene, match[1]) if shapes[i].kind in FACTS[match[2]].split()]
    if match := re.fullmatch(r"the (leftmost|rightmost|highest|lowest|largest|smallest) (.+)", text):
        field, sign = {
            "leftmost": ("x", -1),
            "rightmost": ("x", 1),
            "highest": ("y", -1),
            "lowest": ("y", 1),
            "largest": ("r", 1),
            "smallest": ("r", -1),
        }[match[1]]
        return [max(named(scene, match[2]), key=lambda i: sign * getattr(shapes[i], field))]
    return named(scene, text)


def test_an_expression_fits_its_target_alone_and_a_false_premise_nothing():
    seen = dict.fromkeys(REFERRING, 0)
    for scene in scenes():
        for expression in referring(scene, each=5):
            seen[expression.kind] += 1
            fits = [] if expression.target is None else [expression.target]
            assert meant(scene, expression.text) == fits, (expression, scene)
            assert set(fits) <= set(expression.admitted)
            assert (expression.target is None) == (expression.kind == "false_premise")
            if fits:
                assert expression.nearest == expression.target
    assert min(seen.values()) > 50, seen


def test_a_wrong_scene_gives_another_target():
    scene = next(s for s in scenes() if referring(s, ["relation"]))
    expression = referring(scene, ["relation"])[0]
    mirrored = scene
    for i, shape in enumerate(scene.objects):
        mirrored = mirrored.move(i, 1 - shape.x, 1 - shape.y)
    assert meant(mirrored, expression.text) != [expression.target]


def test_the_target_can_be_measured_in_the_picture():
    """Superlatives of place and size checked on masks alone: centers of boxes, and the larger side of boxes."""
    checked = 0
    for scene in scenes():
        picture = render(scene, 96)
        boxes = picture.boxes()
        for expression in referring(scene, ["superlative"], each=3):
            word = expression.text.split()[1]
            group = [i for i in named(scene, expression.text) if picture.masks()[i].any()]
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            key = {
                "leftmost": -centers[:, 0],
                "rightmost": centers[:, 0],
                "highest": -centers[:, 1],
                "lowest": centers[:, 1],
            }.get(word)
            if key is not None:
                assert max(group, key=lambda i: key[i]) == expression.target
                checked += 1
    assert checked > 50


def test_a_false_premise_is_true_of_the_nearest_but_for_one_thing():
    for scene in scenes():
        for expression in referring(scene, ["false_premise"], each=8):
            nearest = scene.objects[expression.nearest]
            head = re.split(f" (?:{RELATION}) ", expression.text)[0]
            false = [
                word
                for word in head.split()
                for attribute, vocabulary in WORDS.items()
                if word in vocabulary and getattr(nearest, attribute) != word
            ]
            assert len(false) == (0 if head != expression.text else 1)
            assert expression.nearest in expression.admitted


def test_partial_readings():
    scene = Scene(
        (
            Shape("star", "red", "medium", 0.2, 0.2, 0.1),
            Shape("star", "red", "medium", 0.8, 0.25, 0.1),
            Shape("ring", "blue", "medium", 0.5, 0.75, 0.1),
        )
    )
    by_text = {e.text: e for e in referring(scene, each=1000)}
    assert by_text["the star left of the ring"].target == 0
    assert by_text["the star left of the ring"].admitted == (0, 1, 2)
    assert by_text["the shape with a hole"].admitted == (2,)
    assert by_text["the second star from the left"].target == 1
    assert by_text["the second star from the left"].admitted == (0, 1, 2)
    assert by_text["the star on the right"].admitted == (0, 1)
    assert by_text["the red ring"].target is None
    assert by_text["the red ring"].nearest == 2
    assert "the leftmost ring" not in by_text
    assert "the red star" not in by_text
    assert "the highest star" not in by_text  # 0.05 is too little to tell


def test_every_word_is_in_the_vocabulary_and_grey_scenes_name_no_color():
    tokenizer = shapes_tokenizer()
    for scene in scenes(10):
        for expression in referring(scene, each=4):
            words = expression.text.split()
            assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(words)
            if scene.style == "grey":
                assert not set(words) & set(WORDS["color"])


def test_expressions_are_a_function_of_scene_and_variant():
    scene = family("small").scene("test", 3)
    assert referring(scene, each=2) == referring(scene, each=2)
    texts = {tuple(e.text for e in referring(scene, variant=v)) for v in range(5)}
    assert len(texts) > 1
    assert [e.kind for e in referring(scene, ["ordinal", "attribute"])] == ["ordinal", "attribute"]
    assert referring(Scene(()), each=3) == []


def test_bad_arguments():
    scene = family("basic").scene("test", 0)
    with pytest.raises(ValueError, match=r"kinds must be some of attribute, relation, .*, got 'colour'"):
        referring(scene, ["colour"])
    with pytest.raises(ValueError, match="each must be positive, got 0"):
        referring(scene, each=0)


def test_an_empty_mask_is_never_a_target():
    for scene in scenes(10):
        masks = render(scene, 64).masks()
        targets = [e.target for e in referring(scene) if e.target is not None]
        assert all(np.any(masks[target]) for target in targets)
