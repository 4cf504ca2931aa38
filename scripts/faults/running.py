"""A run as seen from outside while it goes on: its processes, the stage it is at, and what it has published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignloop.artifacts import PARTIAL
from alignloop.engines.process_state import descendants

Kind = Literal["main", "engine", "worker"]
KINDS: tuple[Kind, ...] = ("main", "engine", "worker")
MARKS: dict[Kind, str] = {"engine": "alignloop.engines.worker", "worker": "alignloop.training.worker"}
"""What stands in the command line of each kind of child."""
LAUNCHER = "accelerate.commands.launch"
START, END = "start", "end"
"""What comes before the first stage begins and after the last one is published."""
POLL_SECONDS = 0.02
GONE_SECONDS = 20.0


@dataclass(frozen=True)
class At:
    """Where a run is: a stage as `round-01/04_sample`, or START or END, and for how long."""

    stage: str
    seconds: float


class Run:
    """One directory and the calls of `alignloop run` on it, one after another.

    Args:
        folder: holds the run directory `run`, its temporary folder and what it printed.
        arguments: of `alignloop run`, beside the directory.
    """

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.dir = folder / "run"
        self.temporary = folder / "tmp"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._launched = 0.0
        self.num_calls = 0
        self.temporary.mkdir(parents=True)

    def start(self) -> None:
        """Run, or go on."""
        self.num_calls += 1
        self._launched = time.time()
        with (self.folder / "output.txt").open("ab") as output:
            output.write(f"=== call {self.num_calls}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                # The same directory by name in every folder: no path is a difference between two runs.
                [sys.executable, "-m", "alignloop", "run", *self._arguments, "--run-dir", "run"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "TMPDIR": str(self.temporary)},
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait()

    def at(self) -> At:
        """Where this call is: a stage counts from when this call began it, or went on with it."""
        now = time.time()
        begun = [
            (mark, changed) for mark in self.dir.glob(f"round-*/*{PARTIAL}/.fingerprint") if (changed := _time(mark))
        ]
        mine = [(mark, changed) for mark, changed in begun if changed >= self._launched]
        if mine:
            mark, changed = max(mine, key=lambda one: one[1])
            return At(_stage(mark.parent), now - changed)
        manifests = [changed for path in self.dir.glob("round-*/*/manifest.json") if (changed := _time(path))]
        last = max(manifests, default=0.0)
        return At(START if last < self._launched else END, now - max(last, self._launched))

    def is_published(self, stage: str) -> bool:
        return (self.dir / stage / "manifest.json").is_file()

    def kept(self, stage: str) -> list[str]:
        """What a stage that is not published has left for the next call."""
        partial = self.dir / f"{stage}{PARTIAL}"
        return (
            sorted(path.name for path in partial.iterdir() if path.name != ".fingerprint") if partial.is_dir() else []
        )

    def processes(self) -> dict[Kind, list[int]]:
        """Ids of this call's processes by kind; a worker is one of those that train, not the launcher of them."""
        assert self._process is not None
        found: dict[Kind, list[int]] = {"main": [self._process.pid], "engine": [], "worker": []}
        for pid in descendants(self._process.pid):
            command = command_of(pid)
            for kind, mark in MARKS.items():
                if mark in command and LAUNCHER not in command:
                    found[kind].append(pid)
        return found

    def kill(self, kind: Kind) -> set[int]:
        """`kill -9` of one process; the others that this call had started."""
        assert self._process is not None
        own = {self._process.pid, *descendants(self._process.pid)}
        pid = self.processes()[kind][0]
        os.kill(pid, signal.SIGKILL)
        return own - {pid}

    def left_behind(self, pids: set[int]) -> list[str]:
        """Those of an ended call's processes that are there after a while, with their commands."""
        gone_within(lambda: not any(map(is_alive, pids)), GONE_SECONDS)
        return [f"{pid}: {command_of(pid)[:100]}" for pid in pids if is_alive(pid)]

    def temporary_files(self) -> list[str]:
        """Ours, and whatever else is no compiler's cache."""
        return sorted(path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_"))

    def end(self) -> None:
        """Kill what runs: something else went wrong."""
        if self.is_running and self._process is not None:
            for pid in (*descendants(self._process.pid), self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


def gone_within(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return condition()


def is_alive(pid: int) -> bool:
    """What has ended, and is not yet waited for, has no command line any more."""
    return bool(command_of(pid))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _time(path: Path) -> float:
    """When a file was written; 0 where it is gone meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _stage(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name.removesuffix(PARTIAL)}"
