"""From a text to its words in the singular: by a closed vocabulary and no data, or by WordNet as published scorers."""

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|'[a-z]+|[^\w\s]", re.IGNORECASE)
_IRREGULAR = {"child": "children", "foot": "feet", "goose": "geese", "mouse": "mice", "person": "people"}


def tokens(text: str) -> list[str]:
    """Words, suffixes such as 's, and punctuation marks of a text; a hyphenated word is one."""
    return _TOKEN.findall(text)


def singulars(words: Iterable[str]) -> Mapping[str, str]:
    """The singular of each English plural of the given words, by plural.

    Only plurals that are none of the words themselves: "skis" stays what it is where it is a word of the vocabulary.
    """
    vocabulary = set(words)
    return {plural: word for word in sorted(vocabulary) for plural in _plurals(word) if plural not in vocabulary}


def _plurals(word: str) -> Iterable[str]:
    yield word + "s"
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        yield word + "es"
    if re.search(r"[^aeiou]y$", word):
        yield word[:-1] + "ies"
    if word.endswith("f"):
        yield word[:-1] + "ves"
    if word.endswith("fe"):
        yield word[:-2] + "ves"
    if word.endswith("man"):
        yield word[:-2] + "en"
    if word in _IRREGULAR:
        yield _IRREGULAR[word]


def wordnet_noun_lemmas(text: str) -> list[str]:
    """Lower-case words of a text, each as WordNet's lemma of a noun (the scorer of Object HalBench).

    It leaves "men" as it is and makes "vas" of "vases". Needs nltk (extra ``wordnet``) with its data ``punkt_tab`` and
    ``wordnet``.

    Raises:
        ModuleNotFoundError: if nltk is not installed.
        LookupError: if its data are not found.
    """
    lemmatizer = _nltk().WordNetLemmatizer()
    return [lemmatizer.lemmatize(word) for word in _nltk().word_tokenize(text.lower())]


def wordnet_lemmas(text: str) -> list[str]:
    """Lower-case words of a text, each as WordNet's lemma of its part of speech (the common port of CHAIR to Python 3).

    It makes "seat", which is a chair, of "seated". Needs nltk as `wordnet_noun_lemmas` does, and its data
    ``averaged_perceptron_tagger_eng``.

    Raises:
        ModuleNotFoundError: if nltk is not installed.
        LookupError: if its data are not found.
    """
    lemmatizer = _nltk().WordNetLemmatizer()
    tagged = _nltk().pos_tag(_nltk().word_tokenize(text.lower()))
    parts = {"J": "a", "V": "v", "R": "r"}
    return [lemmatizer.lemmatize(word, parts.get(tag[0], "n")) for word, tag in tagged]


def wordnet_nouns(text: str) -> list[str]:
    """Nouns of a text, as WordNet's lemmas and in the case that they are written in (the scorer of AMBER).

    Needs nltk as `wordnet_lemmas` does.

    Raises:
        ModuleNotFoundError: if nltk is not installed.
        LookupError: if its data are not found.
    """
    lemmatizer = _nltk().WordNetLemmatizer()
    tagged = _nltk().pos_tag(_nltk().word_tokenize(text))
    return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]


def _nltk() -> Any:
    try:
        return importlib.import_module("nltk")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lemmas of WordNet need nltk: install attn-shared-eval[wordnet]") from error
