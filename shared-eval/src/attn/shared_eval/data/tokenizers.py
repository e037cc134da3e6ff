"""Three tokenizers with fixed ids: one for the words of the scenes and reviews, one for bytes, one for prose.

All three are ``transformers.PreTrainedTokenizerFast`` (extra ``models``), add no special tokens of their own accord and
are made here rather than loaded.
"""

import json
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn.shared_eval.data.cache import cached
from attn.shared_eval.data.text import corpus_fingerprint, docs_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "mask_token": "<mask>",
    "cls_token": "<cls>",
    "sep_token": "<sep>",
}
_SPECIAL_TOKENS = _BYTE_TOKENS | {"unk_token": "<unk>"}
_MARKERS = ["<image>", "<seg>", "<q>", "<a>"]

TEXT_VOCABULARY = 2048
"""Size of ``text_tokenizer()``'s vocabulary."""

LETTERS = tuple("ABCDEFGH")
"""Answer letters, one token each in ``text_tokenizer()``: ids 12 to 19."""

SYMBOLS = tuple(f"<w{i}>" for i in range(128))
"""Words without meaning for tasks, one token each in ``text_tokenizer()``: ids 20 to 147."""

_RESERVED = 192


def shapes_tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of scenes and reviews: 512 ids, of which the last are ``<unusedN>``.

    Text is lower-cased; a word, a digit, a newline and each of ``. , ; : ? ! ( ) [ ]`` is one token. ``A`` to ``D``
    alone in upper case are answer letters and differ from words. Decoding puts a space between any two tokens.

    Ids are frozen in ``shapes_vocabulary.json``: ``<pad>`` 0, ``<bos>`` 1, ``<unk>`` 2, ``<eos>`` 3, ``<image>`` 4,
    ``<seg>`` 5, ``<q>`` 6, ``<a>`` 7, newline 8, ``<mask>`` 9, ``<cls>`` 10, ``<sep>`` 11, punctuation, digits,
    letters, words. A new word takes the place of an ``<unusedN>``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    words = json.loads(files("attn.shared_eval.data").joinpath("shapes_vocabulary.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"[\n.,;:?!()\[\]0-9]"), "isolated"),
        ]
    )
    tokenizer.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in "ABCD"])
    return _wrap(tokenizer, _SPECIAL_TOKENS, _MARKERS)


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of UTF-8 bytes: id 0 to 255 is the byte of that value, as in ``docs_bytes``.

    Behind them ``<pad>`` 256, ``<bos>`` 257, ``<eos>`` 258, ``<mask>`` 259, ``<cls>`` 260, ``<sep>`` 261.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*_byte_characters(), *_BYTE_TOKENS.values()]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, _BYTE_TOKENS, [])


def text_tokenizer() -> "PreTrainedTokenizerFast":
    """The byte-level BPE tokenizer of the docs corpus: 2,048 ids, trained on ``docs_corpus("train")``.

    A digit is one token. The first 192 ids are reserved: ``<pad>`` to ``<sep>`` as in ``shapes_tokenizer`` (newline
    included), the letters A to H, the symbol words ``<w0>`` to ``<w127>``, and ``<unusedN>``. The other bytes follow,
    then merges in the order of training. Training takes some seconds, once on a machine: the result is kept in the
    user's cache folder.

    Raises:
        ModuleNotFoundError: if the docs corpus cannot be made (extra ``text``).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    rules = sha256(Path(__file__).read_bytes()).hexdigest()
    key = json.dumps([corpus_fingerprint(), version("tokenizers"), rules])
    merges = [tuple(merge) for merge in json.loads(cached("text-tokenizer", key, _train_merges))]
    newline = _byte_characters()[ord("\n")]
    first = ["<pad>", "<bos>", "<unk>", "<eos>", *_MARKERS, newline, "<mask>", "<cls>", "<sep>", *LETTERS, *SYMBOLS]
    first += [f"<unused{i}>" for i in range(_RESERVED - len(first))]
    pieces = [*first, *(c for c in _byte_characters() if c not in first), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = _text_pre_tokenizer(pre_tokenizers)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(symbol, normalized=False) for symbol in SYMBOLS])
    return _wrap(tokenizer, _SPECIAL_TOKENS, _MARKERS)


def _train_merges() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _text_pre_tokenizer(pre_tokenizers)
    alphabet = _byte_characters()
    # The vocabulary also holds what is reserved and not one of the 256 bytes (which the newline and the letters are).
    reserved = _RESERVED - len(LETTERS) - 1
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY - reserved, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(docs_corpus("train"), trainer)
    return json.dumps(json.loads(tokenizer.to_str())["model"]["merges"]).encode()


def _text_pre_tokenizer(pre_tokenizers: Any) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _wrap(tokenizer: Any, special: dict[str, str], more: list[str]) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=more, clean_up_tokenization_spaces=False, **special
    )
