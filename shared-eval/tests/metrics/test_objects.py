"""CHAIR and Object HalBench: captions read and counted by hand, truth from files in COCO's format."""

import json
import math
from types import SimpleNamespace

import nltk
import pytest

from attn.shared_eval.metrics import (
    Chair,
    ObjectHalBench,
    ObjectMatcher,
    ObjectVocabulary,
    coco_objects,
    lemmas,
    repeated_ngrams,
    wordnet_lemmas,
    wordnet_noun_lemmas,
)

SYNONYMS = """person, man, woman, adult, people, skier
dog, puppy
bird, duck
toilet
chair, seat
tie
train, metro
wine glass
knife
motorcycle,  motor bike
skis, ski
bus
dining table, table
"""


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS, encoding="utf-8")
    return path


@pytest.fixture
def matcher(synonyms):
    return ObjectMatcher(ObjectVocabulary.chair(synonyms))


def mentions(matcher, text):
    return matcher.mentions(matcher.words(text))


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Two men and a Puppy, and the man's dogs.", ["person", "dog", "person", "dog"]),
        ("an adult bird", ["bird"]),
        ("an adult and a bird", ["person", "bird"]),
        ("an adult, bird", ["person", "bird"]),
        ("a passenger train on the train tracks", ["train"]),
        ("wine glasses and knives", ["wine glass", "knife"]),
        ("a bow tie", ["tie"]),
        ("the toilet has a seat", ["toilet"]),
        ("a toilet seat by a chair", ["toilet", "chair"]),
        ("a seat", ["chair"]),
        ("a skier with skis and a ski", ["person", "skis", "skis"]),
        ("a motor bike and buses", ["bus"]),  # the release's list keeps the blank of " motor bike"
        ("a dining table", ["dining table"]),
        ("people", ["person"]),
        ("nothing at all", []),
    ],
)
def test_objects_named_by_a_caption(matcher, caption, found):
    assert mentions(matcher, caption) == found


def test_object_halbench_cuts_blanks_and_takes_its_terms_from_the_list(synonyms):
    matcher = ObjectMatcher(ObjectVocabulary.object_halbench(synonyms))
    assert mentions(matcher, "a motor bike") == ["motorcycle"]
    assert matcher.words("a dining table, a home plate and a hot dog") == [
        *("a", "dining table", ",", "a", "home plate", "and", "a", "hot", "dog"),
    ]


def test_any_vocabulary_will_do():
    shapes = ObjectVocabulary({"circle": ["circle", "disk"], "cross": ["cross"]})
    assert mentions(ObjectMatcher(shapes), "two disks, crosses and a square") == ["circle", "cross"]


CAPTIONS = ["A dog and a dog by a train.", "Nothing here.", "A man on a bus with a man and a bird"]
TRUTH = [{"dog", "person"}, {"bus"}, {"person", "bus", "knife"}]


def test_chair_counted_by_hand(matcher):
    metric = Chair(matcher)
    metric.update(CAPTIONS, TRUTH)
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures == pytest.approx(
        {
            "chair_s": 2 / 3,  # train; bird
            "chair_i": 2 / 7,
            "recall": (1 + 0 + 2) / (2 + 1 + 3),
            "precision": 3 / (2 + 0 + 3),
            "f1": 2 * (3 / 6) * (3 / 5) / (3 / 6 + 3 / 5),
            "length": (9 + 3 + 11) / 3,
            "repetition": 0,
        }
    )


def test_object_halbench_counted_by_hand(matcher):
    metric = ObjectHalBench(matcher)
    metric.update(CAPTIONS, TRUTH)
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures == pytest.approx({"response": 2 / 2, "mention": 2 / 7, "recall": 3 / 6, "length": (8 + 2 + 11) / 3})


def test_objects_that_a_judge_lists_count_once_and_short_answers_have_none(matcher):
    listed = {"There is a dog and a dog.": ["dog", "dog", "train", "cloud"], "a train": ["train"]}
    metric = ObjectHalBench(matcher, listed.__getitem__)
    metric.update(list(listed), [{"dog"}, {"dog"}])
    figures = metric.compute()
    assert float(figures["mention"]) == 1 / 2
    assert float(figures["response"]) == 1
    seats = ObjectHalBench(matcher, lambda answer: ["toilet", "seat"])
    seats.update(["the seat of a toilet"], [{"toilet"}])
    assert float(seats.compute()["mention"]) == 0


def test_figures_without_captions_are_undefined(matcher):
    for metric in Chair(matcher), ObjectHalBench(matcher):
        metric.update([], [])
        assert all(math.isnan(value) for value in metric.compute().values())


def test_repeated_ngrams():
    assert repeated_ngrams(["a", "b", "c", "d"] * 10) == pytest.approx(1 - 4 / 37)
    assert repeated_ngrams(["a", "b", "c", "d", "e"]) == 0
    assert repeated_ngrams(["a"]) == 0
    assert repeated_ngrams(["a", "a", "a"], n=1) == pytest.approx(2 / 3)


def test_truth_is_read_from_coco_files(matcher, tmp_path):
    instances = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "dining table"}],
        "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 9}],
    }
    captions = {
        "annotations": [{"image_id": 1, "caption": "Two men."}, {"image_id": 2, "caption": "A table and knives"}]
    }
    files = [tmp_path / "instances.json", tmp_path / "captions.json"]
    for path, content in zip(files, (instances, captions), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    assert coco_objects(matcher, files[:1], files[1:]) == {
        1: {"dog", "dining table", "person"},
        2: {"dining table", "knife"},
    }
    instances["categories"].append({"id": 1, "name": "zebra"})
    files[0].write_text(json.dumps(instances), encoding="utf-8")
    with pytest.raises(ValueError, match=r"categories of .* must be words of the vocabulary, got zebra"):
        coco_objects(matcher, files[:1])


def test_errors(matcher, tmp_path):
    with pytest.raises(ValueError, match="truth must hold classes of the vocabulary, got man"):
        Chair(matcher).update(["a man"], [{"man"}])
    with pytest.raises(ValueError, match="captions and truth must be of equal length, got 1, 0"):
        Chair(matcher).update(["a man"], [])
    with pytest.raises(ValueError, match="answers and truth must be of equal length, got 1, 0"):
        ObjectHalBench(matcher).update(["a man"], [])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="must hold a line of synonyms for each class, got none"):
        ObjectVocabulary.chair(tmp_path / "empty.txt")


class Lemmatizer:
    """WordNet as far as the tests go: nouns lose their s, verbs become what they are forms of."""

    def lemmatize(self, word, part="n"):
        return {"v": {"seated": "seat"}}.get(part, {}).get(word, word.removesuffix("s") if part == "n" else word)


def test_lemmas_of_wordnet_are_asked_for_by_part_of_speech(monkeypatch, matcher):
    tags = {"seated": "VBN", "red": "JJ", "dogs": "NNS"}
    stub = SimpleNamespace(
        WordNetLemmatizer=Lemmatizer,
        word_tokenize=str.split,
        pos_tag=lambda words: [(word, tags.get(word.lower(), "NN")) for word in words],
    )
    monkeypatch.setattr(lemmas, "_nltk", lambda: stub)
    assert wordnet_lemmas("Seated red Dogs") == ["seat", "red", "dog"]
    assert wordnet_noun_lemmas("Seated red Dogs") == ["seated", "red", "dog"]
    assert lemmas.wordnet_nouns("Seated red Dogs") == ["Dog"]
    by_part = ObjectMatcher(matcher.vocabulary, wordnet_lemmas)
    assert mentions(by_part, "a seated man") == ["chair", "person"]


def test_lemmas_of_wordnet_need_nltk(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nltk", None)
    with pytest.raises(ModuleNotFoundError, match=r"install attn-shared-eval\[wordnet\]"):
        wordnet_lemmas("a dog")


def test_the_real_wordnet_misses_men_and_vases():
    try:
        for name in ("corpora/wordnet", "tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng"):
            nltk.data.find(name)
    except LookupError:
        pytest.skip("needs nltk's data: wordnet, punkt_tab, averaged_perceptron_tagger_eng")
    assert wordnet_noun_lemmas("Men with vases and dogs") == ["men", "with", "vas", "and", "dog"]
    assert wordnet_lemmas("He was seated") == ["he", "be", "seat"]
