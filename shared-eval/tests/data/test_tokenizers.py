"""The three tokenizers: fixed ids, round trips, saving and loading."""

import json
from hashlib import sha256
from importlib.metadata import version

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from attn.shared_eval.data import (
    ReviewsDataset,
    byte_tokenizer,
    corpus_fingerprint,
    docs_bytes,
    docs_corpus,
    reviews,
    shapes_tokenizer,
    text_tokenizer,
)
from attn.shared_eval.data.reviews import CUE_WORDS, FILLER_WORDS
from attn.shared_eval.data.tokenizers import LETTERS, SYMBOLS

SPECIAL = ["<pad>", "<bos>", "<unk>", "<eos>", "<image>", "<seg>", "<q>", "<a>", "\n", "<mask>", "<cls>", "<sep>"]
GRAMMAR = """
circle square triangle cross star diamond ring heart ellipse hexagon moon arrow red orange yellow green cyan blue
purple pink white black small medium large plain striped dotted checked dark bright pastel warm cool outlined textured
grey left right above below digit yes no zero one two three four five six
"""
GOLDEN = {
    "shapes": "bcb953b52ab26397d2c0f37abe4ef5a7298d6caf17ce1cb0e32021fbf8009d58",
    "text": "48bd87581c3747d5cb303a59bdb5cbf5812ab58faa1caa845464a6222a2e28aa",
    "tokenizers": "0.23.3",
    "corpus": "ed9ce62aaa8c7570371b1e17272ff936a443000e62d28025df32cc553c8d0f51",
}


@pytest.fixture(scope="module")
def shapes():
    return shapes_tokenizer()


@pytest.fixture(scope="module")
def bytewise():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def prose():
    return text_tokenizer()


def digest(tokenizer):
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [i for _, i in words] == list(range(len(tokenizer)))
    return sha256(json.dumps([word for word, _ in words]).encode()).hexdigest()


def test_shapes_ids_are_frozen(shapes):
    """A new word takes the place of an unused one; no other id may change."""
    words = shapes.convert_ids_to_tokens(range(512))
    assert words[:12] == SPECIAL
    assert words[12:36] == list(".,;:?!()[]0123456789ABCD")
    frozen = words[:449]
    assert sha256(json.dumps(frozen).encode()).hexdigest() == GOLDEN["shapes"]
    assert len(set(words)) == len(shapes) == 512
    assert words[-1].startswith("<unused")


def test_shapes_knows_every_word_of_the_grammar_and_the_reviews(shapes):
    for word in (*GRAMMAR.split(), *CUE_WORDS, *FILLER_WORDS):
        (token,) = shapes(word).input_ids
        assert token != shapes.unk_token_id, word


def test_shapes_cuts_words_punctuation_digits_and_newlines(shapes):
    ids = shapes("<bos>Is the RED star\tleft?  12\n(a) A zebra<eos>").input_ids
    assert shapes.convert_ids_to_tokens(ids) == [
        *["<bos>", "is", "the", "red", "star", "left", "?", "1", "2", "\n", "(", "a", ")", "A", "<unk>", "<eos>"]
    ]


@given(st.data())
def test_shapes_decodes_what_it_encodes(shapes, data):
    ids = data.draw(st.lists(st.integers(0, 448), max_size=30))
    assert shapes(shapes.decode(ids)).input_ids == ids


def test_reviews_are_a_token_a_word(shapes):
    for review in reviews("train", 50):
        assert shapes.convert_ids_to_tokens(shapes(review.text).input_ids) == review.text.split()


def test_byte_ids_are_bytes(bytewise):
    assert len(bytewise) == 262
    special = ["<pad>", "<bos>", "<eos>", "<mask>", "<cls>", "<sep>"]
    assert bytewise.convert_tokens_to_ids(special) == list(range(256, 262))
    assert [bytewise.pad_token_id, bytewise.bos_token_id, bytewise.eos_token_id] == [256, 257, 258]
    start = docs_bytes("test")[:5000]
    assert torch.equal(torch.tensor(bytewise(bytes(start.tolist()).decode()).input_ids), start.long())


@given(st.text(max_size=60).filter(lambda text: "<" not in text))  # the names of special tokens begin with it
def test_byte_and_text_round_trip(bytewise, prose, text):
    assert bytewise(text).input_ids == list(text.encode())
    assert bytewise.decode(bytewise(text).input_ids) == text
    assert prose.decode(prose(text).input_ids) == text


def test_text_ids_are_reserved_as_documented(prose):
    assert len(prose) == 2048
    assert prose.convert_ids_to_tokens(range(12)) == [*SPECIAL[:8], "\u010a", *SPECIAL[9:]]
    assert prose.convert_ids_to_tokens(range(12, 148)) == [*LETTERS, *SYMBOLS]
    assert all(token.startswith("<unused") for token in prose.convert_ids_to_tokens(range(148, 192)))
    for i, token in ((8, "\n"), (12, "A"), (19, "H"), (20, "<w0>"), (147, "<w127>"), (3, "<eos>")):
        assert prose(token).input_ids == [i]


def test_text_splits_digits_and_merges_words(prose):
    assert [len(prose(text).input_ids) for text in ("2048", "array", "the array of values")] == [4, 1, 4]
    validation = docs_corpus("val")[:1000]
    assert sum(map(len, validation)) / sum(map(len, prose(validation).input_ids)) > 3


def test_text_training_is_deterministic(prose):
    from attn.shared_eval.data.tokenizers import _train_merges

    assert _train_merges() == _train_merges()
    if version("tokenizers") != GOLDEN["tokenizers"] or corpus_fingerprint() != GOLDEN["corpus"]:
        pytest.skip("pinned for other versions of tokenizers or of the docs corpus")
    assert digest(prose) == GOLDEN["text"]


@pytest.mark.parametrize("make", [shapes_tokenizer, byte_tokenizer, text_tokenizer])
def test_saving_and_loading_gives_the_same_tokenizer(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<bos> Is the red star at 12, or A?\nThe array <w3> of values is returned. <eos>"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == tokenizer.decode(
        tokenizer(text).input_ids, skip_special_tokens=True
    )


def test_reviews_become_padded_rows(shapes):
    texts = reviews("train", 20)
    dataset = ReviewsDataset(texts, shapes)
    assert len(dataset) == 20
    for review, item in zip(texts, (dataset[i] for i in range(20)), strict=True):
        words = len(review.text.split())
        tokens = shapes.convert_ids_to_tokens(item["input_ids"].tolist())
        assert tokens == ["<cls>", *review.text.split(), "<sep>", *["<pad>"] * (62 - words)]
        assert item["attention_mask"].tolist() == [1] * (words + 2) + [0] * (62 - words)
        assert item["labels"] == review.label


def test_reviews_refuse_what_does_not_fit(shapes):
    with pytest.raises(ValueError, match=r"length must be at least \d+, the tokens of review 0, got 10"):
        ReviewsDataset(reviews("train", 1), shapes, length=10)
    incomplete = shapes_tokenizer()
    incomplete.cls_token = None
    with pytest.raises(ValueError, match="tokenizer must have cls_token, sep_token and pad_token"):
        ReviewsDataset(reviews("train", 1), incomplete)
