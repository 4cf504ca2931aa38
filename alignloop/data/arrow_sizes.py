"""What the record batches of an Arrow file unpack to, read from their headers before anything is unpacked.

A batch with a compressed body is unpacked whole, so its size is bounded, as that of a Parquet file's row groups is.
The headers are flatbuffers that pyarrow has checked and does not show; each compressed buffer begins with its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignloop.data.parquet_sizes import is_bomb
from alignloop.errors import DataError

MOST_UNPACKED = 2**30
"""Bytes of a batch, at most. 64 Ki rows, what pyarrow puts into one, of 5 KB each are a third of it."""
_HEADERS = ("dictionary", "record batch")
_OLD_COMPRESSION = b"ARROW:experimental_compression"
"""How Arrow 0.17 said that a body is compressed; it is still read."""


def check_sizes(source: Any, *, is_file: bool, name: str) -> None:
    """Look at every message of a file.

    Args:
        source: the mapped file; where it stands is not kept.

    Raises:
        DataError: a batch unpacks to far more than the file holds, or to more than `MOST_UNPACKED`.
    """
    import pyarrow as pa

    messages = _of_file(source) if is_file else pa.ipc.MessageReader.open_stream(source)
    packed = source.size()
    for number, message in enumerate((found for found in messages if found.type in _HEADERS), start=1):
        unpacked = _unpacked(message)
        if is_bomb(unpacked, packed=packed) or unpacked > MOST_UNPACKED:
            raise DataError(
                f"{name}: {message.type} {number} unpacks from {packed:,} bytes at most to {unpacked:,}: write the "
                "file anew, in smaller batches"
            )


def _of_file(source: Any) -> Iterator[Any]:
    """Messages of a file with a footer, which says where they stand."""
    import pyarrow as pa

    source.seek(source.size() - 10)
    num_bytes = _int(source.read(4), 0, 4)
    source.seek(source.size() - 10 - num_bytes)
    footer = source.read(num_bytes)
    for field in (2, 3):  # dictionaries, record batches
        for place in _entries(footer, _field(footer, _int(footer, 0, 4), field), num_bytes=24):
            source.seek(_int(footer, place, 8))
            yield pa.ipc.read_message(source)


def _unpacked(message: Any) -> int:
    """Bytes of a message's compressed buffers when they are unpacked; 0 where none is compressed."""
    data, body = message.metadata.to_pybytes(), message.body
    header = _table(data, _field(data, _int(data, 0, 4), 2))
    if message.type == "dictionary":
        header = _table(data, _field(data, header, 1))
    if not _field(data, header, 3) and _OLD_COMPRESSION not in data:
        return 0
    total = 0
    for place in _entries(data, _field(data, header, 2), num_bytes=16):
        start, num_bytes = _int(data, place, 8), _int(data, place + 8, 8)
        if num_bytes >= 8:
            total += max(0, _int(body.slice(start, 8).to_pybytes(), 0, 8))  # -1: as it is
    return total


def _int(data: bytes, at: int, num_bytes: int) -> int:
    return int.from_bytes(data[at : at + num_bytes], "little", signed=True)


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffers table stands; 0 where it is left out."""
    places = table - _int(data, table, 4)
    at = 4 + 2 * number
    offset = _int(data, places + at, 2) if at < _int(data, places, 2) else 0
    return table + offset if offset else 0


def _table(data: bytes, at: int) -> int:
    """The table that the field at `at` points to."""
    return at + _int(data, at, 4)


def _entries(data: bytes, at: int, *, num_bytes: int) -> range:
    """Where the structs of a vector stand."""
    if not at:
        return range(0)
    start = _table(data, at)
    return range(start + 4, start + 4 + num_bytes * _int(data, start, 4), num_bytes)
