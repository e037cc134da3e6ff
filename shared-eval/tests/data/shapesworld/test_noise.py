"""Noise: its rates, what it leaves alone, and that it is the same whenever it is asked for."""

import numpy as np
import pytest

from attn.shared_eval.data.shapesworld import (
    AnswerPrior,
    Detector,
    ImageDrop,
    PromptDrop,
    family,
    mean_picture,
    questions,
    render,
)

POPULAR = ("circle", "square", "triangle", "cross", "star", "diamond")
SCENES = [family("cooccur").scene("test", i) for i in range(300)]


def close(share, expected, count):
    """Within four standard errors."""
    return abs(share - expected) <= 4 * (expected * (1 - expected) / count) ** 0.5


def test_the_answer_prior_replaces_its_share_of_presence_answers():
    prior = AnswerPrior(share=0.4)
    wrong, against = 0, 0
    for scene in SCENES:
        for question in questions(scene, ["presence", "count"], each=4):
            habit = "yes" if question.asked in POPULAR else "no"
            answer = prior.answer(scene, question)
            assert answer == prior.answer(scene, question)
            if question.family == "count" or habit == question.answer:
                assert answer == question.answer
            else:
                against += 1
                wrong += answer != question.answer
    assert against > 200
    assert close(wrong / against, 0.4, against)


def test_no_share_no_noise():
    for scene in SCENES[:20]:
        for question in questions(scene, ["presence"], each=4):
            assert AnswerPrior(share=0).answer(scene, question) == question.answer
            assert AnswerPrior(share=1, yes=()).answer(scene, question) == "no"


def test_prompts_are_dropped_in_their_share_of_rows():
    kept = [PromptDrop(0.15).prompt(scene, "what colour is the star") for scene in SCENES]
    assert set(kept) == {"", "what colour is the star"}
    assert close(kept.count("") / len(kept), 0.15, len(kept))
    # Another prompt of the same scene is dropped or not independently.
    other = [PromptDrop(0.15).prompt(scene, "how many stars") for scene in SCENES]
    assert [text == "" for text in kept] != [text == "" for text in other]


def test_pictures_are_dropped_in_their_share():
    world = family("cooccur")
    mean = mean_picture(world, "train", 20, 32)
    drop = ImageDrop(0.6, mean)
    pictures = [render(scene, 32) for scene in SCENES]
    dropped = [drop.image(picture) is mean for picture in pictures]
    assert close(sum(dropped) / len(dropped), 0.6, len(dropped))
    for picture, gone in zip(pictures, dropped, strict=True):
        np.testing.assert_array_equal(drop.image(picture), mean if gone else picture.image)
    assert all(ImageDrop(0, mean).image(picture) is picture.image for picture in pictures[:20])
    with pytest.raises(ValueError, match="picture must have the size 32 of the mean picture, got 48"):
        drop.image(render(SCENES[0], 48))


def test_the_mean_picture_is_the_rounded_mean():
    world = family("basic")
    stack = np.stack([render(world.scene("val", i, seed=3), 32).image for i in range(7)]).astype(np.float64)
    mean = mean_picture(world, "val", 7, 32, seed=3)
    np.testing.assert_array_equal(mean, np.floor(stack.mean(0) + 0.5))
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        mean_picture(world, "val", 0, 32)


def test_detectors_miss_and_see_ghosts_at_their_rates_and_independently():
    kinds = (*POPULAR, "ring", "heart", "ellipse", "hexagon", "moon", "arrow")
    cases = [(scene, kind, any(s.kind == kind for s in scene.objects)) for scene in SCENES for kind in kinds]
    present = [case for case in cases if case[2]]
    absent = [case for case in cases if not case[2]]
    detectors = [Detector(miss=0.2, false=0.1, seed=seed) for seed in range(2)]
    for detector in detectors:
        missed = sum(not detector.sees(scene, kind) for scene, kind, _ in present) / len(present)
        ghosts = sum(detector.sees(scene, kind) for scene, kind, _ in absent) / len(absent)
        assert close(missed, 0.2, len(present))
        assert close(ghosts, 0.1, len(absent))
    both = sum(not any(d.sees(scene, kind) for d in detectors) for scene, kind, _ in present) / len(present)
    assert close(both, 0.04, len(present))
    assert all(Detector().sees(scene, kind) == there for scene, kind, there in cases[:500])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
        AnswerPrior(share=1.5)
    with pytest.raises(ValueError, match=r"yes must be some of circle, .*, got \('dog',\)"):
        AnswerPrior(yes=("dog",))
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got -0.1"):
        PromptDrop(-0.1)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 2"):
        ImageDrop(2, np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"miss must lie in \[0, 1\], got 2"):
        Detector(miss=2)
    with pytest.raises(ValueError, match=r"false must lie in \[0, 1\], got -1"):
        Detector(false=-1)
    with pytest.raises(ValueError, match=r"kind must be one of circle, .*, got 'dog'"):
        Detector().sees(SCENES[0], "dog")
