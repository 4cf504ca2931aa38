"""Rows of Parquet and Arrow files, of saved data sets and of data sets on a hub, as JSON values.

Dates become texts, decimals numbers, NaN null: what a JSON file of the same rows would hold.

Tables are read piece by piece, each piece no larger than `PIECE` as far as the file says how large rows are.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignloop.data.file_kinds import FileKind, is_saved
from alignloop.data.table_sizes import PIECE, batches, check_sizes
from alignloop.errors import DataError

HUB = "hub:"
_PIECE_ROWS = 1024


def parquet_rows(path: Path, name: str) -> Iterator[Any]:
    """Rows of a Parquet file.

    Raises:
        DataError: it is damaged, or would unpack to more than memory can be kept to.
    """
    with _damage_named(name, "the Parquet file"):
        for batch in batches(path, name=name):
            yield from map(_plain, batch.to_pylist())


def arrow_rows(path: Path, name: str) -> Iterator[Any]:
    """Rows of an Arrow file, of the streaming kind (as `datasets` writes it) or the other; it is mapped, not read.

    Raises:
        DataError: it is damaged, changed while it was read, or has batches that unpack to more than memory can hold.
    """
    import pyarrow as pa

    num_bytes = path.stat().st_size
    with _damage_named(name, "the Arrow file"), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        check_sizes(source, is_file=is_file, name=name)
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in found:
            batch.validate()
            rows = max(1, min(_PIECE_ROWS, PIECE * batch.num_rows // max(1, batch.nbytes)))
            for start in range(0, batch.num_rows, rows):
                if path.stat().st_size < num_bytes:  # pages that are gone would end the process
                    raise DataError(f"{name}: became shorter while it was read")
                piece = batch.slice(start, rows)
                piece.validate(full=True)  # a damaged file would be read beyond its end
                yield from map(_plain, piece.to_pylist())


def saved_rows(folder: Path, name: str) -> Iterator[Any]:
    """Rows of a data set that `save_to_disk` wrote: its Arrow files in order; of several splits, those of `train`.

    Raises:
        DataError: a file is missing or damaged, or there are several splits without one named `train`.
    """
    if not (folder / "state.json").is_file():
        splits = sorted(inside.name for inside in folder.iterdir() if is_saved(inside))
        split = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if split is None:
            raise DataError(f"{name}: holds the splits {', '.join(splits) or '(none)'}: name one, {folder}/SPLIT")
        folder = folder / split
    try:
        files = [
            folder / str(file["filename"]) for file in json.loads((folder / "state.json").read_bytes())["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{folder / 'state.json'}: not as `save_to_disk` writes it ({error})") from None
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: is missing, and {folder / 'state.json'} names it. Is the data set whole?")
        yield from arrow_rows(file, str(file))


TABLES: dict[FileKind, Callable[[Path, str], Iterator[Any]]] = {
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "saved": saved_rows,
}
"""Kinds of files that are tables -> their rows."""


@contextmanager
def _damage_named(name: str, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: {what} cannot be read: {reason}. Is it whole?") from None


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
