"""The files of a benchmark's tree: records checked as they are read, everything written whole."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attn.shared_eval.claims.files import write_whole

Record = dict[str, Any]
Fields = Mapping[str, type | tuple[type, ...]]


def read_json(path: Path, *, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """The content of a JSON file, in the first of the encodings that fits.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no JSON in any of the encodings.
    """
    content = path.read_bytes()
    for encoding in encodings:
        try:
            return json.loads(content.decode(encoding))
        except ValueError as error:  # bad bytes and bad JSON alike
            reason = error
    raise ValueError(f"{path} must be JSON, got {reason}") from reason


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON-lines file, each with its place for `checked`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no JSON.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}: line {number}", json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} must be JSON, got {error}") from error


def checked(record: Any, fields: Fields, place: str) -> Record:
    """The record, if it is an object that has the fields.

    Raises:
        ValueError: naming the place, the key and what it must be.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place} must be an object, got {type(record).__name__}")  # noqa: TRY004
    for key, kinds in fields.items():
        if not isinstance(record.get(key), kinds):
            names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            got = type(record[key]).__name__ if key in record else f"only {', '.join(record) or 'nothing'}"
            raise ValueError(f"{place} must have the key {key!r} ({names}), got {got}")  # noqa: TRY004
    return record


def checked_list(records: Any, fields: Fields, place: str) -> list[Record]:
    """The records, if they are a list of objects that have the fields.

    Raises:
        ValueError: naming the place, the key and what it must be.
    """
    if not isinstance(records, list):
        raise ValueError(f"{place} must be a list, got {type(records).__name__}")  # noqa: TRY004
    return [checked(record, fields, f"{place}[{number}]") for number, record in enumerate(records)]


def linked(table: Mapping[Any, Any], record: Record, key: str, place: str) -> Any:
    """What the key of a record refers to.

    Raises:
        ValueError: if it refers to nothing.
    """
    if record[key] not in table:
        raise ValueError(f"{place} must have a {key!r} that is listed in the file, got {record[key]!r}")
    return table[record[key]]


def write_json(path: Path, content: Any) -> None:
    """A JSON file, written whole."""
    write_whole(path, json.dumps(content))


def write_image(path: Path, image: np.ndarray) -> None:
    """A picture uint8 ``[height, width, 3]`` in the format of the name's ending, written whole.

    JPEG has quality 95 and colors at full resolution.
    """
    options: Record = (
        {"format": "PNG"} if path.suffix == ".png" else {"format": "JPEG", "quality": 95, "subsampling": 0}
    )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    write_whole(path, buffer.getvalue())
