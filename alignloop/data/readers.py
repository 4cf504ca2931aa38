"""Files of rows read whole, of any form in `FORMS`: all rows in memory, ids unique, too many bad rows an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, cast

from alignloop.data.reading import Kind, Reading, T
from alignloop.data.rows import Options
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow


@dataclass(frozen=True)
class ReadResult(Generic[T]):
    """Readable rows with unique ids, in the order of files and rows; `forms` maps a file to its rows' form."""

    rows: list[T]
    rejected: list[RejectedRow]
    forms: dict[str, str]


def read_preferences(
    files: Sequence[Path | str], *, max_bad_fraction: float, form: str | None = None, **options: Any
) -> ReadResult[PreferenceRow]:
    """Read preference files.

    An `id` in the file is kept; a row without one gets a hash of its content and its line. An id that was seen before,
    in this file or an earlier one, gets `~2`, `~3`, ...: files numbered from 0 can be read together. `options` are the
    fields of `Options`.

    Raises:
        DataError: a file is missing, empty, cut short, of no known form or without a readable row, or more than
            `max_bad_fraction` of all rows are bad.
    """
    return _read(files, "preferences", max_bad_fraction, form, Options(**options))


def read_prompts(
    files: Sequence[Path | str], *, max_bad_fraction: float, form: str | None = None, **options: Any
) -> ReadResult[PromptRow]:
    """Their prompts (with `every_turn` one for each user turn), without columns of completions; errors as above."""
    return _read(files, "prompts", max_bad_fraction, form, Options(**options))


def read_sft(
    files: Sequence[Path | str], *, max_bad_fraction: float, form: str | None = None, **options: Any
) -> ReadResult[SftRow]:
    """Dialogs to fine-tune on, with `every_turn` one for each assistant turn; errors as above.

    Of preference files the best completion is the target; rows that alignloop wrote keep all their columns.
    """
    return _read(files, "sft", max_bad_fraction, form, Options(**options))


def _read(
    files: Sequence[Path | str], kind: Kind, max_bad_fraction: float, form: str | None, options: Options
) -> ReadResult[T]:
    rows: list[T] = []
    rejected: list[RejectedRow] = []
    readings: list[Reading[T]] = []
    for file in files:
        reading: Reading[T] = Reading(file, kind, form=form, options=options)
        readings.append(reading)
        bad: list[RejectedRow] = []
        for row in reading:
            if type(row) is RejectedRow:
                bad.append(row)
            else:
                rows.append(cast("T", row))
        reading.check_whole(bad)
        if not reading.num_kept:
            what = "its one row cannot be read" if len(bad) == 1 else f"none of its {len(bad)} rows can be read"
            raise DataError(
                f"{reading.name}: {what}\n{_reasons(bad, [reading])}\nMend the rows, or name another file", rejected=bad
            )
        rejected += bad
    num_rows = sum(reading.num_read for reading in readings)
    if rejected and len(rejected) / num_rows > max_bad_fraction:
        names = ", ".join(reading.name for reading in readings)
        mixtures = "".join(f"\n{mixture}" for reading in readings if (mixture := reading.mixture()) is not None)
        raise DataError(
            f"{names}: {len(rejected)} of {num_rows} rows ({len(rejected) / num_rows:.1%}) cannot be read; "
            f"the limit is {max_bad_fraction:.1%} (data.max_bad_fraction)\n{_reasons(rejected, readings)}{mixtures}\n"
            "Mend the rows, or raise data.max_bad_fraction to go on without them",
            rejected=rejected,
        )
    return ReadResult(with_unique_ids(rows), rejected, {reading.name: reading.form.name for reading in readings})


def _reasons(rejected: Sequence[RejectedRow], readings: Sequence[Reading[T]]) -> str:
    units = {reading.name: reading.unit for reading in readings}
    lines = []
    for row in rejected[:3]:
        field = f", field {row.field}" if row.field else ""
        lines.append(f"  - {row.file}, {units[row.file]} {row.line}{field}: {row.reason}")
    if len(rejected) > 3:
        lines.append(f"  - and {len(rejected) - 3} more")
    return "\n".join(lines)


def with_unique_ids(rows: list[T]) -> list[T]:
    """The rows, an id that stood before with `~2`, `~3`, ... behind it."""
    known = {row.id for row in rows}
    if len(known) == len(rows):
        return rows
    last: dict[str, int] = {}
    unique: list[T] = []
    for row in rows:
        name, number = row.id, last.get(row.id, 0) + 1
        if number > 1:
            while f"{row.id}~{number}" in known:
                number += 1
            name = f"{row.id}~{number}"
        last[row.id] = number
        unique.append(row if name == row.id else row.model_copy(update={"id": name}))
    return unique
