"""Prose out of the docstrings of installed packages, read from their source files without importing them.

The result depends on the files alone: not on the platform, nor on the Python version, whose ``inspect.cleandoc`` and
compiler treat indentation differently from version to version.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# Folders whose text is of another kind (tests), of other people (vendored code), or only in wheels for some Pythons
# (numpy.distutils); files that the build writes.
_SKIPPED_FOLDERS = frozenset({"tests", "_tests", "externals", "_vendored", "distutils", "_pyinstaller"})
_SKIPPED_FILES = frozenset({"__config__.py", "_distributor_init.py", "conftest.py", "version.py", "_version.py"})

_MARKUP = re.compile(
    r"^(>>>|\.\.\.|\.\. |\.\.$|:\w+.*:|[-=~^*+|#\"'`]{3}|\|)"  # doctest, directive, field, underline, table, grid
    r"|^[\w*]+(, [\w*]+)* ?: "  # 'name : type' of a parameter list
)
_FEWEST_WORDS = 8
_LEAST_LETTERS = 0.75  # of the characters, spaces counted as letters


def prose(package: str) -> list[str]:
    """The prose paragraphs of a distribution's docstrings, in order of file and place; repetitions kept.

    Docstrings are those of modules, classes and functions, and those that ``add_newdoc(...)`` gives to compiled ones.
    One is cut into paragraphs at blank lines and where the indentation changes. A paragraph is prose if it

    - has no line that looks like markup: doctest, directive, field, table, underline, or ``name : type``;
    - begins with a capital letter or a backquote and ends with one of ``. : ! ? )``;
    - has at least eight words, and letters and spaces make up three quarters of it.

    Its lines are joined by single spaces.

    Args:
        package: name of an installed distribution, such as "scikit-learn".

    Raises:
        ModuleNotFoundError: if it is not installed, or lacks the list of its files.
    """
    try:
        files = distribution(package).files
    except PackageNotFoundError:
        files = None
    if files is None:
        raise ModuleNotFoundError(f"the installed package {package!r} is needed, and the list of its files")
    sources = sorted(
        (file.as_posix(), file)
        for file in files
        if file.suffix == ".py" and file.name not in _SKIPPED_FILES and _SKIPPED_FOLDERS.isdisjoint(file.parts)
    )
    return [text for _, file in sources for text in _prose_of_source(Path(str(file.locate())).read_bytes())]


def _prose_of_source(source: bytes) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escape sequences that newer Pythons warn of
        tree = ast.parse(source)
    for docstring in _docstrings(tree):
        for paragraph in _paragraphs(docstring):
            if _is_prose(paragraph):
                yield " ".join(" ".join(paragraph).split())


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings in the order of the source."""
    match node:
        case (
            ast.Module(body=[ast.Expr(value=ast.Constant(value=str(text))), *_])
            | ast.ClassDef(body=[ast.Expr(value=ast.Constant(value=str(text))), *_])
            | ast.FunctionDef(body=[ast.Expr(value=ast.Constant(value=str(text))), *_])
            | ast.AsyncFunctionDef(body=[ast.Expr(value=ast.Constant(value=str(text))), *_])
        ):
            yield text
        case ast.Call(func=ast.Name(id="add_newdoc"), args=arguments):
            constants = (
                part for argument in arguments for part in ast.walk(argument) if isinstance(part, ast.Constant)
            )
            yield from (constant.value for constant in constants if isinstance(constant.value, str))
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)


def _paragraphs(docstring: str) -> Iterator[list[str]]:
    """Runs of lines with one indentation; the first line, which follows the quotes, fits any."""
    paragraph: list[str] = []
    indentation = None
    for number, line in enumerate(docstring.expandtabs(8).splitlines()):
        text = line.strip()
        here = None if number == 0 else len(line) - len(line.lstrip())
        if paragraph and (not text or (indentation is not None and here != indentation)):
            yield paragraph
            paragraph = []
        if text:
            paragraph.append(text)
            indentation = here
    if paragraph:
        yield paragraph


def _is_prose(paragraph: list[str]) -> bool:
    text = " ".join(paragraph)
    return (
        (text[0].isupper() or text[0] == "`")
        and text[-1] in ".:!?)"
        and len(text.split()) >= _FEWEST_WORDS
        and sum(character.isalpha() or character.isspace() for character in text) >= _LEAST_LETTERS * len(text)
        and not any(map(_MARKUP.match, paragraph))
    )
