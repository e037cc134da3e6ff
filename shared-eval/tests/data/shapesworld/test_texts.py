"""Captions, lists, paragraphs and questions against readings of their words by separate code."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from attn.shared_eval.data import shapes_tokenizer
from attn.shared_eval.data.shapesworld import (
    QUESTIONS,
    CaptionNoise,
    Scene,
    Shape,
    caption,
    family,
    listing,
    paragraph,
    questions,
    render,
)
from attn.shared_eval.data.shapesworld.captions import TEMPLATES

KINDS = [
    *("circle", "square", "triangle", "cross", "star", "diamond"),
    *("ring", "heart", "ellipse", "hexagon", "moon", "arrow"),
]
COLORS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ONE = {("crosses" if kind == "cross" else kind + "s"): kind for kind in KINDS} | {"objects": None, "object": None}
WORLDS = [
    ("basic", {"objects": (2, 5)}),
    ("small", {"clutter": 2}),
    ("two_of_a_kind", {}),
    ("marks", {}),
    ("cooccur", {}),
]


def scenes(count=30, **more):
    return [family(name, **settings, **more).scene("test", i) for name, settings in WORLDS for i in range(count)]


def read(words):
    """Attributes said by some words: color, kind and so on, from the words alone."""
    said = {}
    for word in words:
        kind = ONE.get(word, word)
        if kind in KINDS:
            said["kind"] = kind
        elif word in COLORS:
            said["color"] = word
        elif word in ("small", "medium", "large"):
            said["size"] = word
        elif word in ("plain", "striped", "dotted", "checked"):
            said["pattern"] = word
    return said


def found(scene, words):
    said = read(words)
    return [i for i, s in enumerate(scene.objects) if all(getattr(s, name) == word for name, word in said.items())]


def centers(scene):
    """Centers and areas measured in a picture: fits only where nothing is hidden and the shape is symmetric enough."""
    masks = render(scene, 96).masks()
    return [(np.argwhere(mask).mean(0)[::-1] / 96, mask.sum()) for mask in masks]


def all_texts():
    for scene in scenes(12, style_share=0.5, pairs="seen"):
        for variant in range(3):
            yield caption(scene, variant=variant, detail=0.6).text
            yield listing(scene, variant=variant).text
        yield paragraph(scene, noise=CaptionNoise()).text
        yield paragraph(scene, half="left").text
        for question in questions(scene, each=4, filler=(0, 12), question_mark=True):
            yield question.text
            yield question.answer


def test_every_word_is_a_known_token():
    tokenizer = shapes_tokenizer()
    for text in dict.fromkeys(all_texts()):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert tokens == text.split(), text


def test_captions_are_true_and_their_spans_in_place():
    templates = Counter()
    for scene in scenes(40, style_share=0.3):
        line = caption(scene, detail=0.5)
        templates[line.template] += 1
        words = line.text.split()
        for span in line.spans:
            assert ONE.get(words[span.position], words[span.position]) == ONE.get(span.word, span.word)
            if span.attribute == "style":
                assert span.word == scene.style
            elif span.attribute == "count":
                assert NUMBERS.index(span.word) == len(found(scene, words[span.position + 1 :]))
            else:
                assert ONE.get(span.word, span.word) == getattr(scene.objects[span.object], span.attribute)
        assert (scene.style is not None) == any(span.attribute == "style" for span in line.spans)
        relation = re.search(r" (left of|right of|above|below) ", line.text)
        if relation:
            a, b = (scene.objects[i] for i in line.objects)
            gap = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            assert gap[relation[1]] >= 0.1
        if scene.style == "grey":
            assert not set(words) & set(COLORS)
        assert not re.search(r"\ba (orange|ellipse|arrow)|\ban (?!orange|ellipse|arrow|image)", line.text)
    assert set(templates) == set(range(len(TEMPLATES)))


def test_lists_name_everything_once():
    for scene in scenes():
        for order in ("random", "left_to_right"):
            line = listing(scene, order)
            *entries, end = line.text.split(" ; ")
            assert end == "<eos>"
            said = [tuple(entry.split()) for entry in entries]
            assert said == [(scene.objects[i].color, scene.objects[i].kind) for i in line.objects]
            assert sorted(line.objects) == list(range(len(scene.objects)))
            if order == "left_to_right":
                x = [scene.objects[i].x for i in line.objects]
                assert x == sorted(x)
    assert len({listing(scenes(1)[1], variant=v).text for v in range(8)}) > 1
    assert listing(Scene(())).text == "<eos>"


def test_paragraphs_mention_every_object_once():
    for scene in scenes():
        text = paragraph(scene)
        words = text.text.split()
        assert all(mention.true for mention in text.mentions)
        assert sorted(m.object for m in text.mentions) == list(range(len(scene.objects)))
        assert len(text.sentences) == text.text.count(" .")
        if len(scene.objects) >= 3:
            assert 3 <= len(text.sentences) <= 6
        for number, (start, stop) in enumerate(text.sentences):
            inside = [m for m in text.mentions if m.sentence == number]
            assert 1 <= len(inside) <= 3
            assert [w for w in words[start:stop] if w in KINDS] == [m.kind for m in inside]
            assert all(start <= m.position < stop and words[m.position] == m.kind for m in inside)
            if "near" in words[start:stop]:
                a, b = (scene.objects[m.object] for m in inside[:2])
                assert np.hypot(a.x - b.x, a.y - b.y) <= 0.35


def test_false_mentions_are_false_and_grow_with_the_sentence():
    rates = Counter()
    chances = Counter()
    for index in range(1500):
        scene = family("cooccur", partner=0.0, objects=(4, 4)).scene("train", index)
        kinds = {s.kind for s in scene.objects}
        clean, noisy = paragraph(scene), paragraph(scene, noise=CaptionNoise(0.15))
        assert tuple(m[1:] for m in noisy.mentions if m.true) == tuple(m[1:] for m in clean.mentions)
        for mention in noisy.mentions:
            assert (mention.kind in kinds) == mention.true
        for sentence in range(len(noisy.sentences)):
            chances[sentence] += 1
            rates[sentence] += any(m.sentence == sentence and not m.true for m in noisy.mentions)
    for sentence in range(4):
        assert abs(rates[sentence] / chances[sentence] - 0.15 * sentence) < 0.04
    assert all(m.true for m in paragraph(scene, noise=CaptionNoise(0.0)).mentions)


def test_restricted_paragraphs_keep_to_their_part():
    for scene in scenes(20):
        left = {m.object for m in paragraph(scene, half="left").mentions}
        assert left == {i for i, s in enumerate(scene.objects) if s.x < 0.5}
        red = {m.object for m in paragraph(scene, color="red").mentions}
        assert red == {i for i, s in enumerate(scene.objects) if s.color == "red"}
        if not red:
            assert paragraph(scene, color="red").text == "there is no object ."


def answer(scene, question):
    """The answer read out of the words and the picture, and the objects that it must rest on."""
    text = question.text
    measured = centers(scene)
    if found_presence := re.fullmatch(r"is there an? (.*)", text):
        objects = found(scene, found_presence[1].split())
        return ("yes" if objects else "no"), objects
    if relation := re.fullmatch(r"is the (.*) (left of|right of|above|below) the (.*)", text):
        (a,), (b,) = (found(scene, relation[i].split()) for i in (1, 3))
        (x, y), (u, v) = measured[a][0], measured[b][0]
        truth = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[relation[2]]
        return ("yes" if truth else "no"), [a, b]
    if larger := re.fullmatch(r"is the (.*) larger than the (.*)", text):
        (a,), (b,) = (found(scene, larger[i].split()) for i in (1, 2))
        return ("yes" if scene.objects[a].r > scene.objects[b].r else "no"), [a, b]
    if more := re.fullmatch(r"are there more (\w+) than (\w+)", text):
        a, b = (found(scene, [more[i]]) for i in (1, 2))
        return ("yes" if len(a) > len(b) else "no"), [*a, *b]
    if many := re.fullmatch(r"how many (.*)", text):
        objects = found(scene, many[1].split())
        return NUMBERS[len(objects)], objects
    (index,) = found(scene, re.sub(r"which shape is|what \w+ is the|which \w+ (has|is in) the", "", text).split())
    shape = scene.objects[index]
    if text.startswith("which corner"):
        x, y = measured[index][0]
        return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}", [index]
    if re.match("which (digit|mark)", text):
        kind, number = shape.mark.split()
        word = NUMBERS[int(number)]
        return (f"digit {word}" if kind == "digit" else f"{word} dot{'s' * (word != 'one')}"), [index]
    attribute = {"what colour": "color", "which shape": "kind", "what size": "size", "which pattern": "pattern"}
    return getattr(shape, attribute[" ".join(text.split()[:2])]), [index]


def test_answers_and_evidence_are_those_of_the_picture():
    asked = Counter()
    for scene in scenes(14):
        for question in questions(scene, each=6):
            expected, evidence = answer(scene, question)
            assert question.answer == expected, question
            assert list(question.evidence) == evidence, question
            assert question.single_evidence == (len(evidence) == 1)
            asked[question.family] += 1
    assert set(asked) == set(QUESTIONS)


def test_negatives_are_of_their_kind():
    negatives = Counter()
    answers = Counter()
    for scene in scenes(40):
        (one,) = questions(scene, ["presence"])
        answers[one.answer] += 1
        kinds = {s.kind for s in scene.objects}
        for question in questions(scene, ["presence"], each=12):
            said = read(question.text.split())
            assert (question.negative is None) == (question.answer == "yes")
            assert question.asked == said["kind"]
            negatives[question.negative] += 1
            if question.negative == "popular":
                assert said["kind"] in set(KINDS[:6]) - kinds
            elif question.negative == "random":
                assert said["kind"] not in kinds
            elif question.negative == "adversarial" and "color" in said:
                assert said["kind"] in kinds
                assert said["color"] in {s.color for s in scene.objects}
            elif question.negative == "adversarial":
                assert KINDS[(KINDS.index(said["kind"]) + 6) % 12] in kinds
    assert min(negatives[kind] for kind in ("random", "popular", "adversarial")) > 100
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_nothing_ambiguous_is_asked():
    twins = Scene((Shape("star", "red", "small", 0.3, 0.3, 0.08), Shape("star", "red", "small", 0.7, 0.32, 0.08)))
    asked = questions(twins, each=50)
    assert {q.family for q in asked} == {"presence", "count"}
    grey = replace(scenes(1)[0], style="grey")
    for question in questions(grey, each=50):
        assert not set(question.text.split()) & {*COLORS, "colour"}
    assert questions(Scene(()), each=50) == [] or {q.answer for q in questions(Scene(()), each=50)} <= {"no", "zero"}


def test_fillers_change_the_words_alone():
    scene = scenes(1)[0]
    plain = questions(scene)
    for last in (False, True):
        filled = questions(scene, filler=(6, 8), filler_last=last, question_mark=True)
        for short, long in zip(plain, filled, strict=True):
            assert short.answer == long.answer
            parts = long.text.split(" , ")
            assert parts[0 if last else 1] == f"{short.text} ?"
            assert 5 <= len(parts[1 if last else 0].split()) <= 8
    assert all(question.text.split()[-1] != "?" for question in plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: caption(Scene(())), "scene must have at least one object, got none"),
        (lambda: caption(scenes(1)[0], detail=2), r"detail must lie in \[0, 1\], got 2"),
        (lambda: caption(scenes(1)[0], template=99), r"template must be one of \[0, .* for this scene, got 99"),
        (lambda: listing(Scene(()), "up"), "order must be one of random, left_to_right, got 'up'"),
        (lambda: paragraph(Scene(()), half="upper"), "half must be one of left, .*, got 'upper'"),
        (lambda: paragraph(family("grid").scene("test", 0)), "at most 18 objects to mention, got 27"),
        (lambda: CaptionNoise(0.3), r"per_sentence must lie in \[0, 0.2\], got 0.3"),
        (lambda: questions(Scene(()), ["weather"]), "families must be some of presence, .*, got 'weather'"),
        (lambda: questions(Scene(()), each=0), "each must be positive, got 0"),
        (lambda: questions(Scene(()), filler=(3, 2)), "filler must be two numbers 0 <= low <= high <= 20"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
