"""Files of any form -> one file of canonical rows, and beside it what could not be read.

files --Reading--> rows --> out, JSON lines or Parquet by its name    (put in place whole)
                \\-> rejected rows --> <out's stem>.rejected_rows.jsonl

In Parquet a free object (`meta`, `judge`) is a text of JSON: rows need not have the same keys.
"""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel

from alignloop.artifacts import disk_errors_named
from alignloop.data.files import HUB
from alignloop.data.reading import Kind, Reading
from alignloop.data.rows import Options
from alignloop.errors import DataError, UserError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, Row, SftRow

_MODELS: dict[Kind, type[Row]] = {"preferences": PreferenceRow, "prompts": PromptRow, "sft": SftRow}
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Converted:
    """What was converted: `num_read == num_kept + num_rejected`.

    Attributes:
        num_rows: rows in the new file: more than `num_kept` where a ranked list or a dialog made several.
        forms: file -> its rows' form.
        mixtures: a sentence for each file whose rows have several forms.
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
    """Write the rows of `files` to `out` as alignloop's own, in flat memory, with their ids and `source`.

    Raises:
        UserError: `out` exists, or is one of the files.
        DataError: a file cannot be read, is cut short, or holds no readable row; then only rejected rows are on disk.
        DiskFullError: no space left.
    """
    _check_out(out, files, overwrite=overwrite)
    beside = rejected_beside(out)
    readings: list[Reading[Any]] = []
    num_rows = 0
    failed: DataError | None = None
    with row_file(beside, RejectedRow) as reject:
        try:
            with row_file(out, _MODELS[kind]) as add:
                for file in files:
                    readings.append(Reading(file, kind, form=form, options=options))
                    num_rows += _copy(readings[-1], add, reject, rejected=beside)
        except DataError as error:
            failed = error
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


def _check_out(out: Path, files: Sequence[Path | str], *, overwrite: bool) -> None:
    for file in files:
        if not str(file).startswith(HUB) and Path(file).expanduser().resolve() == out.resolve():
            raise UserError(f"--out {out}: is one of the files to convert; name another")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; name another file, or pass --overwrite")


def _copy(reading: Reading[Any], add: Any, reject: Any, *, rejected: Path) -> int:
    """The number of rows added.

    Raises:
        DataError: the file breaks off, or holds no readable row.
    """
    num_rows = 0
    for row in reading:
        if type(row) is RejectedRow:
            reject(row)
        else:
            add(row)
            num_rows += 1
    reading.check_whole()
    if not reading.num_kept:
        raise DataError(f"{reading.name}: none of its {reading.num_read:,} rows can be read; reasons: {rejected}")
    return num_rows


@contextmanager
def row_file(path: Path, model: type[Row]) -> Iterator[Callable[[Row], object]]:
    """A function that adds a row to `path`; the file is there when all went well, and never in part.

    Raises:
        UserError: the name ends in neither .jsonl nor .parquet.
        DiskFullError: no space left.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: rows are written as .jsonl or .parquet; name the file so")
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors_named(path):
            with _jsonl(aside) if path.suffix == ".jsonl" else _parquet(aside, model) as add:
                yield add
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _jsonl(path: Path) -> Iterator[Callable[[Row], object]]:
    with path.open("wb", buffering=2**20) as file:
        yield lambda row: file.write(row.model_dump_json().encode("utf-8") + b"\n")


@contextmanager
def _parquet(path: Path, model: type[Row]) -> Iterator[Callable[[Row], object]]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, _arrow_type(field.annotation)) for name, field in model.model_fields.items()])
    free = [name for name, field in model.model_fields.items() if typing.get_origin(field.annotation) is dict]
    pending: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            if pending:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
                pending.clear()

        def add(row: Row) -> None:
            values = row.model_dump(mode="json")
            pending.append(values | {name: json.dumps(values[name], ensure_ascii=False) for name in free})
            if len(pending) == _BATCH_ROWS:
                flush()

        yield add
        flush()


def _arrow_type(annotation: Any) -> Any:
    import pyarrow as pa

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _arrow_type(inner)
    if origin is typing.Annotated:
        return _arrow_type(arguments[0])
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is dict or origin is Literal:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, _arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]
