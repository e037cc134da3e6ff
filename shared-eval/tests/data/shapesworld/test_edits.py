"""Edits: pictures differ inside the mask only, and prompts say what differs."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest

from attn.shared_eval.data import shapes_tokenizer
from attn.shared_eval.data.benchmarks import read_pie, write_pie
from attn.shared_eval.data.benchmarks.pie import bracketed_words
from attn.shared_eval.data.shapesworld import EDITS, Scene, edits, family, render
from attn.shared_eval.data.shapesworld.grammar import HELD_OUT

WORLDS = [
    ("pairs", {"pairs": "seen"}),
    ("basic", {"pairs": "seen", "objects": (2, 4), "overlap": True, "style_share": 0.5}),
    ("marks", {"pairs": "seen"}),
]


def made(count=12):
    scenes = [family(name, **settings).scene("test", i) for name, settings in WORLDS for i in range(count)]
    return [edit for scene in scenes for edit in edits(scene)]


EVERY = made()


def test_every_kind_is_made():
    for kind in EDITS:
        assert sum(edit.kind == kind for edit in EVERY) >= 15


@pytest.mark.parametrize("size", [48, 64])
def test_pictures_differ_inside_the_mask_only(size):
    for edit in EVERY:
        before, after, mask = render(edit.source, size).image, render(edit.target, size).image, edit.mask(size)
        differ = (before != after).any(-1)
        assert differ.any(), edit
        assert not differ[~mask].any(), edit
        if edit.kind not in ("change_style", "change_background"):
            assert mask.mean() < 0.6


def test_the_scenes_share_everything_else():
    for edit in EVERY:
        changed = {f.name for f in fields(Scene) if getattr(edit.source, f.name) != getattr(edit.target, f.name)}
        expected = {"change_style": "style", "change_background": "background"}.get(edit.kind, "objects")
        assert changed - {"target"} == {expected}
        if edit.kind.startswith("change_") and expected == "objects":
            pairs = zip(edit.source.objects, edit.target.objects, strict=True)
            attribute = {"object": "kind"}.get(edit.kind[7:], edit.kind[7:])
            word = getattr(edit.target.objects[edit.object], attribute)
            assert [i for i, (a, b) in enumerate(pairs) if a != b] == [edit.object]
            assert replace(edit.source.objects[edit.object], **{attribute: word}) == edit.target.objects[edit.object]
        elif edit.kind == "add":
            assert edit.target.objects[:-1] == edit.source.objects
        elif edit.kind == "delete":
            rest = [shape for i, shape in enumerate(edit.source.objects) if i != edit.object]
            assert list(edit.target.objects) == rest


def test_an_edit_never_leads_to_a_held_out_pair():
    assert not any((s.kind, s.color) in HELD_OUT for edit in EVERY for s in edit.target.objects)


def test_prompts_differ_in_the_bracketed_words_only_and_name_every_object():
    for edit in EVERY:
        rest = []
        for marked, scene in ((edit.marked_source, edit.source), (edit.marked_target, edit.target)):
            said, inside = bracketed_words(marked)
            assert " ".join(said) == re.sub(r"[\[\]]", "", marked)
            rest.append([w for i, w in enumerate(said) if i not in inside and w not in ("a", "an")])
            for shape in scene.objects:
                names = [shape.kind] if scene.style == "grey" else [shape.color, shape.kind]
                assert re.search(rf"\b{' '.join(names)}\b", " ".join(said)), (marked, shape)
            assert scene.background.kind in said
        assert rest[0] == rest[1], edit
        assert edit.source_prompt != edit.target_prompt


def test_every_word_is_in_the_vocabulary():
    tokenizer = shapes_tokenizer()
    for edit in EVERY:
        text = f"{edit.source_prompt} {edit.target_prompt} {edit.instruction}".split()
        unknown = [w for w in text if tokenizer.convert_tokens_to_ids(w) == tokenizer.unk_token_id]
        assert not unknown


def test_edits_are_a_function_of_scene_and_variant():
    scene = family("pairs").scene("test", 3)
    assert edits(scene) == edits(scene)
    assert len({e.target for v in range(6) for e in edits(scene, ["change_color"], variant=v)}) > 1
    with pytest.raises(ValueError, match=r"kinds must be some of change_object, .*, got 'change_colour'"):
        edits(scene, ["change_colour"])


def test_grey_scenes_have_no_colors_to_change():
    scene = replace(family("pairs").scene("test", 0), style="grey")
    kinds = {edit.kind for edit in edits(scene)}
    assert not kinds & {"change_color", "change_style"}
    assert "change_object" in kinds


def test_a_written_pie_folder_reads_back(tmp_path):
    chosen = [next(edit for edit in EVERY if edit.kind == kind) for kind in EDITS]
    write_pie(tmp_path, chosen, 48)
    items = read_pie(tmp_path)
    assert [int(item.editing_type_id) for item in items] == [1, 6, 7, 9, 2, 3, 8]
    for edit, item in zip(chosen, items, strict=True):
        np.testing.assert_array_equal(item.image, render(edit.source, 48).image)
        np.testing.assert_array_equal(item.target, render(edit.target, 48).image)
        np.testing.assert_array_equal(item.mask, edit.mask(48))
        assert (item.original_prompt, item.editing_prompt) == (edit.marked_source, edit.marked_target)
        assert item.blended_word.split() == list(edit.blended)
    assert not list(tmp_path.glob("*.part"))
