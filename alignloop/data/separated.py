"""Rows of CSV and TSV files: a header that names the columns, then a row a record.

Every cell is a text, so that `007` and `true` stay what they are, but for three that can only be meant otherwise:
numbers in columns of scores, lists of turns (a history, too) written as JSON, and lists of a ranked row.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any

from alignloop.data.parsing import BOM, LONGEST, TOO_LONG
from alignloop.data.problems import BadRow
from alignloop.data.ranked import LISTS, NUMBER_LISTS
from alignloop.data.turns import is_turns

Record = tuple[int, dict[str, Any] | None, BadRow | None]
"""Line at which a record begins; its values, or what is wrong with it."""
_SCORE = re.compile(r"(^|_|-)(score|rating|reward|rank|rate|helpfulness)(_|-|$)")
_LIST_COLUMNS = frozenset((*LISTS, *NUMBER_LISTS, "history"))
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")


def records(stream: IO[bytes], *, tabs: bool = False) -> Iterator[Record]:
    """The records of a file; one that is broken hides none that follows.

    A record or line over 64 MiB, or a quote that is never closed, ends the file.

    Args:
        tabs: whether tabs separate cells where the header, which names one column, does not show what does.
    """
    csv.field_size_limit(LONGEST)
    lines = _lines(stream)
    first = next(lines, "")
    if "\r" in first.rstrip("\r\n"):
        yield 1, None, BadRow(None, "lines end in CR alone: make them end in LF (`tr '\\r' '\\n' < old > new`)")
        return
    reader = csv.reader(_again(first, lines), delimiter=_delimiter(first, tabs=tabs), strict=True)
    names: list[str] = []
    line = 1
    while True:
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if cells and not names:
                names = _names(cells)
            elif cells:
                yield line, _values(names, cells), None
        except BadRow as bad:
            yield line, None, bad
            if not names:
                return
        except csv.Error as error:
            yield line, None, BadRow(None, f"no CSV: {error}")
        line = reader.line_num + 1


def _lines(stream: IO[bytes]) -> Iterator[str]:
    for data in iter(partial(stream.readline, LONGEST + 1), b""):
        if len(data) > LONGEST:
            raise EOFError(f"a line {TOO_LONG}")
        yield data.decode("utf-8", "surrogateescape")


def _again(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first.removeprefix(BOM.decode())
    yield from lines


def _delimiter(header: str, *, tabs: bool) -> str:
    return max("\t,;" if tabs else ",\t;", key=header.count)


def _names(cells: Sequence[str]) -> list[str]:
    names = [name.strip() or f"unnamed_{number}" for number, name in enumerate(cells, start=1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRow(twice, "names two columns of the header: only one of them can be meant")
    return names


def _values(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise BadRow(None, f"holds {len(cells)} cells, while the header names {len(names)} columns")
    return {name: _value(name, cell) for name, cell in zip(names, cells, strict=True)}


def _value(name: str, cell: str) -> Any:
    if not cell.isascii() and _NOT_UTF8.search(cell):
        raise BadRow(name, "is not UTF-8. Save the file as UTF-8 (for example `iconv -f latin1 -t utf-8`)")
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
