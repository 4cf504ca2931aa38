"""A user's file as raw JSON values with their places, one at a time. What kind of file it is, its content tells.

file --files.kind_of--> JSON lines | JSON array | objects over several lines | CSV | Parquet | Arrow | a hub's data set
     --parsing--> RawRow (value, or what is wrong with it), in flat memory

Every cell of a CSV file is a text, so that `007` and `true` stay what they are, but for three that can only be meant
otherwise: numbers in columns of scores, lists of turns (a history, too) written as JSON, and lists of a ranked row.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from alignloop.data.files import BOM, DAMAGED, HUB, file_at, is_plain, is_tabbed, kind_of, open_bytes
from alignloop.data.parsing import LONGEST, TOO_LONG, Splitter, parse_row
from alignloop.data.problems import EXCERPT, BadRow, excerpt
from alignloop.data.ranked import LISTS, NUMBER_LISTS
from alignloop.data.tables import TABLES, hub_rows
from alignloop.data.turns import is_turns
from alignloop.errors import DataError

_SCORE = re.compile(r"(^|_|-)(score|rating|reward|rank|rate|helpfulness)(_|-|$)")
_LIST_COLUMNS = frozenset((*LISTS, *NUMBER_LISTS, "history"))
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
_IS_NOT_UTF8 = "is not UTF-8. Save the file as UTF-8 (for example `iconv -f latin1 -t utf-8`)"


class RawRow(NamedTuple):
    """One row as found.

    Attributes:
        line: 1-based line (JSON lines, CSV: where the record begins), element (JSON array) or row (tables, hub).
        value: None where `problem` is set.
        raw: its bytes; empty for rows of tables.
        problem: why it is not JSON.
        ends: nothing can be read after it, though the file should go on.
    """

    line: int
    value: Any
    raw: bytes = b""
    problem: BadRow | None = None
    ends: bool = False

    def excerpt(self) -> str:
        return self.raw[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT] if self.raw else excerpt(self.value)


@dataclass(frozen=True)
class RawFile:
    """A file's rows, not yet read.

    Attributes:
        unit: what `RawRow.line` counts.
        rows: reads them, anew each time it is called.
        lines: the file in which each row is a line, byte for byte, so that it can be read in parts; None for others.
        headed: whether a header stands before the rows (CSV).
    """

    name: str
    unit: Literal["line", "element", "row"]
    rows: Callable[[], Iterator[RawRow]]
    lines: Path | None = None
    headed: bool = False


def open_rows(file: Path | str) -> RawFile:
    """A file's rows, read as they are asked for.

    A line that is not JSON becomes a row with a `problem`, as does what is left of an array that is cut short.

    Raises:
        DataError: the file is missing, a directory, empty, unreadable or of another kind; a damaged Parquet file or a
            hub's data set raises it while its rows are read.
    """
    name = str(file)
    if name.startswith(HUB):
        return RawFile(name, "row", lambda: _numbered(hub_rows(name)))
    path = file_at(Path(file).expanduser(), name)
    kind = kind_of(path, name)
    if table := TABLES.get(kind):
        return RawFile(name, "row", lambda: _numbered(table(path, name)))
    if kind == "csv":
        return RawFile(name, "line", partial(_read, partial(_records, tabs=is_tabbed(name)), path, name), headed=True)
    in_lines, plain = _is_in_lines(path, name)
    rows = partial(_read, _lines if in_lines else _elements, path, name)
    return RawFile(name, "line" if in_lines else "element", rows, path if in_lines and plain else None)


def part_of(file: Path | str, span: tuple[int, int]) -> RawFile:
    """The lines that begin in bytes [start, end) of a JSON-lines file, counted from 1 again."""
    name = str(file)
    path = file_at(Path(file).expanduser(), name)
    return RawFile(name, "line", partial(_read, partial(_lines, span=span), path, name))


def no_rows(raw: RawFile) -> DataError:
    if raw.headed:
        return DataError(f"{raw.name}: a header and no rows; below it, it must hold a line for each row")
    what = {"line": "the file is empty", "element": "the JSON array is empty", "row": "the table has no rows"}[raw.unit]
    return DataError(f"{raw.name}: {what}; it must hold rows: one JSON object a line, or one JSON array of objects")


def _is_in_lines(path: Path, name: str) -> tuple[bool, bool]:
    """Whether rows stand in lines of their own (an array's elements do not), and whether no bytes are unpacked.

    Raises:
        DataError: there is nothing in the file.
    """
    with open_bytes(path, name) as stream:
        first, plain = _first_line(stream), is_plain(stream)
    if not first:
        raise DataError(f"{name}: the file is empty; one JSON object a line (or one JSON array of objects) is needed")
    if first.startswith(b"["):
        return False, plain
    if not first.startswith(b"{") or _is_json(first):
        return True, plain
    with open_bytes(path, name) as stream:
        try:
            element = next(iter(_split(stream)), None)
        except DAMAGED:
            return True, plain  # said of the row at which it happens
    return element is None or element.problem is not None or not _is_json(element.data), plain


def _first_line(stream: IO[bytes]) -> bytes:
    try:
        while line := stream.readline(LONGEST):
            if line := line.removeprefix(BOM).strip():
                return line
    except DAMAGED:
        pass  # said of the row at which it happens
    return b""


def _is_json(data: bytes) -> bool:
    try:
        parse_row(data, line=None, offset=0)
    except BadRow as bad:
        return bad.field is not None  # whole, though with a key twice
    return True


def _split(stream: IO[bytes]) -> Splitter:
    start = stream.read(len(BOM))
    pending = [start.removeprefix(BOM)]

    def read(size: int) -> bytes:
        return (pending.pop() if pending else b"") + stream.read(size)

    return Splitter(read, offset=len(BOM) if start == BOM else 0)


def _numbered(values: Iterator[Any]) -> Iterator[RawRow]:
    for number, value in enumerate(values, start=1):
        yield RawRow(number, value)


def _read(read: Callable[[IO[bytes]], Iterator[RawRow]], path: Path, name: str) -> Iterator[RawRow]:
    number = 0
    with open_bytes(path, name) as stream:
        num_bytes = path.stat().st_size
        try:
            for row in read(stream):
                number = row.line
                yield row
            if path.stat().st_size < num_bytes:
                raise EOFError("it became shorter while it was read")
        except DAMAGED as error:
            reason = f"the file cannot be read any further: {str(error) or type(error).__name__}. Is it whole?"
            yield RawRow(number + 1, None, b"", BadRow(None, reason), ends=True)


def _lines(stream: IO[bytes], *, span: tuple[int, int] | None = None) -> Iterator[RawRow]:
    offset, end = span or (0, None)
    if offset:
        stream.seek(offset)
    for number, line in enumerate(iter(partial(stream.readline, LONGEST + 1), b""), start=1):
        if len(line) > LONGEST:
            yield RawRow(number, None, line[: 4 * EXCERPT], BadRow(None, TOO_LONG))
            offset += len(line)
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
                offset += len(line)
            continue
        if not line.isspace():
            try:
                yield RawRow(number, parse_row(line, line=None, offset=offset), line)
            except BadRow as problem:
                if line.removeprefix(BOM).strip():
                    yield RawRow(number, None, line.removeprefix(BOM).strip(), problem)
        offset += len(line)
        if end is not None and offset >= end:
            return


def _elements(stream: IO[bytes]) -> Iterator[RawRow]:
    for number, element in enumerate(_split(stream), start=1):
        start = element.data[: 4 * EXCERPT]
        try:
            if element.problem is not None:
                raise BadRow(None, f"{element.problem} (line {element.line} of the file)")
            value = parse_row(element.data, line=element.line, offset=element.offset)
        except BadRow as problem:
            yield RawRow(number, None, start, problem, ends=element.ends)
        else:
            yield RawRow(number, value, start)


def _records(stream: IO[bytes], *, tabs: bool) -> Iterator[RawRow]:
    """The records of a CSV file; one that is broken hides none that follows.

    A record or line over 64 MiB, or a quote that is never closed, ends the file. `tabs`: whether tabs separate cells
    where the header, which names one column, does not show what does.
    """
    csv.field_size_limit(LONGEST)
    lines = _text_lines(stream)
    first = next(lines, "").removeprefix(BOM.decode())
    if "\r" in first.rstrip("\r\n"):
        reason = "lines end in CR alone: make them end in LF (`tr '\\r' '\\n' < old > new`)"
        yield RawRow(1, None, problem=BadRow(None, reason))
        return
    delimiter = max("\t,;" if tabs else ",\t;", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    while True:
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if cells and not names:
                names = _column_names(cells)
            elif cells:
                yield RawRow(line, _values(names, cells))
        except BadRow as bad:
            yield RawRow(line, None, problem=bad)
            if not names:
                return
        except csv.Error as error:
            yield RawRow(line, None, problem=BadRow(None, f"no CSV: {error}"))
        line = reader.line_num + 1


def _text_lines(stream: IO[bytes]) -> Iterator[str]:
    for data in iter(partial(stream.readline, LONGEST + 1), b""):
        if len(data) > LONGEST:
            raise EOFError(f"a line {TOO_LONG}")
        yield data.decode("utf-8", "surrogateescape")


def _column_names(cells: Sequence[str]) -> list[str]:
    names = [name.strip() or f"unnamed_{number}" for number, name in enumerate(cells, start=1)]
    if _NOT_UTF8.search("".join(names)):
        raise BadRow(None, f"the header {_IS_NOT_UTF8}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRow(twice, "names two columns of the header: only one of them can be meant")
    return names


def _values(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise BadRow(None, f"holds {len(cells)} cells, while the header names {len(names)} columns")
    return {name: _value(name, cell) for name, cell in zip(names, cells, strict=True)}


def _value(name: str, cell: str) -> Any:
    if not cell.isascii() and _NOT_UTF8.search(cell):
        raise BadRow(name, _IS_NOT_UTF8)
    if _SCORE.search(name):
        try:
            number = float(cell)
        except ValueError:
            return cell or None
        return None if math.isnan(number) else number
    if cell[:1] not in ("[", "{"):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        if cell.startswith(("[{'role'", "[{'content'", "[{'from'", "[{'value'")):
            raise BadRow(name, "holds turns as Python prints them: write them as JSON (json.dumps)") from None
        return cell
    return found if is_turns(found) or is_turns([found]) or name in _LIST_COLUMNS else cell
