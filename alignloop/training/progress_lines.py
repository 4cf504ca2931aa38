"""Progress across a process boundary: the first worker writes lines, the process that waits turns them into calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from alignloop.progress import Advance, Progress


class WrittenProgress:
    """A `Progress` that appends a line of JSON to a file for each call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        self._write(task=label, total=total, unit=unit)
        yield lambda num_done: self._write(advance=num_done)
        self._write(end=True)

    def say(self, line: str) -> None:
        self._write(say=line)

    def _write(self, **values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class ReadProgress:
    """Reads what `WrittenProgress` has written so far and calls the same of `progress`.

    A context manager: a task that its writer did not end is ended with the block.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self._offset = 0
        self._rest = b""
        self._tasks: list[tuple[ExitStack, Advance]] = []

    def __enter__(self) -> ReadProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._tasks:
            self._tasks.pop()[0].close()

    def pass_on(self) -> None:
        """Pass on the lines that are new."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._call(json.loads(line))

    def _call(self, values: dict[str, Any]) -> None:
        if "say" in values:
            self._progress.say(values["say"])
        elif "task" in values:
            stack = ExitStack()
            task = self._progress.task(values["task"], total=values["total"], unit=values["unit"])
            self._tasks.append((stack, stack.enter_context(task)))
        elif "advance" in values:
            self._tasks[-1][1](values["advance"])
        else:
            self._tasks.pop()[0].close()
