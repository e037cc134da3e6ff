"""Draw against pinned values and against the distributions that it promises."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, norm

from attn.shared_eval.data import Draw

GOLDEN = {
    "random": [0.5316097828919248, 0.0721398739420922],
    "integer": [0, 1, 3, 595, 40172335625493733290],
    "choice": "aegbgdca",
    "shuffle": "gebafchd",
    "sample": [38, 5, 13, 29, 32],
    "normal": ["-0x1.4706bd6f27e83p-1", "0x1.e1399f1b227e0p-6", "0x1.5e82eb96c5754p-1"],
}


def test_golden_values():
    draw = Draw("golden", 0)
    assert [draw.random() for _ in range(2)] == GOLDEN["random"]
    assert [draw.integer(stop) for stop in (1, 2, 10, 1000, 2**70)] == GOLDEN["integer"]
    assert "".join(draw.choice("abcdefgh") for _ in range(8)) == GOLDEN["choice"]
    assert "".join(draw.shuffle("abcdefgh")) == GOLDEN["shuffle"]
    assert draw.sample(range(100), 5) == GOLDEN["sample"]
    assert [draw.normal().hex() for _ in range(3)] == GOLDEN["normal"]


def test_equal_keys_give_equal_streams_and_others_do_not():
    assert Draw("a", 1).random() == Draw("a", 1).random()
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", 1, 0), ("a",), (1,)]
    assert len({Draw(*key).random() for key in keys}) == len(keys)


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_integer_is_uniform(stop):
    draw = Draw("uniform", stop)
    counts = Counter(draw.integer(stop) for _ in range(6000))
    assert set(counts) == set(range(stop))
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_every_permutation_is_equally_likely():
    draw = Draw("permutations")
    counts = Counter(tuple(draw.shuffle("abc")) for _ in range(6000))
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_normal_is_normal():
    draw = Draw("normal")
    sample = [draw.normal() for _ in range(20_000)]
    assert kstest(sample, norm.cdf).pvalue > 1e-3
    beyond_two = sum(abs(x) > 2 for x in sample) / len(sample)
    assert math.isclose(beyond_two, 2 * norm.cdf(-2), abs_tol=4e-3)


@given(st.lists(st.integers(), max_size=20), st.data())
def test_sample_is_a_part_of_the_items_and_leaves_them_alone(items, data):
    size = data.draw(st.integers(0, len(items)))
    before = list(items)
    sample = Draw("sample", len(items)).sample(items, size)
    assert items == before
    assert len(sample) == size
    assert not Counter(sample) - Counter(items)


def test_errors_name_the_rule():
    with pytest.raises(ValueError, match="key must have at least one part"):
        Draw()
    with pytest.raises(ValueError, match="key must not contain '/', got 'a/b'"):
        Draw("a/b")
    with pytest.raises(TypeError, match="key must consist of str and int, got float"):
        Draw(1.0)
    with pytest.raises(TypeError, match="key must consist of str and int, got bool"):
        Draw(True)
    with pytest.raises(ValueError, match="stop must be positive, got 0"):
        Draw("a").integer(0)
    with pytest.raises(ValueError, match="items must not be empty"):
        Draw("a").choice([])
    with pytest.raises(ValueError, match=r"size must lie in 0 .. 2, the number of items, got 3"):
        Draw("a").sample("ab", 3)
