"""Time of the timed pass, and memory above the level before it."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class StopwatchProgress:
    """A `Progress` that notes how long each task took, from its start to its last unit.

    Attributes:
        seconds: by label.
        paused: seconds that count for nothing, such as those of writing a checkpoint.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.paused = 0.0

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        started, paused = time.perf_counter(), self.paused

        def advance(num_done: int) -> None:
            self.seconds[label] = time.perf_counter() - started - (self.paused - paused)

        yield advance

    def say(self, line: str) -> None:
        print(line, flush=True)

    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What runs inside is not counted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - started


class MemoryWatch:
    """Peak resident memory from here on, and the level it starts from (Linux; zeros elsewhere)."""

    def __init__(self) -> None:
        gc.collect()
        _trim()
        self.level_mib = _status_mib("VmRSS")
        _reset_peak()

    def peak_mib(self) -> float:
        return _status_mib("VmHWM")

    def above_mib(self) -> float:
        """Peak above the level."""
        return max(0.0, self.peak_mib() - self.level_mib)


def resident_mb(pid: int) -> float:
    """Resident memory of a process now, in 10^6 bytes (Linux; zero elsewhere)."""
    return _status_mib("VmRSS", process=str(pid)) * 1024 * 1024 / 1e6


def _status_mib(name: str, *, process: str = "self") -> float:
    path = Path("/proc") / process / "status"
    if not path.is_file():
        return 0.0
    line = next((line for line in path.read_text().splitlines() if line.startswith(f"{name}:")), "")
    return int(line.split()[1]) / 1024 if line else 0.0


def _reset_peak() -> None:
    """The kernel's high-water mark back to the present level; where that is not allowed the mark stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _trim() -> None:
    """Freed memory back to the system, so that the level is what is in use (glibc)."""
    if Path("/proc/self/status").is_file():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
