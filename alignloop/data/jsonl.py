"""Our own rows on disk: one JSON object a line, read and written as pydantic rows."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from alignloop.data.problems import plain_problems
from alignloop.errors import DataError, DiskFullError

R = TypeVar("R", bound=BaseModel)


def dump_jsonl(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write `rows` to `path`, one a line, UTF-8; returns how many.

    Not atomic: stages publish whole directories, and what they did not publish is never read.

    Raises:
        DiskFullError: no space left.
    """
    num_rows = 0
    try:
        with path.open("wb") as file:
            for row in rows:
                file.write(row.model_dump_json().encode("utf-8") + b"\n")
                num_rows += 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(path) from error
        raise
    return num_rows


def load_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    """The rows of `path`, one at a time, in order.

    Raises:
        DataError: no such file, or a line that is not a row of `model`; names file, line and field.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it should hold {model.__name__} lines") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                field, sentence = plain_problems(error)[0]
                where = f"{path}, line {number}" + (f", field {field}" if field else "")
                raise DataError(
                    f"{where}: {sentence}. The file should hold {model.__name__} lines as alignloop writes them"
                ) from None
