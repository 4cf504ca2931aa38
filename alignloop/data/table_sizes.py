"""Tables in batches that stay small, whatever they unpack to.

A row group of a Parquet file says how large its pages are, not its texts: a text of megabytes stands once in a column's
dictionary, and each of a million rows may name it in a few bits. So the longest text of each dictionary is looked up,
and the rows of a batch are as many as fit in `PIECE` if each holds it. One page is unpacked at a time, as large as its
writer made it.

A batch of an Arrow file with a compressed body is unpacked whole, so its size is bounded, as that of row groups is. The
headers are flatbuffers that pyarrow has checked and does not show; each compressed buffer begins with its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from alignloop.data.parsing import LONGEST
from alignloop.errors import DataError

PIECE = 32 * 2**20
"""Bytes of rows in memory at a time."""
_MOST_ROWS = 1024
_MOST_PACKED = 1000
"""Times the packed size that texts may unpack to; people's reach some ten."""
_MOST_VALUES = 2**26
"""Of a list's column in a row group."""


def batches(path: Path, *, name: str) -> Iterator[Any]:
    """The record batches of a file.

    Raises:
        DataError: a row group unpacks to far more than the file holds, or a row is longer than 64 MiB.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        facts = file.metadata
        schema = [facts.schema.column(number) for number in range(facts.num_columns)]
        texts = [column.path for column in schema if column.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(
            path, metadata=facts, read_dictionary=texts, buffer_size=2**20, pre_buffer=False
        ) as dictionaries:
            sizes = ((group, _num_rows(file, dictionaries, group, path, name)) for group in range(facts.num_row_groups))
            for num_rows, groups in groupby(sizes, key=lambda size: size[1]):
                yield from file.iter_batches(batch_size=num_rows, row_groups=[group for group, _ in groups])


def is_bomb(unpacked: int, *, packed: int) -> bool:
    """Whether bytes unpack to more than texts of people's do, and to more than is held in memory at a time."""
    return unpacked > PIECE and unpacked > _MOST_PACKED * packed


def _num_rows(file: Any, dictionaries: Any, group: int, path: Path, name: str) -> int:
    """Rows of a batch of this row group."""
    facts = file.metadata.row_group(group)
    packed, unpacked = path.stat().st_size, facts.total_byte_size
    if is_bomb(unpacked, packed=packed):
        raise DataError(
            f"{name}: row group {group + 1} unpacks from {packed:,} bytes at most to {unpacked:,}: write the file "
            "anew, in smaller row groups"
        )
    # What the file says of its columns is checked by reading a row: where it is damaged, asking ends the process.
    next(file.iter_batches(batch_size=1, row_groups=[group]), None)
    expected = unpacked / max(1, facts.num_rows)
    for number in range(facts.num_columns):
        expected += _Column(facts.column(number), facts.num_rows, group, name, dictionaries).copied_bytes()
    return int(max(1, min(_MOST_ROWS, PIECE // max(1.0, expected))))


@dataclass(frozen=True)
class _Column:
    """A column of a row group.

    Attributes:
        facts: what the file's end says of it.
        dictionaries: the file, read so that texts are places in a dictionary instead of copies.
    """

    facts: Any
    num_rows: int
    group: int
    name: str
    dictionaries: Any

    def copied_bytes(self) -> float:
        """Bytes a row by which texts may outgrow the pages they stand in."""
        facts, longest = self.facts, self.facts.total_uncompressed_size
        may_repeat = facts.has_dictionary_page or "DELTA_BYTE_ARRAY" in facts.encodings
        if facts.physical_type != "BYTE_ARRAY" or not may_repeat or longest * facts.num_values <= PIECE:
            return 0.0
        if "DELTA_BYTE_ARRAY" not in facts.encodings:
            longest = next((_longest(values) for values in self._values(1)), 0)
        if longest > LONGEST:
            raise self._problem(f"holds a text of {longest:,} bytes; a row may have {LONGEST:,}: leave it out")
        copied = longest * facts.num_values
        if facts.num_values > self.num_rows and copied > _MOST_PACKED * max(facts.total_compressed_size, PIECE):
            self._check_lists()
        return float(copied / max(1, self.num_rows))

    def _values(self, num_rows: int) -> Iterator[Any]:
        columns = [self.facts.path_in_schema]
        for batch in self.dictionaries.iter_batches(batch_size=num_rows, row_groups=[self.group], columns=columns):
            yield batch.column(0)

    def _check_lists(self) -> None:
        """Refuse rows whose lists repeat a long text until they are longer than a row may be."""
        problem = self._problem(f"holds a row that unpacks to more than {LONGEST:,} bytes: leave it out")
        if self.facts.num_values > _MOST_VALUES or any(
            _most_bytes(values) > LONGEST for values in self._values(_MOST_ROWS)
        ):
            raise problem

    def _problem(self, what: str) -> DataError:
        return DataError(f"{self.name}: column {self.facts.path_in_schema} of row group {self.group + 1} {what}")


def _longest(values: Any) -> int:
    """Bytes of the longest text of the dictionary behind a column."""
    import pyarrow.compute as pc

    _, leaf = _leaf(values)
    return int(pc.max(pc.binary_length(leaf.dictionary)).as_py() or 0)


def _most_bytes(values: Any) -> float:
    """Bytes of texts of the row that has most."""
    import numpy as np
    import pyarrow.compute as pc

    rows, leaf = _leaf(values)
    lengths = np.append(np.asarray(pc.fill_null(pc.binary_length(leaf.dictionary), 0), dtype=np.float64), 0.0)
    indices = np.asarray(pc.fill_null(leaf.indices, len(lengths) - 1))
    return float(np.bincount(rows, weights=lengths[indices]).max(initial=0.0))


def _leaf(values: Any) -> tuple[Any, Any]:
    """(row of each text, the texts as a dictionary array) inside the lists and structs that hold one column."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = np.arange(len(values))
    while not pa.types.is_dictionary(values.type):
        if pa.types.is_struct(values.type):
            values = values.flatten()[0]
        else:
            if pa.types.is_map(values.type):
                values = values.cast(pa.list_(pa.struct([values.type.key_field, values.type.item_field])))
            rows = rows[np.asarray(pc.list_parent_indices(values))]
            values = values.flatten()
    return rows, values


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
        for entry in _entries(footer, _field(footer, _int(footer, 0, 4), field), num_bytes=24):
            source.seek(_int(footer, entry, 8))
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
    for entry in _entries(data, _field(data, header, 2), num_bytes=16):
        start, num_bytes = _int(data, entry, 8), _int(data, entry + 8, 8)
        if num_bytes >= 8:
            total += max(0, _int(body.slice(start, 8).to_pybytes(), 0, 8))  # -1: as it is
    return total


def _int(data: bytes, at: int, num_bytes: int) -> int:
    return int.from_bytes(data[at : at + num_bytes], "little", signed=True)


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffers table stands; 0 where it is left out."""
    fields = table - _int(data, table, 4)
    at = 4 + 2 * number
    offset = _int(data, fields + at, 2) if at < _int(data, fields, 2) else 0
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
