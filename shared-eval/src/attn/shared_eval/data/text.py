"""Real prose for language models: paragraphs of the docstrings of four scientific packages."""

import json
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attn.shared_eval.data import docstrings
from attn.shared_eval.data.cache import cached

Split = Literal["train", "val", "test", "test_in_domain"]

_SPLITS: tuple[Split, ...] = ("train", "val", "test", "test_in_domain")
# In this order, so that a paragraph that stands in several packages counts as training text.
_PACKAGES = ("scipy", "scikit-learn", "numpy", "scikit-image")
_IN_DOMAIN_EVERY = 20


def docs_corpus(split: Split) -> list[str]:
    """The prose paragraphs of one split of the docs corpus, each once, in the order of the source files.

    The text comes from the installed wheels (extra ``text``) and is kept in the user's cache folder; the same versions
    give the same text on every platform and Python version. It is cut by package, so that validation and test text is
    of another hand than training text:

    - ``"train"``: scipy and scikit-learn, without every 20th paragraph;
    - ``"val"``: numpy;
    - ``"test"``: scikit-image;
    - ``"test_in_domain"``: every 20th paragraph of scipy and scikit-learn.

    Raises:
        ValueError: if there is no such split.
        ModuleNotFoundError: if one of the four packages is not installed.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    return list(_splits()[split])


def docs_bytes(split: Split) -> Tensor:
    """The split as UTF-8 bytes, a newline after each paragraph: uint8 ``[bytes]``, the ids of ``byte_tokenizer()``."""
    text = "".join(paragraph + "\n" for paragraph in docs_corpus(split))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def corpus_fingerprint() -> str:
    """SHA-256 of all splits of the docs corpus, hexadecimal: what a figure measured on it depends on."""
    return sha256(json.dumps(_splits(), sort_keys=True).encode()).hexdigest()


class TextWindows(Dataset[Tensor]):
    """Windows of a sequence of tokens for language models: item ``i`` is ``tokens[i * stride : i * stride + length]``.

    Args:
        tokens: ``[tokens]``, any integer type.
        length: tokens of a window; ask for one more than the context to get inputs and their next tokens.
        stride: tokens from one window to the next; None is ``length`` (no overlap).

    Items are int64 ``[length]``; what is left at the end is dropped.

    Raises:
        ValueError: if the tokens do not fill one window, or stride is not positive.
    """

    def __init__(self, tokens: Tensor, length: int, *, stride: int | None = None) -> None:
        if tokens.ndim != 1:
            raise ValueError(f"tokens must have one axis, got shape {tuple(tokens.shape)}")
        if not 1 <= length <= len(tokens):
            raise ValueError(f"length must lie in 1 .. {len(tokens)}, the number of tokens, got {length}")
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be positive, got {stride}")
        self.windows = tokens.unfold(0, length, length if stride is None else stride)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> Tensor:
        return self.windows[item].long()


@cache
def _splits() -> dict[str, list[str]]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError as error:
            raise ModuleNotFoundError(
                f"the docs corpus needs {', '.join(_PACKAGES)}, and {package} is not installed: "
                "install attn-shared-eval[text]"
            ) from error
    rules = sha256(Path(docstrings.__file__).read_bytes()).hexdigest()
    content = cached("docs-corpus", json.dumps([versions, rules]), _extract)
    prose: dict[str, list[str]] = json.loads(content)

    in_domain = prose["scipy"] + prose["scikit-learn"]
    return {
        "train": [text for i, text in enumerate(in_domain, 1) if i % _IN_DOMAIN_EVERY],
        "val": prose["numpy"],
        "test": prose["scikit-image"],
        "test_in_domain": in_domain[_IN_DOMAIN_EVERY - 1 :: _IN_DOMAIN_EVERY],
    }


def _extract() -> bytes:
    seen: set[str] = set()
    prose: dict[str, list[str]] = {}
    for package in _PACKAGES:
        prose[package] = [text for text in dict.fromkeys(docstrings.prose(package)) if text not in seen]
        seen.update(prose[package])
    return json.dumps(prose).encode()
