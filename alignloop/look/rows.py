"""The row a person points at: FILE, FILE:LINE, FILE:ID or RUN_DIR:ID."""

from __future__ import annotations

import re
from pathlib import Path

from alignloop.data.files import is_saved
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import ReadResult, read_preferences
from alignloop.errors import DataError
from alignloop.look.own_rows import (
    FoundRow,
    InspectedRow,
    found_row,
    lines_of,
    no_row_of,
    own_kind,
    own_row,
    own_rows_of,
)
from alignloop.records import (
    PreferenceRow,
    Row,
)
from alignloop.run_dir.manifest import PARTIAL

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
HOW = "ROW is FILE:LINE, FILE:ID or RUN_DIR:ID, for example data.jsonl:1"


def find_row(place: str) -> FoundRow:
    """Find a row.

    A file of the run's own is read as what it is, any other as the readers of `data` read it. In a run directory the
    newest file that holds the id, of those that can train, is taken.

    Raises:
        DataError: no such file, line or id, or a row that cannot be read or that nothing trains on, with the reason.
    """
    path, key = _split(place)
    saved = is_saved(path)
    if path.is_dir() and not saved:
        if not key:
            raise DataError(
                f"{place}: this is a folder; name a row in it: {path}:ID, or a file: {path}/FILE.jsonl:LINE"
            )
        return _in_folder(path, key)
    if not path.is_file() and not saved:
        raise DataError(f"{path}: no such file or folder. {HOW}")
    number = 1 if not key else int(key) if _NUMBER.fullmatch(key) else None
    return _of_id(path, key) if number is None else _at_line(path, number, key=key)


def _split(place: str) -> tuple[Path, str]:
    """Path and what comes after the last colon that ends a path that exists."""
    whole = Path(place).expanduser()
    if _exists(whole):
        return whole, ""
    for at in (index for index, letter in enumerate(place) if letter == ":"):
        path = Path(place[:at]).expanduser()
        if _exists(path):
            return path, place[at + 1 :]
    return Path(place.partition(":")[0]).expanduser(), ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def _in_folder(folder: Path, row_id: str) -> FoundRow:
    files = [file for file in sorted(folder.rglob("*.jsonl")) if PARTIAL not in str(file.parent) and file.is_file()]
    if not files:
        raise DataError(f"{folder}: holds no .jsonl file. {HOW}")
    untrained: tuple[Path, int, Row] | None = None
    for file in reversed(files):
        for line, row in own_rows_of(file, row_id):
            if isinstance(row, InspectedRow):
                return found_row(file, line, row)
            untrained = file, line, row
    if untrained is not None:
        return found_row(*untrained)
    raise DataError(f"{folder}: none of its {len(files)} .jsonl files holds a row with the id {row_id!r}")


def _of_id(file: Path, row_id: str) -> FoundRow:
    if own := next(own_rows_of(file, row_id), None):
        return found_row(file, *own)
    if kind := own_kind(file):
        texts = [text for _, text in lines_of(file) if text.strip()]
        num_rows = sum(own_row(text, kind) is not None for text in texts)
        raise _no_id(file, row_id, num_rows=num_rows, num_bad=len(texts) - num_rows)
    result = read_preferences([file], max_bad_fraction=1.0)
    if read := next((row for row in result.rows if row.id == row_id), None):
        return _as_read(file, read, result)
    raise _no_id(file, row_id, num_rows=len(result.rows), num_bad=len(result.rejected))


def _no_id(file: Path, row_id: str, *, num_rows: int, num_bad: int) -> DataError:
    rows = (
        "its one readable row has another id than" if num_rows == 1 else f"none of its {num_rows:,} readable rows has"
    )
    rows += f" {row_id!r}" if num_rows == 1 else f" the id {row_id!r}"
    bad = f" ({num_bad:,} more cannot be read)" if num_bad else ""
    return DataError(f"{file}: {rows}{bad}; give a line: {file}:1")


def _at_line(file: Path, number: int, *, key: str) -> FoundRow:
    own = next((text for line, text in lines_of(file) if line == number), b"")
    if row := own_row(own):
        return found_row(file, number, row)
    if kind := own_kind(file):
        if own.strip():
            raise no_row_of(kind, file, number, own)
        raise _no_line(file, number, [line for line, text in lines_of(file) if text.strip()], unit="line")
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
    places = [row.line for row in raw.rows()]
    if number in places and result.rows:
        raise _merged(file, number, result, unit=raw.unit)
    if raw.headed and 0 < number < max(places):
        raise _within(file, number, places)
    raise _no_line(file, number, places, unit=raw.unit)


def _merged(file: Path, number: int, result: ReadResult[PreferenceRow], *, unit: str) -> DataError:
    """Of a row that became part of another: responses to one prompt are one ranked list."""
    first = max(line for row in result.rows if (line := row.source.line or 0) < number)
    return DataError(
        f"{file}, {unit} {number}: a response to the prompt of {unit} {first}, ranked with that row and those between. "
        f"See what came of them: {file}:{first}"
    )


def _within(file: Path, number: int, places: list[int]) -> DataError:
    """Of a line of a CSV in which no row begins."""
    before = max((place for place in places if place < number), default=None)
    what = "the header" if before is None else f"blank, or part of the row that begins in line {before}"
    return DataError(f"{file}, line {number}: no row begins here; it is {what}")


def _as_read(file: Path, row: PreferenceRow, result: ReadResult[PreferenceRow]) -> FoundRow:
    return FoundRow(file, row.source.line or 1, row, f"preference ({result.forms[str(file)]})")


def _no_line(file: Path, number: int, places: list[int], *, unit: str) -> DataError:
    """`places`: the lines that hold rows, readable or not."""
    if 0 < number < max(places):
        return DataError(f"{file}, {unit} {number}: the {unit} is blank")
    first, last = min(places), max(places)
    rows = f"its one row is {unit} {last}" if len(places) == 1 else f"its rows are {unit}s {first} to {last}"
    if number < 1:
        return DataError(f"{file}: {unit}s are counted from 1, there is no {unit} {number}; {rows}")
    return DataError(f"{file}: has no {unit} {number}; {rows}")
