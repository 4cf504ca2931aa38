"""Objects between this process and the engine's, with something to do while the other side is silent.

A message is its length and its pickle. `multiprocessing.Connection` would wait without end in the middle of a message:
for room to write to a process that has stopped reading, or for the rest of what one that stopped has begun to write.
"""

from __future__ import annotations

import pickle
import selectors
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LOOK_SECONDS = 0.5
"""How often the waiting side looks at the other one."""
_LENGTH = struct.Struct("!Q")
_PIECE = 1 << 20


class Pipe:
    """One end of a socket pair. Only for two processes of ours: what comes in is unpickled.

    Args:
        ends: called every `LOOK_SECONDS` in which nothing moves; says whether the other side has ended. What it raises
            comes out of `send` or `receive`.
    """

    def __init__(self, end: socket.socket, *, ends: Callable[[], bool] = lambda: False) -> None:
        self._end = end
        self._ends = ends
        end.setblocking(False)

    def send(self, value: object) -> None:
        """Raises EOFError or OSError where the other side is gone."""
        content = pickle.dumps(value)
        for part in (_LENGTH.pack(len(content)), content):
            left = memoryview(part)
            while left:
                self._wait(writes=True)
                with suppress(BlockingIOError):
                    left = left[self._end.send(left) :]

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError, OSError: the other side is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def close(self) -> None:
        self._end.close()

    def _read(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            self._wait(writes=False)
            piece = self._end.recv(min(_PIECE, length - len(content)))
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)

    def _wait(self, *, writes: bool) -> None:
        """Until something can be moved."""
        while not self._can(writes=writes, seconds=LOOK_SECONDS):
            # What the other side wrote before it ended is still there to be read.
            if self._ends() and not self._can(writes=writes, seconds=0):
                raise EOFError

    def _can(self, *, writes: bool, seconds: float) -> bool:
        with selectors.DefaultSelector() as selector:  # select() itself knows no descriptor above 1,023
            selector.register(self._end, selectors.EVENT_WRITE if writes else selectors.EVENT_READ)
            return bool(selector.select(seconds))
