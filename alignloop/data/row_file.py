"""Rows -> a whole file, JSON lines or Parquet by its name, put in place when it is finished.

In Parquet a free object (`meta`, `judge`) is a text of JSON: rows need not have the same keys.
"""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel

from alignloop.artifacts import disk_errors_named
from alignloop.errors import UserError
from alignloop.records import Row

SUFFIXES = (".jsonl", ".parquet")
_BATCH_ROWS = 1024


@contextmanager
def row_file(path: Path, model: type[Row]) -> Iterator[Callable[[Row], object]]:
    """A function that adds a row to `path`; the file is there when all went well, and never in part.

    Raises:
        UserError: the name ends in neither .jsonl nor .parquet.
        DiskFullError: no space left.
    """
    if path.suffix not in SUFFIXES:
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

    schema = arrow_schema(model)
    free = [name for name, field in model.model_fields.items() if _is_free(field.annotation)]
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


def arrow_schema(model: type[Row]) -> Any:
    """The Parquet columns of a kind of row (a `pyarrow.Schema`)."""
    import pyarrow as pa

    return pa.schema([(name, _arrow(field.annotation)) for name, field in model.model_fields.items()])


def _is_free(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _arrow(annotation: Any) -> Any:
    import pyarrow as pa

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _arrow(inner)
    if origin is typing.Annotated:
        return _arrow(arguments[0])
    if origin is list:
        return pa.list_(_arrow(arguments[0]))
    if origin is dict or origin is Literal:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, _arrow(field.annotation)) for name, field in annotation.model_fields.items()])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]
