"""Rows of Parquet files and of data sets on a hub, as JSON values.

Dates become texts, decimals numbers, NaN null: what a JSON file of the same rows would hold.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignloop.errors import DataError

HUB = "hub:"
_BATCH_ROWS = 1024


def parquet_rows(path: Path, name: str) -> Iterator[Any]:
    """Rows of a Parquet file, a batch at a time.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from map(_plain, batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: the Parquet file cannot be read: {reason}. Is it whole?") from None


def hub_rows(name: str) -> Iterator[Any]:
    """Rows of `hub:owner/name[:split]` (default split: train), streamed.

    Raises:
        DataError: it cannot be reached, or there is no such data set or split.
    """
    dataset, _, split = name.removeprefix(HUB).partition(":")
    if not dataset:
        raise DataError(f"{name}: names no data set; write {HUB}owner/name or {HUB}owner/name:split")
    import datasets

    try:
        for row in datasets.load_dataset(dataset, split=split or "train", streaming=True):
            yield _plain(row)
    except Exception as error:  # whatever a hub, its network and its loaders raise: all of it concerns this data set
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: the data set cannot be read: {reason}. Check its name, split ({split or 'train'}) and the "
            "network; offline, name a file that was downloaded before"
        ) from error


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    return repr(value)
