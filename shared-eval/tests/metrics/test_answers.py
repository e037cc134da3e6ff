"""Yes-or-no answers: four readings of them, POPE and MME counted by hand."""

import math

import pytest

from attn.shared_eval.metrics import Mme, Pope, parse_mme, parse_yes_no


@pytest.mark.parametrize(
    ("answer", "original", "negation", "if_yes", "if_no", "exact"),
    [
        ("Yes, there is a dog.", True, True, True, True, None),
        ("No, there is no dog.", False, False, False, False, None),
        ("There isn't a dog", True, False, False, True, None),
        ("Yes. There is not much else.", True, False, True, False, None),
        ("NO", True, False, False, False, False),
        ("A snowboard", True, True, False, False, None),
        ("yes", True, True, True, True, True),
        ("yes.", True, True, True, True, None),
        ("", True, True, False, True, None),
        ("no,", False, False, False, False, None),
    ],
)
def test_the_readings_of_an_answer(answer, original, negation, if_yes, if_no, exact):
    for label in True, False:
        assert parse_yes_no(answer, label=label) is original
        assert parse_yes_no(answer, label=label, parser="negation") is negation
        assert parse_yes_no(answer, label=label, parser="exact") is exact
    assert parse_yes_no(answer, label=True, parser="substring") is if_yes
    assert parse_yes_no(answer, label=False, parser="substring") is if_no


QUESTIONS = [  # answer, label, split
    ("Yes", True, "random"),
    ("No", True, "random"),
    ("Yes", False, "popular"),
    ("No", False, "popular"),
    ("Yes", True, "popular"),
    ("Yes", True, "popular"),
]


def test_pope_counted_by_hand():
    metric = Pope()
    metric.update(*map(list, zip(*QUESTIONS, strict=True)))
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert {name: figures[name] for name in ("accuracy", "precision", "recall", "f1", "yes_share")} == pytest.approx(
        {"accuracy": 4 / 6, "precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "yes_share": 4 / 6}
    )
    assert figures["popular_accuracy"] == pytest.approx(3 / 4)
    assert figures["popular_f1"] == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert figures["random_precision"] == 1
    assert math.isnan(figures["adversarial_accuracy"])


def test_an_answer_that_is_neither_is_wrong_and_in_neither_precision_nor_recall():
    metric = Pope(parser="exact")
    metric.update(["yes", "perhaps", "perhaps", "no"], [True, True, False, False])
    figures = metric.compute()
    assert float(figures["accuracy"]) == 2 / 4
    assert float(figures["precision"]) == float(figures["recall"]) == 1
    assert float(figures["yes_share"]) == 1 / 4


def test_errors_of_pope():
    with pytest.raises(ValueError, match="parser must be one of original, negation, substring, exact, got 'loose'"):
        Pope(parser="loose")
    with pytest.raises(ValueError, match="answers and labels and splits must be of equal length, got 2, 1, 2"):
        Pope().update(["yes", "no"], [True])
    with pytest.raises(ValueError, match="splits must be among random, popular, adversarial, got 'rare'"):
        Pope().update(["yes"], [True], ["rare"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes.", True), ("no", False), ("No, it is not", False), ("The answer is yes", None), ("It's yes", None)],
)
def test_answers_of_mme(answer, said):
    assert parse_mme(answer) is said


def test_mme_counted_by_hand():
    metric = Mme()
    metric.update([("Yes", "No"), ("Yes", "Yes")], [(True, False), (True, False)], ["existence"] * 2)
    metric.update([("Yes", "No")] * 3, [(True, False)] * 3, ["count", "position", "color"])
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures["existence"] == pytest.approx(100 * 3 / 4 + 100 * 1 / 2)
    assert figures["hallucination"] == pytest.approx(125 + 3 * 200)
    assert math.isnan(figures["OCR"])
    assert math.isnan(figures["perception"])


def test_errors_of_mme():
    with pytest.raises(ValueError, match=r"subtasks must be among existence, .*, got 'colour'"):
        Mme().update([("Yes", "No")], [(True, False)], ["colour"])
    with pytest.raises(ValueError, match="answers and labels must come in pairs, got 3 and 2"):
        Mme().update([("Yes", "No", "No")], [(True, False)], ["color"])
