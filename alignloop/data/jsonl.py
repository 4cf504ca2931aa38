"""Our own rows on disk: one JSON object a line, read and written as pydantic rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from alignloop.artifacts import disk_errors_named
from alignloop.data.files import BOM
from alignloop.data.problems import plain_problems
from alignloop.errors import DataError

R = TypeVar("R", bound=BaseModel)


def dump_jsonl(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write `rows` as JSON lines in UTF-8; returns how many.

    Not atomic: stages publish whole directories, and what they did not publish is never read.

    Raises:
        DiskFullError: no space left.
    """
    num_rows = 0
    with disk_errors_named(path), path.open("wb") as file:
        for row in rows:
            file.write(row.model_dump_json().encode("utf-8") + b"\n")
            num_rows += 1
    return num_rows


def load_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    """The rows of `path`, one at a time, in order.

    Raises:
        DataError: no such file, or a line that is not a row of `model`; names file, line and field.
    """
    for number, _, line in numbered_lines(path, holds=f"; it should hold {model.__name__} lines"):
        try:
            yield model.model_validate_json(line)
        except ValidationError as error:
            field, sentence = plain_problems(error)[0]
            where = f"{path}, line {number}" + (f", field {field}" if field else "")
            raise DataError(
                f"{where}: {sentence}. The file should hold {model.__name__} lines as alignloop writes them"
            ) from None


def numbered_lines(path: Path, name: str | None = None, *, holds: str = "") -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset of its first byte, bytes) of the lines that are not blank, one at a time.

    Raises:
        DataError: it cannot be read; names the file as `name` (default: its path) and adds what it `holds`.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.removeprefix(BOM).strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise DataError(f"{name or path}: cannot be read ({error.strerror}){holds}") from error
