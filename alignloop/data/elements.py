"""JSON values that follow each other in a file, or stand in one array, cut apart without parsing the whole.

bytes --brackets counted, texts skipped--> the bytes of each element, with its line and offset

A broken element is cut out like any other, so that what is after it is still read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST = 64 * 2**20
"""Bytes of one row at most: a missing quote must not make one row of a file of many gigabytes."""
TOO_LONG = f"is longer than {LONGEST // 2**20} MiB: a quote, a bracket or a line break is missing"
_BLOCK = 2**20
# A whole text (line breaks in it are not JSON: there it is broken off), or one character that makes structure.
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+"|["\[\]{},]')


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

    Args:
        read: `read(size)` gives the next bytes, none at the end.
        offset: of the first of them in the file.
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
        yield from self._rest()

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
        """Give out what lies before `end`, without blanks; `skip` bytes after it are nobody's."""
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

    def _rest(self) -> Iterator[Element]:
        where = "the array's end" if self._in_array else "its end"
        problem = f"the file ends before {where}: it is cut short, or a quote or bracket is missing"
        if self._depth:
            yield self._cut(len(self._buffer), problem, ends=True)
            return
        last = self._cut(len(self._buffer), "stands between the rows")
        if last.data:
            yield last
