"""Local folders of text in the formats of the Hugging Face hub and of the original releases."""

import csv
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_OTHER_NAMES = {"validation": ("valid", "val", "dev")}


def load_text(folder: str | Path, split: str, *, column: str = "text") -> list[str]:
    """The texts of one split of a folder: a line each of plain text, or a row each of a table.

    Line ends are dropped, so that joining the texts with newlines gives a plain file back, and the hub's parquet of
    WikiText gives what ``wiki.train.tokens`` gives (but for spaces in blank lines).

    Args:
        folder: holds the files of the split, see ``load_table``.
        split: "train", "validation", "test", or another name that the files have.
        column: which column of a table.

    Raises:
        FileNotFoundError: if no file of the split is found.
        ValueError: if a table lacks the column.
        ModuleNotFoundError: if parquet or arrow files are met without pyarrow (extra ``tables``).
    """
    rows = load_table(folder, split)
    if rows and column not in rows[0]:
        raise ValueError(f"column must be one of {', '.join(rows[0])}, got {column!r}")
    return [row[column].removesuffix("\n") for row in rows]


def load_table(folder: str | Path, split: str, *, columns: list[str] | None = None) -> list[Row]:
    """The rows of one split of a folder.

    A file belongs to the split if the split's name is a part of its own, between dots and hyphens:
    ``train-00000-of-00002.parquet``, ``wiki.train.tokens``, ``validation_matched.jsonl``. Looked for in the folder,
    its ``data`` folder, and a folder named as the split (``datasets``' ``save_to_disk``). ``validation`` also finds
    ``valid``, ``val`` and ``dev``. Of several formats the first of this list is read, all its files in order of name:

    - ``.parquet``; ``.arrow`` (stream or file);
    - ``.jsonl``: an object a line; ``.json``: a list of objects, or lines;
    - ``.tsv``: columns named by the first line, no quoting (GLUE); ``.csv``: the same, quoted;
    - ``.txt``, ``.tokens``, ``.raw``: one column ``text``, a row a line.

    Args:
        folder: the folder of one data set (and one configuration of it).
        split: "train", "validation", "test", or another name that the files have.
        columns: names of the columns of ``.tsv`` and ``.csv`` files that have no heading line (CoLA).

    Returns:
        A dictionary a row; values of ``.tsv`` and ``.csv`` files are strings.

    Raises:
        FileNotFoundError: if no file of the split is found.
        ValueError: if a line is malformed.
        ModuleNotFoundError: if parquet or arrow files are met without pyarrow (extra ``tables``).
    """
    folder = Path(folder)
    names = [split, *(split.replace(name, other) for name, others in _OTHER_NAMES.items() for other in others)]
    for name in dict.fromkeys(names):
        files = [
            *(file for place in (folder, folder / "data") for file in _files(place) if name in _parts(file)),
            *_files(folder / name),
        ]
        for suffixes, read in _READERS.items():
            if chosen := sorted(file for file in files if file.suffix in suffixes):
                return [row for file in chosen for row in read(file, columns)]
    endings = "|".join(suffix.removeprefix(".") for suffixes in _READERS for suffix in suffixes)
    raise FileNotFoundError(
        f"no file of split {split!r} in {folder}: expected a name such as {split}.({endings}), "
        f"found {', '.join(sorted(file.name for file in _files(folder))) or 'no files'}"
    )


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []


def _parts(file: Path) -> list[str]:
    return file.stem.replace("-", ".").split(".")


def _read_parquet(file: Path, _: list[str] | None) -> Iterator[Row]:
    for batch in _pyarrow("parquet").ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


def _read_arrow(file: Path, _: list[str] | None) -> Iterator[Row]:
    ipc = _pyarrow("ipc")
    with file.open("rb") as source:
        stream = source.read(6) != b"ARROW1"
        source.seek(0)
        table = (ipc.open_stream if stream else ipc.open_file)(source).read_all()
    yield from table.to_pylist()


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading parquet and arrow files needs pyarrow: install attn-shared-eval[tables]"
        ) from error


def _read_json(file: Path, _: list[str] | None) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json" and text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}, must be a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}, must be a JSON object, got {type(row).__name__}")  # noqa: TRY004
        yield row


def _read_separated(file: Path, columns: list[str] | None) -> Iterator[Row]:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, strict=True, **dialect)
        heading = columns or next(rows, [])
        for row in rows:
            if len(row) != len(heading):
                place = f"{file}, line {rows.line_num},"
                raise ValueError(f"{place} must have the {len(heading)} columns {', '.join(heading)}, got {len(row)}")
            yield dict(zip(heading, row, strict=True))


def _read_lines(file: Path, _: list[str] | None) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield {"text": line.removesuffix("\n")}


_READERS: dict[tuple[str, ...], Callable[[Path, list[str] | None], Iterator[Row]]] = {
    (".parquet",): _read_parquet,
    (".arrow",): _read_arrow,
    (".jsonl",): _read_json,
    (".json",): _read_json,
    (".tsv",): _read_separated,
    (".csv",): _read_separated,
    (".txt", ".tokens", ".raw"): _read_lines,
}
