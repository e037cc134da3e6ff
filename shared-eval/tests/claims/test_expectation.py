"""Expectations against an evaluator of their own, and everything that is no expectation."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn.shared_eval.claims.expectation import ExpectationError, parse

NAMES = ["hedgehog", "t2r", "_x1"]
NUMBERS = st.one_of(st.integers(0, 99), st.floats(0, 1e6, allow_nan=False).map(lambda x: float(repr(x))))


def branches(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(st.sampled_from("+-*/"), pairs).map(lambda x: (x[0], *x[1])),
        inner.map(lambda x: ("neg", x)),
        inner.map(lambda x: ("abs", x)),
        st.tuples(st.sampled_from(["min", "max"]), pairs).map(lambda x: (x[0], *x[1])),
    )


TREES = st.recursive(st.one_of(NUMBERS, st.sampled_from(NAMES)), branches, max_leaves=6)


def text(tree):
    match tree:
        case (op, left, right) if op in "+-*/":
            return f"({text(left)} {op} {text(right)})"
        case ("neg", inner):
            return f"-({text(inner)})"
        case (name, *arguments):
            return f"{name}({', '.join(map(text, arguments))})"
    return str(tree)


def value(tree, figures):
    match tree:
        case str():
            return figures[tree]
        case int() | float():
            return float(tree)
        case ("neg", inner):
            return -value(inner, figures)
        case ("abs", inner):
            return math.fabs(value(inner, figures))
        case (op, left, right):
            a, b = value(left, figures), value(right, figures)
            if op == "/":
                return a / b if b else math.nan
            by_hand = {"+": a + b, "-": a - b, "*": a * b, "min": a if a < b else b, "max": a if a > b else b}
            return by_hand[op]
    raise AssertionError(tree)


@settings(deadline=None)
@given(TREES, TREES, st.sampled_from(["<=", "<", ">=", ">"]), st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_a_margin_is_the_larger_side_minus_the_smaller(left, right, comparison, values):
    written = f"t2r + {text(left)} {comparison} {text(right)}"
    if len(written) > 300:
        return
    figures = dict(zip(NAMES, values, strict=True))
    inequality = parse(written)
    a, b = figures["t2r"] + value(left, figures), value(right, figures)
    expected = b - a if comparison.startswith("<") else a - b
    margin = inequality.margin(figures)
    if "/" in written and not math.isfinite(expected):
        assert not math.isfinite(margin)
        return
    assert margin == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    holds = {"<=": margin >= 0, "<": margin > 0, ">=": margin >= 0, ">": margin > 0}[comparison]
    assert inequality.met(margin) == holds


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_inequality_or_an_expectation_error(junk):
    with contextlib.suppress(ExpectationError):
        assert parse(junk).figures


@settings(deadline=None)
@given(st.text(alphabet="ab01 +-*/()<>=.,'[]{}:x!~|&^%@e\n\0_", max_size=40))
def test_near_misses_raise_nothing_else(junk):
    with contextlib.suppress(ExpectationError):
        parse(junk)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "cannot parse"),
        ("a", "one comparison"),
        ("a == b", "one comparison"),
        ("a < b < c", "one comparison"),
        ("1 < 2", "name a figure"),
        ("a <= b ** 2", "not allowed"),
        ("a <= b % 2", "not allowed"),
        ("a <= b.c", "not allowed"),
        ("a <= b[0]", "not allowed"),
        ("a <= __import__('os')", "not allowed"),
        ("a <= min(b)", "not allowed"),
        ("a <= max(b, key=c)", "not allowed"),
        ("a <= max(*b)", "not allowed"),
        ("a <= min", "not allowed"),
        ("a <= True", "not allowed"),
        ("a <= 1j", "not allowed"),
        ("a <= 1e999", "not allowed"),
        ("a <= 'b'", "not allowed"),
        ("a <= (b := 1)", "not allowed"),
        ("a <= (lambda: b)()", "not allowed"),
        ("a <= b if c else d", "one comparison"),
        ("a <= " + "(" * 250 + "b" + ")" * 250, "at most 300"),
        ("a\0 <= b", "cannot parse"),
        ("a <= 0xfor b", "cannot parse"),
    ],
)
def test_what_is_no_inequality_is_refused(wrong, says):
    with pytest.raises(ExpectationError, match=says):
        parse(wrong)


def test_an_unknown_figure_is_named_with_those_that_exist():
    with pytest.raises(
        ExpectationError, match=r"unknown figure 't2r' in 'hedgehog <= t2r'; the figures are: hedgehog, softmax"
    ):
        parse("hedgehog <= t2r").margin({"softmax": 1.0, "hedgehog": 2.0})


@pytest.mark.parametrize("expression", ["a <= b", "a >= b", "max(a, b) >= 0", "min(b, a) <= 9", "0 * a <= b"])
def test_nan_satisfies_nothing(expression):
    inequality = parse(expression)
    assert not inequality.met(inequality.margin({"a": math.nan, "b": 1.0}))


def test_division_by_zero_satisfies_nothing():
    inequality = parse("a / b <= 1")
    assert not inequality.met(inequality.margin({"a": 1.0, "b": 0.0}))


def test_a_strict_inequality_needs_more_than_equality():
    assert parse("a <= 1").met(0.0)
    assert not parse("a < 1").met(0.0)
