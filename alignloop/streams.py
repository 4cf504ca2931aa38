"""Standard streams that do not fail: a run goes on when its terminal is gone, and reports at its end what was not
printed."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

STDIN, STDOUT, STDERR = 0, 1, 2


class Output(io.RawIOBase):
    """Writes to a descriptor until that fails; what comes after is discarded. `closed` says why nothing can be written
    from the start; `error` why it failed, None where everything was written."""

    def __init__(self, descriptor: int, *, closed: OSError | None = None) -> None:
        self._descriptor = descriptor
        self._closed = closed
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        self.error = self.error or self._closed
        while self.error is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a pipe that its owner has set not to wait
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return len(data)


def guard() -> Output:
    """Make `sys.stdout` and `sys.stderr` such streams for the rest of the process; returns that of stdout. A closed
    descriptor is connected to nothing: else the next file of ours would get its number, and be printed into."""
    closed = {number: _was_closed(number) for number in (STDIN, STDOUT, STDERR)}
    lost = OSError(errno.EBADF, "it is closed") if closed[STDOUT] else None
    output = Output(STDOUT, closed=lost)
    sys.stdout = _text(output, sys.stdout)
    sys.stderr = _text(Output(STDERR), sys.stderr)
    return output


def _was_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        os.set_inheritable(descriptor, True)
        return True
    return False


def _text(output: Output, before: object) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    # Names of files are any bytes, and a terminal may know few letters: neither is worth an error.
    is_line_by_line = output.isatty() or output.fileno() == STDERR
    buffered = io.BufferedWriter(output)
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=is_line_by_line)
