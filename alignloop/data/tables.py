"""Rows of Parquet and Arrow files, of saved data sets and of data sets on a hub, as JSON values.

Dates become texts, decimals numbers, NaN null: what a JSON file of the same rows would hold. Tables are read in pieces
of about `PIECE`, whatever they unpack to:

A text of megabytes stands once in a Parquet column's dictionary, and each of a million rows may name it in a few bits.
So texts are read as places in dictionaries, and only so many rows at a time are made of them as fit in `PIECE`.

A batch of an Arrow file with a compressed body is unpacked whole, so its size is bounded, as that of row groups is. The
headers are flatbuffers that pyarrow has checked and does not show; each compressed buffer begins with its size.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignloop.data.files import HUB, FileKind, is_saved
from alignloop.data.parsing import LONGEST
from alignloop.errors import DataError

PIECE = 32 * 2**20
"""Bytes of rows in memory at a time."""
MOST_UNPACKED = 2**30
"""Bytes of a batch of Arrow, at most. 64 Ki rows, what pyarrow puts into one, of 5 KB each are a third of it."""
_PIECE_ROWS = 1024
_MOST_PACKED = 1000
"""Times the packed size that texts may unpack to; people's reach some ten."""
_MOST_VALUES = 2**27
"""Of a column in a row group, the items of lists counted."""
_HEADERS = ("dictionary", "record batch")
_OLD_COMPRESSION = b"ARROW:experimental_compression"
"""How Arrow 0.17 said that a body is compressed; it is still read."""


def parquet_rows(path: Path, name: str) -> Iterator[Any]:
    """Rows of a Parquet file.

    Raises:
        DataError: it is damaged, a row group unpacks to far more than the file holds, or a row is longer than 64 MiB.
    """
    from pyarrow import parquet

    how: dict[str, Any] = {"buffer_size": 2**20, "pre_buffer": False}
    with _damage_named(name, "the Parquet file"), parquet.ParquetFile(path, **how) as plain:
        for group in range(plain.num_row_groups):
            texts, num_rows = _how_to_read(plain, group, path, name)
            with parquet.ParquetFile(path, metadata=plain.metadata, read_dictionary=texts, **how) as file:
                for batch in file.iter_batches(batch_size=num_rows, row_groups=[group]):
                    for piece in _pieces(batch, group, name):
                        yield from map(_plain, piece.cast(plain.schema_arrow).to_pylist())


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
        _check_batches(source, is_file=is_file, name=name)
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
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
    state = folder / "state.json"
    if not state.is_file():
        splits = sorted(inside.name for inside in folder.iterdir() if is_saved(inside))
        split = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if split is None:
            raise DataError(f"{name}: holds the splits {', '.join(splits) or '(none)'}: name one, {folder}/SPLIT")
        state = folder / split / "state.json"
    try:
        files = [state.parent / str(file["filename"]) for file in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: not as `save_to_disk` writes it ({error})") from None
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: is missing, and {state} names it. Is the data set whole?")
        yield from arrow_rows(file, str(file))


TABLES: dict[FileKind, Callable[[Path, str], Iterator[Any]]] = {
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "saved": saved_rows,
}


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
        raise DataError(
            f"{name}: the data set cannot be read: {_first_line(error)}. Check its name, split ({split or 'train'}) "
            "and the network; offline, name a file that was downloaded before"
        ) from error


@contextmanager
def _damage_named(name: str, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{name}: {what} cannot be read: {_first_line(error)}. Is it whole?") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _plain(value: Any) -> Any:
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


def _is_bomb(unpacked: int, *, packed: int) -> bool:
    """Whether bytes unpack to more than texts of people's do, and to more than is held in memory at a time."""
    return unpacked > PIECE and unpacked > _MOST_PACKED * packed


def _how_to_read(file: Any, group: int, path: Path, name: str) -> tuple[list[str], int]:
    facts = file.metadata.row_group(group)
    packed, unpacked = path.stat().st_size, facts.total_byte_size
    if _is_bomb(unpacked, packed=packed):
        raise DataError(
            f"{name}: row group {group + 1} unpacks from {packed:,} bytes at most to {unpacked:,}: write the file "
            "anew, in smaller row groups"
        )
    # What the file says of its columns is checked by reading a row: where it is damaged, asking ends the process.
    next(file.iter_batches(batch_size=1, row_groups=[group]), None)
    expected = unpacked / max(1, facts.num_rows)
    texts = []
    for column in map(facts.column, range(facts.num_columns)):
        if column.num_values > _MOST_VALUES:
            where = f"{name}: column {column.path_in_schema} of row group {group + 1}"
            raise DataError(f"{where} holds {column.num_values:,} values: write the file anew, in smaller row groups")
        if "DELTA_BYTE_ARRAY" in column.encodings:  # has no dictionary; each text may begin with all those before it
            expected += column.total_uncompressed_size
        elif column.physical_type == "BYTE_ARRAY":
            texts.append(column.path_in_schema)
    return texts, int(max(1, min(_PIECE_ROWS, PIECE // max(1.0, expected))))


def _pieces(batch: Any, group: int, name: str) -> Iterator[Any]:
    """A batch cut so that the texts its dictionaries stand for fit in `PIECE`, or take one row more."""
    import numpy as np
    import pyarrow as pa

    sizes = np.zeros(batch.num_rows)
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        own = _text_bytes(values, np.arange(batch.num_rows), batch.num_rows)
        if (longest := own.max(initial=0.0)) > LONGEST:
            what = f"holds a row that unpacks to more than {LONGEST:,} bytes"
            if pa.types.is_dictionary(values.type):
                what = f"holds a text of {longest:,.0f} bytes; a row may have {LONGEST:,}"
            raise DataError(f"{name}: column {column} of row group {group + 1} {what}: leave it out")
        sizes += own
    number_of_piece = np.cumsum(sizes) // PIECE
    ends = np.flatnonzero(np.diff(number_of_piece)) + 1
    for start, end in pairwise([0, *map(int, ends), batch.num_rows]):
        yield batch.slice(start, end - start)


def _text_bytes(values: Any, rows: Any, num_rows: int) -> Any:
    """Bytes of the texts of each row in a column, however nested; `rows` maps each value to its row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        lengths = np.append(np.asarray(pc.fill_null(pc.binary_length(values.dictionary), 0), dtype=np.float64), 0.0)
        indices = np.asarray(pc.fill_null(values.indices, len(lengths) - 1))
        return np.bincount(rows, weights=lengths[indices], minlength=num_rows)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return np.bincount(rows, weights=np.asarray(pc.fill_null(pc.binary_length(values), 0)), minlength=num_rows)
    if pa.types.is_map(values.type):
        values = values.cast(pa.list_(pa.struct([values.type.key_field, values.type.item_field])))
    if pa.types.is_struct(values.type):
        return sum((_text_bytes(inner, rows, num_rows) for inner in values.flatten()), np.zeros(num_rows))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        return _text_bytes(values.flatten(), rows[np.asarray(pc.list_parent_indices(values))], num_rows)
    return np.zeros(num_rows)


def _check_batches(source: Any, *, is_file: bool, name: str) -> None:
    """Refuse a mapped Arrow file with a batch that unpacks to far more than the file, or to `MOST_UNPACKED`."""
    import pyarrow as pa

    messages = _messages_of_file(source) if is_file else pa.ipc.MessageReader.open_stream(source)
    packed = source.size()
    for number, message in enumerate((found for found in messages if found.type in _HEADERS), start=1):
        unpacked = _unpacked(message)
        if _is_bomb(unpacked, packed=packed) or unpacked > MOST_UNPACKED:
            raise DataError(
                f"{name}: {message.type} {number} unpacks from {packed:,} bytes at most to {unpacked:,}: write the "
                "file anew, in smaller batches"
            )


def _messages_of_file(source: Any) -> Iterator[Any]:
    """Messages of a file with a footer, which holds their offsets."""
    import pyarrow as pa

    source.seek(source.size() - 10)
    num_bytes = _int(source.read(4), 0, 4)
    source.seek(source.size() - 10 - num_bytes)
    footer = source.read(num_bytes)
    for field in (2, 3):  # dictionaries, record batches
        for entry in _entries(footer, _field(footer, _int(footer, 0, 4), field), num_bytes=24):
            source.seek(_int(footer, entry, 8))
            yield pa.ipc.read_message(source)


def _unpacked(message: Any) -> int:
    """Bytes of a message's compressed buffers once unpacked; 0 where none is compressed."""
    data, body = message.metadata.to_pybytes(), message.body
    header = _table(data, _field(data, _int(data, 0, 4), 2))
    if message.type == "dictionary":
        header = _table(data, _field(data, header, 1))
    if not _field(data, header, 3) and _OLD_COMPRESSION not in data:
        return 0
    total = 0
    for entry in _entries(data, _field(data, header, 2), num_bytes=16):
        start, num_bytes = _int(data, entry, 8), _int(data, entry + 8, 8)
        if num_bytes >= 8:
            total += max(0, _int(body.slice(start, 8).to_pybytes(), 0, 8))  # -1: as it is
    return total


def _int(data: bytes, at: int, num_bytes: int) -> int:
    return int.from_bytes(data[at : at + num_bytes], "little", signed=True)


def _field(data: bytes, table: int, number: int) -> int:
    fields = table - _int(data, table, 4)
    at = 4 + 2 * number
    offset = _int(data, fields + at, 2) if at < _int(data, fields, 2) else 0
    return table + offset if offset else 0


def _table(data: bytes, at: int) -> int:
    return at + _int(data, at, 4)


def _entries(data: bytes, at: int, *, num_bytes: int) -> range:
    if not at:
        return range(0)
    start = _table(data, at)
    return range(start + 4, start + 4 + num_bytes * _int(data, start, 4), num_bytes)
