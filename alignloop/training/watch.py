"""Whether the processes of a launched training work: one that is stopped is said, and so is that all are silent.

The others wait for it, for hours, as they wait for a process that writes a checkpoint; nothing is ended here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from alignloop.process_state import SAID_SECONDS, SignsOfLife, descendants, is_stopped, stopped_line

LOOK_SECONDS = 1.0


class TrainingWatch:
    """Looks at what a launcher has started.

    Time in which this process itself does not look (it was stopped, too, or the machine slept) does not count.

    Args:
        launcher: its process; it looks at its workers all the time, which is no sign of life.
        say: gets a line where a process is stopped or all are silent, and where that ends.
        said_after: seconds of it.
    """

    def __init__(self, launcher: int, *, say: Callable[[str], None], said_after: float = SAID_SECONDS) -> None:
        self._launcher, self._say, self._said_after = launcher, say, said_after
        self._looked = time.monotonic()
        self._waited = 0.0
        self._signs = SignsOfLife([])
        self._stopped_at: dict[int, float] = {}
        self._said: set[int] = set()
        self._said_silent = False

    def look(self) -> None:
        """Look again, where the last look is LOOK_SECONDS old."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._waited += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        workers = descendants(self._launcher)
        self._look_for_stopped([pid for pid in workers if is_stopped(pid)])
        self._look_for_life(workers)

    def _look_for_stopped(self, stopped: list[int]) -> None:
        for pid in [pid for pid in self._stopped_at if pid not in stopped]:
            del self._stopped_at[pid]
            if pid in self._said:
                self._said.remove(pid)
                self._say(f"  training: process {pid} is no longer stopped")
        for pid in stopped:
            seconds = self._waited - self._stopped_at.setdefault(pid, self._waited)
            if seconds >= self._said_after and pid not in self._said:
                self._said.add(pid)
                self._say(
                    f"  training: process {pid} {stopped_line(pid)} for {seconds:.0f} s, and the others wait for it"
                )

    def _look_for_life(self, workers: list[int]) -> None:
        self._signs.look(workers, waited=self._waited)
        silent = self._waited - self._signs.last
        if self._said_silent and not silent:
            self._said_silent = False
            self._say("  training: its processes go on")
        elif silent >= self._said_after and not self._stopped_at and not self._said_silent:
            self._said_silent = True
            pids = ", ".join(map(str, workers))
            self._say(f"  training: none of its processes ({pids}) has used processor time for {silent:.0f} s")
