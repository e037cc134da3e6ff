"""The docs corpus: the rules on small sources, the cache, and the golden fingerprint of the locked wheels."""

from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attn.shared_eval.data import TextWindows, corpus_fingerprint, docs_bytes, docs_corpus, docstrings, text
from attn.shared_eval.data.cache import cached
from attn.shared_eval.data.docstrings import prose

LOCKED = {"scipy": "1.17.1", "scikit-learn": "1.9.1", "numpy": "2.4.6", "scikit-image": "0.26.0"}
FINGERPRINT = "ed9ce62aaa8c7570371b1e17272ff936a443000e62d28025df32cc553c8d0f51"

SOURCE = '''
"""The first line of a module is a paragraph of its own here.

    Indented text is cut off from what stands above it and
    its lines are joined with   single spaces.
Back at the margin another paragraph of enough words begins here.

>>> print("A doctest is not prose, even if it has enough words in it.")

Parameters
----------
width : int, the number of pixels that one row of the picture has.
    How many pixels one row of the picture has, at least one.

.. note:: A directive is not prose, even if it has enough words in it.

Too few words for a paragraph.

not a capital letter at the beginning of this rather long paragraph.

No full stop at the end of this rather long paragraph of words

A + B = C, 1 + 2 = 3, (x, y, z) -> [1, 2, 3, 4], {} != [], 5 * 6 == 30.
"""

class Shape:
    def area(self):
        """`Backquotes` may begin a paragraph, and it may end in a colon:"""

    async def wait(self):
        "An asynchronous function has a docstring like any other function here."
        "A second string is no docstring, even if it has enough words in it."

text = """A string that is assigned is no docstring, even with enough words."""
print("Nor is the argument of a function, even if it has enough words.")
add_newdoc("pkg", "name", ("method", """
    Compiled functions get their docstrings in this way from a call.
    """))
'''

PROSE = [
    "The first line of a module is a paragraph of its own here.",
    "Indented text is cut off from what stands above it and its lines are joined with single spaces.",
    "Back at the margin another paragraph of enough words begins here.",
    "How many pixels one row of the picture has, at least one.",
    "`Backquotes` may begin a paragraph, and it may end in a colon:",
    "An asynchronous function has a docstring like any other function here.",
    "Compiled functions get their docstrings in this way from a call.",
]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution made of the given files on the path, as pip would."""

    def install(name, sources):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in sources))
        for path, source in sources.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_prose_keeps_paragraphs_and_nothing_else(install):
    install("demo", {"demo/__init__.py": SOURCE})
    assert prose("demo") == PROSE


def test_prose_orders_by_file_and_skips_tests_vendored_code_and_generated_files(install):
    paragraph = '"""The text of file number {} has quite enough words to stay."""'
    names = ["b.py", "a/z.py", "tests/c.py", "externals/d.py", "e.txt", "version.py", "distutils/f.py"]
    install("demo", {f"demo/{name}": paragraph.format(i) for i, name in enumerate(names)})
    assert [text.split()[5] for text in prose("demo")] == ["1", "0"]


def test_prose_does_not_import_and_takes_no_notice_of_warnings(install):
    install("demo", {"demo/__init__.py": f'{PROSE[0]!r}\nraise RuntimeError("imported")\npattern = "\\d"\n'})
    assert prose("demo") == PROSE[:1]


def test_windows_line_ends_change_nothing(install):
    install("demo", {"demo/__init__.py": SOURCE.replace("\n", "\r\n")})
    assert prose("demo") == PROSE


def test_a_tab_indents_to_a_multiple_of_eight(install):
    install(
        "demo",
        {"demo/__init__.py": '"""\n\tA tab and eight spaces are\n        the same indentation of a paragraph.\n"""'},
    )
    assert prose("demo") == ["A tab and eight spaces are the same indentation of a paragraph."]


def test_a_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match="the installed package 'no-such-package' is needed"):
        prose("no-such-package")


def test_a_missing_package_of_the_corpus_names_the_extra(monkeypatch):
    def without_scikit_image(package):
        if package == "scikit-image":
            raise PackageNotFoundError(package)
        return version(package)

    text._splits.cache_clear()
    monkeypatch.setattr(text, "version", without_scikit_image)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-image is not installed: install attn-shared-eval\[text\]"):
        docs_corpus("test")


@pytest.fixture(scope="module")
def corpus():
    return {split: docs_corpus(split) for split in ("train", "val", "test", "test_in_domain")}


def test_no_paragraph_stands_twice_or_in_two_splits(corpus):
    paragraphs = [paragraph for split in corpus.values() for paragraph in split]
    assert len(set(paragraphs)) == len(paragraphs) > 20_000


def test_splits_go_by_package_and_every_twentieth_training_paragraph(monkeypatch):
    """A paragraph of several packages counts once, as training text before anything else."""
    numbers = {"scipy": range(50), "scikit-learn": range(40, 75), "numpy": range(70, 80), "scikit-image": range(79, 85)}
    monkeypatch.setattr(docstrings, "prose", lambda package: [*map(str, numbers[package])] * 2)
    monkeypatch.setattr(text, "cached", lambda name, key, build: build())
    splits = text._splits.__wrapped__()
    held_out = [19, 39, 59]
    assert {split: [*map(int, paragraphs)] for split, paragraphs in splits.items()} == {
        "train": [number for number in range(75) if number not in held_out],
        "val": [75, 76, 77, 78, 79],
        "test": [80, 81, 82, 83, 84],
        "test_in_domain": held_out,
    }


def test_the_corpus_is_the_prose_of_the_packages(corpus):
    assert set(prose("scikit-image")) >= set(corpus["test"])


def test_bytes_are_the_paragraphs_a_line_each(corpus):
    data = docs_bytes("test")
    assert data.dtype == torch.uint8
    assert bytes(data.tolist()).decode().splitlines() == corpus["test"]


def test_the_fingerprint_is_golden():
    installed = {package: version(package) for package in LOCKED}
    if installed != LOCKED:
        pytest.skip(f"pinned for {LOCKED}, installed are {installed}")
    assert corpus_fingerprint() == FINGERPRINT


def test_changing_what_was_returned_changes_nothing():
    paragraphs = docs_corpus("val")
    before = list(paragraphs)
    paragraphs.clear()
    assert docs_corpus("val") == before


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, val, test, test_in_domain, got 'dev'"):
        docs_corpus("dev")


def test_the_cache_is_read_and_a_damaged_entry_built_again(tmp_path):
    builds = []

    def build():
        builds.append(1)
        return b"content\nof two lines"

    def read(key="key"):
        return cached("thing", key, build, folder=tmp_path / "new")

    assert [read(), read()] == [build()] * 2
    assert len(builds) == 2  # one of them called above
    (entry,) = (tmp_path / "new").iterdir()
    for damaged in (b"", b"x", entry.read_bytes()[:-1], entry.read_bytes().replace(b"two", b"ten")):
        entry.write_bytes(damaged)
        before = len(builds)
        assert read() == b"content\nof two lines"
        assert len(builds) == before + 1
        assert sha256(entry.read_bytes().split(b"\n", 1)[1]).hexdigest().encode() == entry.read_bytes()[:64]
    before = len(builds)
    read("another key")
    assert len(builds) == before + 1
    assert len(list((tmp_path / "new").iterdir())) == 2  # no temporary files are left


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached("thing", "key", lambda: b"content", folder=tmp_path / "file") == b"content"


@given(st.integers(1, 60), st.data())
def test_windows_are_slices(size, data):
    tokens = torch.arange(size, dtype=torch.uint8)
    length, stride = data.draw(st.integers(1, size)), data.draw(st.none() | st.integers(1, 70))
    windows = TextWindows(tokens, length, stride=stride)
    starts = range(0, size - length + 1, stride or length)
    assert [windows[i].tolist() for i in range(len(windows))] == [list(range(s, s + length)) for s in starts]
    assert windows[0].dtype == torch.int64


def test_windows_refuse_what_does_not_fit():
    tokens = torch.arange(5)
    with pytest.raises(ValueError, match=r"tokens must have one axis, got shape \(1, 5\)"):
        TextWindows(tokens[None], 2)
    with pytest.raises(ValueError, match=r"length must lie in 1 .. 5, the number of tokens, got 6"):
        TextWindows(tokens, 6)
    with pytest.raises(ValueError, match="stride must be positive, got 0"):
        TextWindows(tokens, 2, stride=0)


def test_the_fingerprint_covers_every_split(monkeypatch):
    fingerprints = set()
    for changed in (None, "train", "val", "test", "test_in_domain"):
        splits = {split: ["A paragraph."] for split in ("train", "val", "test", "test_in_domain")}
        if changed:
            splits[changed] = ["Another paragraph."]
        monkeypatch.setattr(text, "_splits", lambda splits=splits: splits)
        fingerprints.add(corpus_fingerprint())
    assert len(fingerprints) == 5
