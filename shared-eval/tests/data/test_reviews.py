"""reviews by their definition, and by their golden hash."""

import json
from collections import Counter
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn.shared_eval.data import reviews
from attn.shared_eval.data.reviews import CUE_PHRASES, CUE_WORDS, FILLER_WORDS

GOLDEN = "488dd1dbe22e96e823a023ede25d22520e377d23f65451cbf52f32ec9f515757"


def test_golden_hash():
    texts = json.dumps(reviews("train", 100) + reviews("test", 100, seed=1, label_noise=0.1))
    assert sha256(texts.encode()).hexdigest() == GOLDEN


def test_the_vocabulary_is_as_described():
    words = [word for phrases in CUE_PHRASES for phrase in phrases for word in phrase.split()]
    assert [len(phrases) for phrases in CUE_PHRASES] == [6, 6]
    assert all(3 <= len(phrase.split()) <= 4 for phrases in CUE_PHRASES for phrase in phrases)
    assert set(words) == set(CUE_WORDS)
    assert len(set(CUE_WORDS)) == 14
    assert len(set(FILLER_WORDS)) == len(FILLER_WORDS) == 150
    assert not set(FILLER_WORDS) & set(CUE_WORDS)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_label_is_what_the_phrases_at_the_spans_say(seed):
    for review in reviews("train", 5, seed=seed):
        words = review.text.split(" ")
        assert 41 <= len(words) <= 49
        assert 1 <= len(review.spans) <= 2
        for start, stop in review.spans:
            assert " ".join(words[start:stop]) in CUE_PHRASES[review.label]
            assert words[start - 1] not in CUE_WORDS or start == 0
        inside = {position for span in review.spans for position in range(*span)}
        alone = [position for position, word in enumerate(words) if word in CUE_WORDS and position not in inside]
        assert 3 <= len(alone) <= 6
        for position in alone:
            assert not {*words[max(position - 1, 0) : position], *words[position + 1 : position + 2]} & set(CUE_WORDS)


def test_no_other_place_holds_a_phrase():
    for review in reviews("train", 300):
        found = sum(f" {phrase} " in f" {review.text} " for phrases in CUE_PHRASES for phrase in phrases)
        assert found == len(review.spans)


def test_both_classes_hold_the_same_words_alone():
    alone = [Counter(), Counter()]
    for review in reviews("train", 4000):
        words = review.text.split()
        inside = {position for span in review.spans for position in range(*span)}
        alone[review.label].update(w for i, w in enumerate(words) if i not in inside and w in CUE_WORDS)
    for word in CUE_WORDS:
        assert 0.85 < alone[0][word] / alone[1][word] < 1.18


def test_words_without_order_say_little_about_the_label():
    """Naive Bayes on word counts, which the phrases themselves would beat at 1.0."""
    train, test = reviews("train", 2000), reviews("test", 1000)
    counts = [Counter(), Counter()]
    for review in train:
        counts[review.label].update(review.text.split())
    weight = {w: counts[1][w] / (counts[0][w] + counts[1][w]) for w in counts[0] | counts[1]}
    guesses = [sum(weight.get(w, 0.5) - 0.5 for w in review.text.split()) > 0 for review in test]
    assert sum(guess == review.label for guess, review in zip(guesses, test, strict=True)) / len(test) < 0.75


def test_noise_flips_labels_and_nothing_else():
    clean, noisy = reviews("train", 2000), reviews("train", 2000, label_noise=0.1)
    assert [(r.text, r.spans) for r in clean] == [(r.text, r.spans) for r in noisy]
    assert 0.08 < sum(a.label != b.label for a, b in zip(clean, noisy, strict=True)) / 2000 < 0.12
    assert all(a.label != b.label for a, b in zip(clean, reviews("train", 2000, label_noise=1.0), strict=True))


def test_splits_share_no_text_and_a_longer_list_begins_with_the_shorter():
    assert reviews("train", 50)[:10] == reviews("train", 10)
    splits = [{r.text for r in reviews(split, 500, seed=seed)} for split in ("train", "val") for seed in (0, 1)]
    assert len(set.union(*splits)) == 2000


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        reviews("train", -1)
    with pytest.raises(ValueError, match=r"label_noise must lie in \[0, 1\], got nan"):
        reviews("train", 1, label_noise=float("nan"))
