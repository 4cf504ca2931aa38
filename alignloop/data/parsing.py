"""Bytes -> JSON values: one row's, fast where nothing is odd, and the rows of an array, cut apart without parsing it.

bytes of a file --Splitter: brackets counted, texts skipped--> the bytes of each element, with its line and offset
bytes of a row --orjson--> value, as many keys in it as in the bytes? --no, or an error--> json --> value or BadRow

A broken element is cut out like any other, so that what is after it is still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from alignloop.data.files import BOM
from alignloop.data.problems import BadRow
from alignloop.errors import DataError

LONGEST = 64 * 2**20
"""Bytes of one row at most: a missing quote must not make one row of a file of many gigabytes."""
TOO_LONG = f"is longer than {LONGEST // 2**20} MiB: a quote, a bracket or a line break is missing"
_EXACT = 2.0**63
"""orjson makes a float of a whole number from here on."""
_SPACED_COLON = re.compile(rb'"\s+:')
_BLOCK = 2**20
# A whole text (line breaks in it are not JSON: there it is broken off), or one character that makes structure.
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+"|["\[\]{},]')


def parse_row(data: bytes, *, line: int | None, offset: int) -> Any:
    """The JSON value of `data`; NaN and the infinities, which JSON lacks and Python writes, become null.

    Args:
        line: of its first byte in the file, for values over several lines; None for a value of one line.
        offset: of its first byte in the file.

    Raises:
        BadRow: no JSON, not UTF-8, a NUL byte, or an object with the same key twice.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _parse_carefully(data, line=line, offset=offset)
    # A key is followed by a colon; in a text the quote before the colon is escaped.
    num_keys = _num_keys(value)
    if data.count(b":") == num_keys:  # no text has one
        return value
    num_colons = data.count(b'":')
    if num_colons != num_keys and num_colons - data.count(b'\\":') != num_keys:
        return _parse_carefully(data, line=line, offset=offset)
    if b" :" in data and _SPACED_COLON.search(data):
        return _parse_carefully(data, line=line, offset=offset)
    return value


def parse_line(data: bytes, *, offset: int, where: str, form: str) -> Any:
    """`parse_row` of a file that is refused whole for one bad line.

    `where` (file and line) and `form` (what the file must be) are for the message; `offset` is the line's in the file.

    Raises:
        DataError: as `parse_row`.
    """
    try:
        return parse_row(data, line=None, offset=offset)
    except BadRow as bad:
        raise DataError(f"{where}: {bad.reason}. {form}.") from None


def _num_keys(value: Any) -> int:
    """Keys of all objects in `value`; -1 where a number may have lost digits."""
    num_keys = 0
    stack = [value if type(value) is dict or type(value) is list else [value]]
    while stack:
        item = stack.pop()
        inside: Iterable[Any] = item
        if type(item) is dict:
            num_keys += len(item)
            inside = item.values()
        for inner in inside:
            kind = type(inner)
            if kind is str:
                continue
            if kind is dict or kind is list:
                stack.append(inner)
            elif kind is float and not -_EXACT < inner < _EXACT:
                return -1
    return num_keys


def _parse_carefully(data: bytes, *, line: int | None, offset: int) -> Any:
    if data.startswith(BOM):
        data, offset = data.removeprefix(BOM), offset + len(BOM)
    if (nul := data.find(b"\0")) >= 0:
        raise BadRow(None, f"holds a NUL byte at byte offset {offset + nul} of the file: remove it")
    try:
        text = data.rstrip().decode("utf-8")
        return json.loads(text, object_pairs_hook=_with_unique_keys, parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        raise BadRow(
            None,
            f"not UTF-8: byte 0x{data[error.start]:02x} at byte offset {offset + error.start}. Save the file as UTF-8 "
            "(for example `iconv -f latin1 -t utf-8`)",
        ) from None
    except json.JSONDecodeError as error:
        where = f"column {error.colno}"
        if line is not None:
            at = offset + len(error.doc[: error.pos].encode("utf-8"))
            where = f"line {line + error.lineno - 1}, byte offset {at} of the file"
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        cut = ": it is cut short" if is_cut else ""
        raise BadRow(None, f"invalid JSON at {where}: {error.msg}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(None, f"invalid JSON: {error}") from None


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(twice, f"stands {names.count(twice)} times in one object: only one of the values can be meant")
    return found


@dataclass(frozen=True)
class Element:
    """The bytes of one value.

    Attributes:
        line, offset: of its first byte in the file; lines counted from 1, bytes from 0.
        problem: why it is no element; None where its bounds are sound.
        ends: nothing can be read after it.
    """

    data: bytes
    line: int
    offset: int
    problem: str | None = None
    ends: bool = False


class Splitter:
    """Cuts a file into elements: those of its arrays, and its other top-level values as they are.

    `read(size)` gives the next bytes, none at the end; `offset` is that of the first of them in the file.
    """

    def __init__(self, read: Callable[[int], bytes], *, offset: int = 0) -> None:
        self._read = read
        self._buffer = b""
        self._start = 0  # of what is not yet given out
        self._at = 0  # of what is not yet looked at
        self._line = 1
        self._offset = offset
        self._depth = 0
        self._in_array = False

    def __iter__(self) -> Iterator[Element]:
        while True:
            match = _TOKEN.search(self._buffer, self._at)
            token = match[0] if match else b""
            if match is None or (token == b'"' and self._buffer.find(b"\n", match.end()) < 0):
                self._at = len(self._buffer) if match is None else match.start()
                if not self._more():
                    break
                if len(self._buffer) > LONGEST:
                    yield self._cut(len(self._buffer), TOO_LONG, ends=True)
                    return
                continue
            # A text that is broken off is looked through for brackets: its row may end in it.
            self._at = match.end()
            element = self._step(token, match.start(), match.end())
            if element is not None and element.data:
                yield element
        if self._depth:
            where = "the array's end" if self._in_array else "its end"
            problem = f"the file ends before {where}: it is cut short, or a quote or bracket is missing"
            yield self._cut(len(self._buffer), problem, ends=True)
        elif (last := self._cut(len(self._buffer), "stands between the rows")).data:
            yield last

    def _step(self, token: bytes, start: int, end: int) -> Element | None:
        inside = int(self._in_array)
        if token in (b"[", b"{"):
            self._depth += 1
            if self._depth > 1:
                return None
            self._in_array = token == b"["
            return self._cut(start, "stands between the rows", skip=int(self._in_array))
        if token in (b"]", b"}"):
            self._depth -= 1
            if self._depth < 0:
                self._depth = 0
                return self._cut(end, "closes a bracket that was never opened")
            if self._depth > 0:
                return None
            self._in_array = False
            return self._cut(start if inside else end, None, skip=inside)
        if token == b"," and self._depth <= 1 and inside == self._depth:
            return self._cut(start, None if inside else "stands between the rows", skip=1)
        return None

    def _cut(self, end: int, problem: str | None, *, skip: int = 0, ends: bool = False) -> Element:
        """The bytes before `end` as an element, without blanks; the `skip` bytes after it are dropped."""
        data = self._buffer[self._start : end]
        body = data.lstrip()
        blank = data[: len(data) - len(body)]
        line, offset = self._line + blank.count(b"\n"), self._offset + len(blank)
        self._line += self._buffer.count(b"\n", self._start, end + skip)
        self._offset += end + skip - self._start
        self._start = end + skip
        return Element(body.rstrip(), line, offset, problem, ends=ends)

    def _more(self) -> bool:
        self._buffer = self._buffer[self._start :]
        self._at -= self._start
        self._start = 0
        block = self._read(max(_BLOCK, len(self._buffer)))
        self._buffer += block
        return bool(block)
