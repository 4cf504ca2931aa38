"""The row a person points at: FILE, FILE:LINE, FILE:ID or RUN_DIR:ID.

A file of the run's own is read as what it is, any other as the readers of `data` read it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from pydantic import ValidationError

from alignloop.data.files import is_saved
from alignloop.data.problems import plain_problems
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import ReadResult, read_preferences
from alignloop.errors import DataError
from alignloop.records import (
    CandidateRow,
    DroppedRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    RejectedRow,
    Row,
    SelectedRow,
    SftRow,
)
from alignloop.run_dir.manifest import PARTIAL
from alignloop.run_dir.reader import as_json

InspectedRow = PreferenceRow | PairRow | SftRow | SelectedRow | CandidateRow
_NAMES: dict[type[Row], str] = {
    PairRow: "pair",
    SftRow: "SFT row",
    CandidateRow: "candidate",
    SelectedRow: "selected completion",
    PreferenceRow: "preference",
}
_OWN: tuple[type[Row], ...] = (*_NAMES, PromptRow, DroppedRow, RejectedRow)
"""Rows of alignloop's own: those that train, then the others."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
HOW = "ROW is FILE:LINE, FILE:ID or RUN_DIR:ID, for example data.jsonl:1"


class FoundRow(NamedTuple):
    """A row and where it was. `line` is its 1-based line (JSON lines) or element (JSON array); `kind` says in words
    what it is, for a file of the user's with the form its rows have."""

    file: Path
    line: int
    row: InspectedRow
    kind: str


def find_row(named: str) -> FoundRow:
    """Find a row. In a run directory the newest file that holds the id, of those that can train, is taken. DataError:
    no such file, line or id, or a row that cannot be read or that nothing trains on, with the reason."""
    path, key = _split(named)
    saved = is_saved(path)
    if path.is_dir() and not saved:
        if not key:
            raise DataError(
                f"{named}: this is a folder; name a row in it: {path}:ID, or a file: {path}/FILE.jsonl:LINE"
            )
        return _in_folder(path, key)
    if not path.is_file() and not saved:
        raise DataError(f"{path}: no such file or folder. {HOW}")
    number = 1 if not key else int(key) if _NUMBER.fullmatch(key) else None
    return _of_id(path, key) if number is None else _at_line(path, number, key=key)


def _split(named: str) -> tuple[Path, str]:
    """Path and what comes after the last colon that ends a path that exists."""
    ends = [len(named), *(index for index, letter in enumerate(named) if letter == ":")]
    for end in ends:
        path = Path(named[:end]).expanduser()
        with suppress(OSError):  # a name that is too long for any file
            if path.exists():
                return path, named[end + 1 :]
    return Path(named.partition(":")[0]).expanduser(), ""


def _in_folder(folder: Path, row_id: str) -> FoundRow:
    files = [file for file in sorted(_jsonl_files(folder)) if PARTIAL not in str(file.parent)]
    if not files:
        raise DataError(f"{folder}: holds no .jsonl file. {HOW}")
    untrained: tuple[Path, int, Row] | None = None
    for file in reversed(files):
        for line, row in _own_rows_of(file, row_id):
            if isinstance(row, InspectedRow):
                return _own(file, line, row)
            untrained = file, line, row
    if untrained is not None:
        return _own(*untrained)
    raise DataError(f"{folder}: none of its {len(files)} .jsonl files holds a row with the id {row_id!r}")


def _jsonl_files(folder: Path) -> Iterator[Path]:
    def cannot(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions") from error

    for inner, _, names in os.walk(folder, onerror=cannot):
        files = (Path(inner) / name for name in names if name.endswith(".jsonl"))
        yield from (file for file in files if file.is_file())


def _of_id(file: Path, row_id: str) -> FoundRow:
    if own := next(_own_rows_of(file, row_id), None):
        return _own(file, *own)
    if kind := _own_kind(file):
        texts = [text for _, text in _lines_of(file) if text.strip()]
        num_rows = sum(_parsed(text, kind) is not None for text in texts)
        raise _no_id(file, row_id, num_rows=num_rows, num_bad=len(texts) - num_rows)
    result = read_preferences([file], max_bad_fraction=1.0)
    if read := next((row for row in result.rows if row.id == row_id), None):
        return _as_read(file, read, result)
    raise _no_id(file, row_id, num_rows=len(result.rows), num_bad=len(result.rejected))


def _at_line(file: Path, number: int, *, key: str) -> FoundRow:
    text = next((text for line, text in _lines_of(file) if line == number), b"")
    if row := _parsed(text):
        return _own(file, number, row)
    if kind := _own_kind(file):
        if text.strip():
            raise _bad_line(kind, file, number, text)
        raise _no_line(file, number, [line for line, text in _lines_of(file) if text.strip()], unit="line")
    return _of_a_user(file, number, key=key)


def _of_a_user(file: Path, number: int, *, key: str) -> FoundRow:
    raw = open_rows(file)
    try:
        result = read_preferences([file], max_bad_fraction=1.0)
    except DataError as error:
        if not error.rejected:
            raise
        result = ReadResult([], list(error.rejected), {})
    if found := next((row for row in result.rows if row.source.line == number), None):
        return _as_read(file, found, result)
    if bad := next((row for row in result.rejected if row.line == number), None):
        field = f", field {bad.field}" if bad.field else ""
        raise DataError(f"{bad.file}, {raw.unit} {bad.line}{field}: {bad.reason}", rejected=[bad])
    if named := next((row for row in result.rows if row.id == key), None):
        return _as_read(file, named, result)
    lines = [row.line for row in raw.rows()]
    if number in lines and result.rows:
        # Responses to one prompt are one ranked list: the row became part of another.
        first = max(line for row in result.rows if (line := row.source.line or 0) < number)
        raise DataError(
            f"{file}, {raw.unit} {number}: a response to the prompt of {raw.unit} {first}, ranked with that row and "
            f"those between. See what came of them: {file}:{first}"
        )
    if raw.headed and 0 < number < max(lines):
        before = max((line for line in lines if line < number), default=None)
        what = "the header" if before is None else f"blank, or part of the row that begins in line {before}"
        raise DataError(f"{file}, line {number}: no row begins here; it is {what}")
    raise _no_line(file, number, lines, unit=raw.unit)


def _as_read(file: Path, row: PreferenceRow, result: ReadResult[PreferenceRow]) -> FoundRow:
    return FoundRow(file, row.source.line or 1, row, f"preference ({result.forms[str(file)]})")


def _own(file: Path, line: int, row: Row) -> FoundRow:
    """A row as alignloop writes it; DataError where nothing trains on it."""
    if isinstance(row, InspectedRow):
        return FoundRow(file, line, row, _NAMES[type(row)])
    what = "this is a prompt without a completion: nothing of it is trained on"
    if isinstance(row, DroppedRow):
        what = f"this says that {row.id} was dropped by {row.stage} ({row.rule}): {row.reason}"
    elif isinstance(row, RejectedRow):
        what = f"this says that {row.file}, line {row.line} could not be read: {row.reason}"
    raise DataError(f"{file}, line {line}: {what}")


def _own_rows_of(file: Path, row_id: str) -> Iterator[tuple[int, Row]]:
    mark = as_json(row_id)
    for line, text in _lines_of(file):
        row = _parsed(text) if mark in text else None
        if row is not None and getattr(row, "id", None) == row_id:
            yield line, row


def _own_kind(file: Path) -> type[Row] | None:
    """Which of alignloop's own rows the file holds, by its first whole line; None for a file of the user's."""
    for _, text in _lines_of(file):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            row = _parsed(text)
            return None if row is None else type(row)
    return None


def _parsed(text: bytes, *kinds: type[Row]) -> Row | None:
    """A line as the first of the kinds (all of alignloop's own) that it is; None where it is none."""
    for kind in (kinds or _OWN) if text.lstrip().startswith(b"{") else ():
        with suppress(ValidationError):
            return kind.model_validate_json(text)
    return None


def _lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    if file.is_dir():  # a saved data set has rows, but no lines
        return
    try:
        with file.open("rb") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check its permissions") from error


def _bad_line(kind: type[Row], file: Path, line: int, text: bytes) -> DataError:
    try:
        kind.model_validate_json(text)
    except ValidationError as error:
        field, sentence = plain_problems(error)[0]
        where = f"{file}, line {line}" + (f", field {field}" if field else "")
        return DataError(f"{where}: {sentence}. The other lines are {kind.__name__}s, as alignloop writes them")
    raise AssertionError("only called for lines that are no such row")


def _no_id(file: Path, row_id: str, *, num_rows: int, num_bad: int) -> DataError:
    rows = f"none of its {num_rows:,} readable rows has the id {row_id!r}"
    if num_rows == 1:
        rows = f"its one readable row has another id than {row_id!r}"
    bad = f" ({num_bad:,} more cannot be read)" if num_bad else ""
    return DataError(f"{file}: {rows}{bad}; give a line: {file}:1")


def _no_line(file: Path, number: int, lines: Sequence[int], *, unit: str) -> DataError:
    """`lines` are those that hold rows, readable or not."""
    if 0 < number < max(lines):
        return DataError(f"{file}, {unit} {number}: the {unit} is blank")
    first, last = min(lines), max(lines)
    rows = f"its one row is {unit} {last}" if len(lines) == 1 else f"its rows are {unit}s {first} to {last}"
    if number < 1:
        return DataError(f"{file}: {unit}s are counted from 1, there is no {unit} {number}; {rows}")
    return DataError(f"{file}: has no {unit} {number}; {rows}")
