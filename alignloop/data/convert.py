"""Files of any form -> one file of canonical rows, and beside it what could not be read.

files --Reading--> rows --> out           (put in place whole)
                \\-> rejected rows --> <out's stem>.rejected_rows.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.data.reading import Kind, Reading
from alignloop.data.row_file import row_file
from alignloop.data.rows import Options
from alignloop.data.tables import HUB
from alignloop.errors import DataError, UserError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, Row, SftRow

MODELS: dict[Kind, type[Row]] = {"preferences": PreferenceRow, "prompts": PromptRow, "sft": SftRow}


@dataclass(frozen=True)
class Converted:
    """What came of it: `num_read == num_kept + num_rejected`.

    Attributes:
        num_rows: rows written: more than `num_kept` where a ranked list or a dialog made several.
        forms: file -> its rows' form.
        mixtures: what to say of files whose rows have several forms.
        rejected: where the rows that cannot be read are; None where all could.
    """

    out: Path
    num_read: int
    num_kept: int
    num_rejected: int
    num_rows: int
    forms: dict[str, str]
    mixtures: tuple[str, ...]
    rejected: Path | None


def rejected_beside(out: Path) -> Path:
    """Where the rows that cannot be read go."""
    return out.with_name(f"{out.stem}.rejected_rows.jsonl")


def convert(
    files: Sequence[Path | str],
    *,
    out: Path,
    kind: Kind = "preferences",
    form: str | None = None,
    options: Options | None = None,
    overwrite: bool = False,
) -> Converted:
    """Write the rows of `files` to `out` as alignloop's own, in flat memory; ids stay as they are.

    Rows keep their place in the file they come from (`source`).

    Raises:
        UserError: `out` exists, or is one of the files.
        DataError: a file cannot be read, is cut short, or holds no readable row; nothing is written then, but the
            rows that cannot be read.
        DiskFullError: no space left.
    """
    _check_out(out, files, overwrite=overwrite)
    beside = rejected_beside(out)
    readings: list[Reading[Any]] = []
    num_rows = 0
    with row_file(beside, RejectedRow) as reject:
        try:
            with row_file(out, MODELS[kind]) as add:
                for file in files:
                    reading: Reading[Any] = Reading(file, kind, form=form, options=options)
                    readings.append(reading)
                    num_rows += _copy(reading, add, reject)
                    if not reading.num_kept:
                        what = f"none of its {reading.num_read:,} rows can be read; reasons: {beside}"
                        raise DataError(f"{reading.name}: {what}")
        except DataError as error:
            failed: DataError | None = error
        else:
            failed = None
    num_rejected = sum(reading.num_rejected for reading in readings)
    if not num_rejected:
        beside.unlink()
    if failed is not None:
        raise failed
    return Converted(
        out=out,
        num_read=sum(reading.num_read for reading in readings),
        num_kept=sum(reading.num_kept for reading in readings),
        num_rejected=num_rejected,
        num_rows=num_rows,
        forms={reading.name: reading.form.name for reading in readings},
        mixtures=tuple(mixture for reading in readings if (mixture := reading.mixture()) is not None),
        rejected=beside if num_rejected else None,
    )


def _copy(reading: Reading[Any], add: Any, reject: Any) -> int:
    """How many rows were added; a DataError where the file breaks off."""
    num_rows = 0
    for row in reading:
        if type(row) is RejectedRow:
            reject(row)
        else:
            add(row)
            num_rows += 1
    reading.check_whole()
    return num_rows


def _check_out(out: Path, files: Sequence[Path | str], *, overwrite: bool) -> None:
    for file in files:
        if not str(file).startswith(HUB) and Path(file).expanduser().resolve() == out.resolve():
            raise UserError(f"--out {out}: is one of the files to convert; name another")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; name another file, or pass --overwrite")
