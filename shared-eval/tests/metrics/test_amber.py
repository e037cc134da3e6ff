"""AMBER: the release's checks in their order, counted by hand, and its files read."""

import json
import math

import pytest

from attn.shared_eval.metrics import (
    AmberDiscriminative,
    AmberGenerative,
    AmberWords,
    amber_counts,
)

WORDS = AmberWords(
    {"beach": ["sand", "shore"], "sea": ["wave", "sand"], "boat": ["ship"], "man": ["person"], "cloud": []},
    frozenset({"line"}),
)


@pytest.mark.parametrize(
    ("nouns", "counts"),
    [
        (["beach", "boat"], (2, 1, 1, 1)),
        (["sand"], (1, 0, 1, 0)),  # associated with two objects in the picture: covers the first
        (["sea", "sand", "wave"], (3, 0, 2, 0)),
        (["ship", "ship"], (2, 2, 0, 1)),
        (["cloud"], (1, 1, 0, 0)),
        (["line", "beach"], (2, 0, 1, 0)),
        ([], (0, 0, 0, 0)),
    ],
)
def test_a_description_counted_by_hand(nouns, counts):
    assert amber_counts(nouns, ["beach", "sea"], ["boat", "man"], WORDS) == counts


def test_associations_of_any_object_come_before_the_objects():
    words = AmberWords({"cloud": ["sea"], "sea": []})
    assert amber_counts(["sea", "cloud"], ["cloud", "sea"], [], words).covered == 1  # the sea covers the cloud


def test_a_repeated_object_is_covered_once():
    assert amber_counts(["beach", "beach"], ["beach", "beach"], [], WORDS).covered == 1


def test_similarity_marks_the_hallucination_and_then_excuses_the_noun():
    pairs = {("cloud", "boat"), ("cloud", "wave"), ("ship", "sea"), ("man", "man")}
    similar = lambda noun, word: (noun, word) in pairs  # noqa: E731
    # cloud is like boat (marked) and like wave, of the sea (covered, not hallucinated)
    assert amber_counts(["cloud"], ["beach", "sea"], ["man", "boat"], WORDS, similar) == (1, 0, 1, 1)
    # ship is boat's by association, and still excused as it is like the sea
    assert amber_counts(["ship"], ["sea"], ["boat"], WORDS, similar) == (1, 0, 1, 1)
    assert amber_counts(["man"], ["sea"], ["man"], WORDS, similar) == (1, 1, 0, 1)


def test_the_generative_part():
    metric = AmberGenerative(WORDS)
    metric.update(
        ["The sand of a beach and two ships.", "There are waves in a line; Men", "nothing"],
        [["beach", "sea"], ["sea"], ["man"]],
        [["boat", "man"], [], ["cloud"]],
    )
    figures = {name: float(value) for name, value in metric.compute().items()}
    # sand, beach, ship(!) | wave ("line" is unknown, "Men" capitalised) | nothing
    assert figures == pytest.approx({"chair": 1 / 4, "cover": (1 + 1 + 0) / 4, "hal": 1 / 3, "cog": 1 / 3})


def test_nouns_of_ones_own_are_taken_if_known():
    metric = AmberGenerative(WORDS, nouns=str.split)
    metric.update(["ships boat tree"], [["sea"]], [["boat"]])
    assert float(metric.compute()["chair"]) == 1
    assert int(metric.nouns) == 1


def test_files_of_the_release(tmp_path):
    (tmp_path / "relation.json").write_text(json.dumps({"beach": ["sand"]}))
    (tmp_path / "safe_words.txt").write_text("line\nshoe\n")
    assert AmberWords.read(tmp_path) == AmberWords({"beach": ["sand"]}, frozenset({"line", "shoe"}))


def test_the_discriminative_part_takes_no_for_positive():
    rows = [  # answer, label, kind
        ("No", False, "existence"),
        ("No", True, "existence"),
        ("Yes", False, "existence"),
        ("no", False, "existence"),  # not exactly "No"
        ("Yes", True, "state"),
        ("No", False, "number"),
        ("No", True, "action"),
    ]
    metric = AmberDiscriminative()
    metric.update(*map(list, zip(*rows, strict=True)))
    figures = {name: float(value) for name, value in metric.compute().items()}
    expected = {
        "existence_accuracy": 1 / 4,
        "existence_precision": 1 / 2,
        "existence_recall": 1 / 3,
        "existence_f1": 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3),
        "attribute_accuracy": 2 / 3,
        "attribute_precision": 1 / 2,
        "attribute_recall": 1,
        "accuracy": 3 / 7,
        "precision": 2 / 4,
        "recall": 2 / 4,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(figures["state_recall"])
    assert math.isnan(figures["relation_accuracy"])


def test_without_descriptions_figures_are_undefined():
    metric = AmberGenerative(WORDS)
    metric.update([], [], [])
    assert all(math.isnan(value) for value in metric.compute().values())


def test_errors():
    with pytest.raises(ValueError, match="truth must hold objects with associations, got tree"):
        amber_counts([], ["tree"], [], WORDS)
    with pytest.raises(ValueError, match="hallucinated must hold objects with associations, got tree"):
        amber_counts([], [], ["tree"], WORDS)
    with pytest.raises(
        ValueError, match="descriptions and truth and hallucinated must be of equal length, got 1, 0, 0"
    ):
        AmberGenerative(WORDS).update(["a"], [], [])
    with pytest.raises(ValueError, match=r"kinds must be among existence, .*, got 'attribute'"):
        AmberDiscriminative().update(["Yes"], [True], ["attribute"])
