"""The row a person points at: FILE, FILE:LINE, FILE:ID or RUN_DIR:ID."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from alignloop.artifacts import PARTIAL
from alignloop.data.readers import read_preferences
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

InspectedRow = PreferenceRow | PairRow | SftRow | SelectedRow | CandidateRow
_OWN: tuple[type[Row], ...] = (PairRow, SftRow, CandidateRow, SelectedRow, PreferenceRow)
_UNTRAINED: tuple[type[Row], ...] = (PromptRow, DroppedRow, RejectedRow)
_NAMES: dict[type[Row], str] = {
    PreferenceRow: "preference",
    PairRow: "pair",
    SftRow: "SFT row",
    SelectedRow: "selected completion",
    CandidateRow: "candidate",
}
HOW = "ROW is FILE:LINE, FILE:ID or RUN_DIR:ID, for example data.jsonl:1"


@dataclass(frozen=True)
class FoundRow:
    """A row and where it was.

    Attributes:
        file: the file it stands in.
        line: 1-based line (JSON lines) or element (JSON array).
        kind: what it is, in words; for a file of the user's with the form its rows have.
    """

    file: Path
    line: int
    row: InspectedRow
    kind: str


def find_row(place: str) -> FoundRow:
    """Find a row.

    A file of the run's own is read as what it is, any other as the readers of `data` read it. In a run directory the
    newest file that holds the id, of those that can train, is taken.

    Raises:
        DataError: no such file, line or id, or a row that cannot be read or that nothing trains on, with the reason.
    """
    path, key = _split(place)
    if path.is_dir():
        if not key:
            raise DataError(
                f"{place}: this is a folder; name a row in it: {path}:ID, or a file: {path}/FILE.jsonl:LINE"
            )
        return _in_folder(path, key)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder. {HOW}")
    if not key or key.isdigit():
        return _at_line(path, int(key or "1"))
    return _of_id(path, key)


def _split(place: str) -> tuple[Path, str]:
    """Path and what comes after the last colon that ends a path that exists."""
    whole = Path(place).expanduser()
    if whole.exists():
        return whole, ""
    for at in (index for index, letter in enumerate(place) if letter == ":"):
        path = Path(place[:at]).expanduser()
        if path.exists():
            return path, place[at + 1 :]
    return Path(place.partition(":")[0]).expanduser(), ""


def _in_folder(folder: Path, row_id: str) -> FoundRow:
    files = [file for file in sorted(folder.rglob("*.jsonl")) if PARTIAL not in str(file.parent)]
    if not files:
        raise DataError(f"{folder}: holds no .jsonl file. {HOW}")
    mark = json.dumps(row_id).strip('"').encode()
    untrained: DataError | None = None
    for file in reversed(files):
        for line, text in _lines(file):
            if mark not in text:
                continue
            try:
                row = _own_row(file, line, text)
            except DataError as error:
                untrained = error if f'"id":"{row_id}"'.encode() in text.replace(b" ", b"") else untrained
                continue
            if row is not None and row.id == row_id:
                return FoundRow(file, line, row, _NAMES[type(row)])
    if untrained is not None:
        raise untrained
    raise DataError(f"{folder}: none of its {len(files)} .jsonl files holds a row with the id {row_id!r}")


def _of_id(file: Path, row_id: str) -> FoundRow:
    for line, text in _lines(file):
        row = _own_row(file, line, text) if row_id.encode() in text and text.lstrip().startswith(b"{") else None
        if row is not None and row.id == row_id:
            return FoundRow(file, line, row, _NAMES[type(row)])
    result = read_preferences([file], max_bad_fraction=1.0)
    for read in result.rows:
        if read.id == row_id:
            return FoundRow(file, read.source.line or 1, read, f"preference ({result.forms[str(file)]})")
    raise DataError(
        f"{file}: none of its {len(result.rows)} readable rows has the id {row_id!r}; give a line: {file}:1"
    )


def _at_line(file: Path, number: int) -> FoundRow:
    own = next((text for line, text in _lines(file) if line == number), b"")
    row = _own_row(file, number, own) if own.lstrip().startswith(b"{") else None
    if row is not None:
        return FoundRow(file, number, row, _NAMES[type(row)])
    try:
        result = read_preferences([file], max_bad_fraction=1.0)
    except DataError as error:
        bad = next((bad for bad in error.rejected if bad.line == number), None)
        raise error if bad is None else _unreadable(bad) from None
    for read in result.rows:
        if read.source.line == number:
            return FoundRow(file, number, read, f"preference ({result.forms[str(file)]})")
    for bad in result.rejected:
        if bad.line == number:
            raise _unreadable(bad)
    numbers = [row.source.line or 0 for row in result.rows] + [bad.line or 0 for bad in result.rejected]
    if 0 < number < max(numbers):
        raise DataError(f"{file}, line {number}: the line is blank")
    raise DataError(f"{file}: has no line {number}; its rows are on lines {min(numbers)} to {max(numbers)}")


def _own_row(file: Path, line: int, text: bytes) -> InspectedRow | None:
    """A row as alignloop writes it; None where it is not one.

    Raises:
        DataError: it is one that nothing trains on.
    """
    for model in _OWN:
        try:
            row = model.model_validate_json(text)
        except ValidationError:
            continue
        assert isinstance(row, InspectedRow)
        return row
    for model in _UNTRAINED:
        try:
            other = model.model_validate_json(text)
        except ValidationError:
            continue
        raise DataError(f"{file}, line {line}: {_why_untrained(other)}")
    return None


def _why_untrained(row: Row) -> str:
    if isinstance(row, DroppedRow):
        return f"this says that {row.id} was dropped by {row.stage} ({row.rule}): {row.reason}"
    if isinstance(row, RejectedRow):
        return f"this says that {row.file}, line {row.line} could not be read: {row.reason}"
    return "this is a prompt without a completion: nothing of it is trained on"


def _unreadable(bad: RejectedRow) -> DataError:
    field = f", field {bad.field}" if bad.field else ""
    return DataError(f"{bad.file}, line {bad.line}{field}: {bad.reason}", rejected=[bad])


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as opened:
            yield from enumerate(opened, start=1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check its permissions") from error
