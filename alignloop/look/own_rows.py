"""Rows in files of alignloop's own: what each line is, and what trains on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from alignloop.data.problems import plain_problems
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


@dataclass(frozen=True)
class FoundRow:
    """A row and where it was.

    Attributes:
        line: 1-based line (JSON lines) or element (JSON array).
        kind: what it is, in words; for a file of the user's with the form its rows have.
    """

    file: Path
    line: int
    row: InspectedRow
    kind: str


def own_rows_of(file: Path, row_id: str) -> Iterator[tuple[int, Row]]:
    """Rows of alignloop's own with this id, with their lines."""
    mark = as_json(row_id)
    for line, text in lines_of(file):
        row = own_row(text) if mark in text else None
        if row is not None and getattr(row, "id", None) == row_id:
            yield line, row


def own_kind(file: Path) -> type[Row] | None:
    """Which of alignloop's own rows the file holds, by its first whole line; None for a file of the user's."""
    for _, text in lines_of(file):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            row = own_row(text)
            return None if row is None else type(row)
    return None


def own_row(text: bytes, *kinds: type[Row]) -> Row | None:
    """A line as the first of the kinds (all of alignloop's own) that it is; None where it is none."""
    if not text.lstrip().startswith(b"{"):
        return None
    for kind in kinds or _OWN:
        try:
            return kind.model_validate_json(text)
        except ValidationError:
            continue
    return None


def found_row(file: Path, line: int, row: Row) -> FoundRow:
    """A row as alignloop writes it.

    Raises:
        DataError: nothing trains on it.
    """
    if isinstance(row, InspectedRow):
        return FoundRow(file, line, row, _NAMES[type(row)])
    what = "this is a prompt without a completion: nothing of it is trained on"
    if isinstance(row, DroppedRow):
        what = f"this says that {row.id} was dropped by {row.stage} ({row.rule}): {row.reason}"
    elif isinstance(row, RejectedRow):
        what = f"this says that {row.file}, line {row.line} could not be read: {row.reason}"
    raise DataError(f"{file}, line {line}: {what}")


def no_row_of(kind: type[Row], file: Path, line: int, text: bytes) -> DataError:
    """What keeps a line from being a row like the others of its file."""
    try:
        kind.model_validate_json(text)
    except ValidationError as error:
        field, sentence = plain_problems(error)[0]
        where = f"{file}, line {line}" + (f", field {field}" if field else "")
        return DataError(f"{where}: {sentence}. The other lines are {kind.__name__}s, as alignloop writes them")
    raise AssertionError("only called for lines that are no such row")


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    if file.is_dir():  # a saved data set has rows, but no lines
        return
    try:
        with file.open("rb") as opened:
            yield from enumerate(opened, start=1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check its permissions") from error
