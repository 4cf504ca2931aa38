"""Work in its own process: what trains or serves disturbs its neighbours, and memory is measured per process.

Its output goes to a log; it ends with the process that started it, and ends what it started.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scripts.bench.case import BenchError

LOG_LINES, CLOSE_SECONDS = 25, 20
_hosted: Any = None


class Hosted:
    """An object that lives in a process of its own; a context manager.

    Args:
        build: called there with `arguments`; `call` reaches its methods, its `end`, if any, is called last.
        environment: the whole environment of the process; default: this one's.
        preload: modules that a server imports once, from which such processes are then forked; none: a fresh start.
    """

    def __init__(
        self,
        build: Callable[..., Any],
        *arguments: Any,
        log: Path,
        environment: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        context = multiprocessing.get_context("forkserver" if preload else "spawn")
        if preload:
            context.set_forkserver_preload(list(preload))
        self._log = log
        self._pool = ProcessPoolExecutor(1, context, _begin, (str(log), build, arguments))
        # A child inherits the environment when it is started.
        with patch.dict(os.environ, environment or {}, clear=environment is not None):
            self.pid: int = self._result(os.getpid)

    def call(self, verb: str, *arguments: Any) -> Any:
        """What the method returned; a BenchError where it raised, or the process died."""
        return self._result(_call, verb, *arguments)

    def _result(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            problem = "the process died; out of memory?"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        tail = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:] if self._log.is_file() else []
        raise BenchError("\n    ".join([problem, *tail]))

    def close(self) -> None:
        with suppress(BenchError):
            self._result(_end)
        self._pool.shutdown()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and did not end

    def __enter__(self) -> Hosted:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def alone(function: Callable[..., Any], *arguments: Any, log: Path, **options: Any) -> Any:
    """What a function returns in its own process; options and errors as for `Hosted` and its `call`."""
    with Hosted(str, log=log, **options) as hosted:
        return hosted._result(function, *arguments)


def _begin(log: str, build: Callable[..., Any], arguments: Sequence[Any]) -> None:
    global _hosted
    os.setsid()
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What a server imported stays: walking it cost a third of a second at every collection of garbage.
    gc.freeze()
    _hosted = build(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _call(verb: str, *arguments: Any) -> Any:
    return getattr(_hosted, verb)(*arguments)


def _end() -> None:
    signal.alarm(CLOSE_SECONDS)  # exit handlers of torch and vLLM can hang, and nothing is left to save
    if hasattr(_hosted, "end"):
        _hosted.end()


class MemoryWatch:
    """Peak resident memory from here on, and the level it starts from (Linux; zeros elsewhere)."""

    def __init__(self) -> None:
        gc.collect()
        if Path("/proc/self/status").is_file() and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)  # freed memory back to the system, so that the level is what is in use (glibc)
        self.level_mib = memory_mib("VmRSS")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark back to the present level

    def peak_mib(self) -> float:
        return memory_mib("VmHWM")

    def above_mib(self) -> float:
        return max(0.0, self.peak_mib() - self.level_mib)


def memory_mib(name: str, *, process: str = "self") -> float:
    """A line of a process's status, in MiB (Linux; zero elsewhere)."""
    path = Path("/proc") / process / "status"
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)
