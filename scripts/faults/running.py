"""A run as seen from outside: its processes, the stage it is at, what it has published, its times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from alignloop.engines.watch import descendants
from alignloop.run_dir.manifest import PARTIAL

Kind = Literal["main", "engine", "worker"]
KINDS: tuple[Kind, ...] = ("main", "engine", "worker")
MARKS: dict[Kind, str] = {"engine": "alignloop.engines.worker", "worker": "alignloop.training.worker"}
"""Part of the command line of each kind of child."""
LAUNCHER = "accelerate.commands.launch"
START, END = "start", "end"
"""Before the first stage begins, and after the last one is published."""
POLL_SECONDS = 0.02
GONE_SECONDS = 20.0


class At(NamedTuple):
    """A stage as `round-01/04_sample`, or START or END, and seconds: since it began, or how long it took."""

    stage: str
    seconds: float


class RunFailedError(Exception):
    """A run that nobody killed ended with an error."""


class Run:
    """One directory and the calls of `alignloop run` with these arguments on it, one after another.

    `folder` has the run directory `run`, its temporary folder and its output.
    """

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder, self.dir, self.temporary = folder, folder / "run", folder / "tmp"
        self._arguments = arguments
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
        return self._process.poll() is None

    def wait(self) -> int:
        return self._process.wait()

    def at(self) -> At:
        """The stage of this call, and the seconds since this call began it or went on with it."""
        now = time.time()
        begun = [(_time(mark), mark.parent) for mark in self.dir.glob(f"round-*/*{PARTIAL}/.fingerprint")]
        since, folder = max(begun, default=(0.0, self.dir))
        if since >= self._launched:
            return At(f"{folder.parent.name}/{folder.name.removesuffix(PARTIAL)}", now - since)
        last = max(map(_time, self.dir.glob("round-*/*/manifest.json")), default=0.0)
        return At(START if last < self._launched else END, now - max(last, self._launched))

    def spans(self) -> list[At]:
        """Wait for the end; how long each stage took, in order, with what came before the first and after the last.

        A RunFailedError where it ended with an error.
        """
        began, ended = {START: time.monotonic()}, 0.0
        while self.is_running:
            # Between two stages there is no open folder for a moment, which looks like the end.
            if (stage := self.at().stage) == END:
                ended = ended or time.monotonic()
            else:
                began.setdefault(stage, time.monotonic())
                ended = 0.0
            time.sleep(POLL_SECONDS)
        if self.wait() != 0:
            file = self.folder / "output.txt"
            printed = file.read_text(encoding="utf-8", errors="replace").strip()
            raise RunFailedError(f"the run that nobody kills failed (all it printed: {file}):\n{printed[-500:]}")
        if ended:
            began[END] = ended
        ends = [*list(began.values())[1:], time.monotonic()]
        return [At(stage, end - start) for (stage, start), end in zip(began.items(), ends, strict=True)]

    def is_published(self, stage: str) -> bool:
        return (self.dir / stage / "manifest.json").is_file()

    def kept(self, stage: str) -> list[str]:
        """What an unpublished stage has left for the next call."""
        return sorted(path.name for path in self.dir.glob(f"{stage}{PARTIAL}/*") if path.name != ".fingerprint")

    def processes(self) -> dict[Kind, list[int]]:
        """Ids of this call's processes by kind; a worker is one of those that train, not their launcher."""
        found: dict[Kind, list[int]] = {"main": [self._process.pid], "engine": [], "worker": []}
        for pid in descendants(self._process.pid):
            command = command_of(pid)
            for kind, mark in MARKS.items():
                if mark in command and LAUNCHER not in command:
                    found[kind].append(pid)
        return found

    def kill(self, kind: Kind) -> set[int]:
        """`kill -9` one process; returns the others that this call had started."""
        own = {self._process.pid, *descendants(self._process.pid)}
        pid = self.processes()[kind][0]
        os.kill(pid, signal.SIGKILL)
        return own - {pid}

    def left_behind(self, pids: set[int]) -> list[str]:
        """Those of an ended call's processes that still run after a while, with their commands."""
        gone_within(lambda: not any(map(is_alive, pids)), GONE_SECONDS)
        return [f"{pid}: {command_of(pid)[:100]}" for pid in pids if is_alive(pid)]

    def temporary_files(self) -> list[str]:
        """All in the temporary folder but the compiler's cache."""
        return sorted(path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_"))

    def end(self) -> None:
        """Kill what runs: something else went wrong."""
        if self.num_calls and self.is_running:
            for pid in (*descendants(self._process.pid), self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()


def gone_within(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return condition()


def is_alive(pid: int) -> bool:
    """A process that has ended, and is not yet waited for, has no command line."""
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
