"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from alignloop.terminal import printable

Advance = Callable[[int], None]


class Progress(Protocol):
    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Work of `total` units; call the yielded function with the number of units just done."""

    def say(self, line: str) -> None:
        """One line to keep on the screen."""


class QuietProgress:
    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        yield lambda num_done: None

    def say(self, line: str) -> None:
        pass


class LinesAlone(QuietProgress):
    """The lines of another progress, without its tasks: for what is done anew in every step of a longer task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        self._progress.say(line)


class PlainProgress:
    """Lines for logs and pipes: at most one every `interval` seconds of each task, with rate and time left."""

    def __init__(self, *, interval: float = 10.0) -> None:
        self._interval = interval

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        started = last = time.monotonic()
        done = 0

        def advance(num_done: int) -> None:
            nonlocal done, last
            done += num_done
            now = time.monotonic()
            if now - last >= self._interval:
                last = now
                rate = done / (now - started)
                self.say(
                    f"  {label}: {done:,}/{total:,} {unit}, {rate:,.1f} {unit}/s, {(total - done) / rate:,.0f} s left"
                )

        yield advance

    def say(self, line: str) -> None:
        sys.stdout.write(printable(line) + "\n")
        sys.stdout.flush()


class TerminalProgress:
    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        from rich import progress as bars

        columns = (
            bars.TextColumn("  {task.description}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TextColumn(unit),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(compact=True),
        )
        started = time.monotonic()
        done = 0
        with bars.Progress(*columns, console=self._console, transient=True) as bar:
            bar_id = bar.add_task(printable(label), total=total, rate="")

            def advance(num_done: int) -> None:
                nonlocal done
                done += num_done
                rate = done / max(time.monotonic() - started, 1e-9)
                bar.update(bar_id, advance=num_done, rate=f"{rate:,.0f}/s")

            yield advance

    def say(self, line: str) -> None:
        self._console.print(printable(line), markup=False)


def for_terminal() -> Progress:
    return TerminalProgress() if sys.stdout.isatty() else PlainProgress()
