"""Pruned rows as a file: JSON lines, or Parquet, which keeps free columns as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignloop.data.jsonl import dump_jsonl
from alignloop.errors import DataError, UserError
from alignloop.records import Row

SUFFIXES = (".jsonl", ".parquet")
_GROUP_ROWS = 16_384


def check_suffix(out: Path) -> None:
    """Raise a UserError where the ending of `out` is of neither kind of file."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: end it with .jsonl or .parquet, which says what is written")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as the ending of `path` says.

    Raises:
        DataError: a column cannot be written to Parquet.
    """
    if path.suffix == ".jsonl":
        dump_jsonl(path, rows)
    else:
        _write_parquet(path, rows)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = _columns(rows)
    try:
        table = pa.table(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path.name}: a column cannot be written to Parquet: {error}; write .jsonl") from error
    parquet.write_table(table, path, row_group_size=_GROUP_ROWS, compression="zstd")


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Column -> values; columns in which no row has anything are left out."""
    dumped = [row.model_dump(mode="json") for row in rows]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in dumped for name in row):
        values = [row[name] for row in dumped]
        if name == "meta":
            values = [json.dumps(value, ensure_ascii=False) if value else None for value in values]
        if _says_anything(values):
            columns[name] = values
    return columns


def _says_anything(values: Iterable[Any]) -> bool:
    return any(value is not None and value not in ({}, []) for value in values)
