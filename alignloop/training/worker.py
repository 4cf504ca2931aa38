"""One of the processes of a training, as `accelerate launch` starts it (see `launch`); never by hand.

    python -m alignloop.training.worker FOLDER        does every job in FOLDER, in order

What it leaves there: `job-00.result.json` of a finished job, `progress.jsonl`; and where it cannot go on, `error.json`
or `out_of_memory.json`, written by the first process that fails: the others fail because of it.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignloop.progress import Advance
    from alignloop.training.job import TrainJob
    from alignloop.training.processes import Processes

LAUNCH_FOLDER = "launch"
"""In a training's own folder, while it runs on several processes."""
JOBS = "job-*.pickle"
PROGRESS = "progress.jsonl"
ERROR = "error.json"
OUT_OF_MEMORY = "out_of_memory.json"


def main() -> None:
    """`argv`: the folder of the jobs. Standard input: a pipe that its parent holds and never writes to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[-1])
    status = 1
    try:
        _work(folder)
        status = 0
    except BaseException as error:
        traceback.print_exc()
        _report(folder, error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a process group that has lost a member can keep an interpreter from ending.
    os._exit(status)


def result_file(job_file: Path) -> Path:
    return job_file.with_suffix(".result.json")


def _work(folder: Path) -> None:
    """Do the jobs that have no result yet."""
    from alignloop.training.processes import launched_processes

    with launched_processes() as processes:
        for path in sorted(folder.glob(JOBS)):
            if not processes.of_first(lambda: result_file(path).exists()):  # noqa: B023
                _do(path, folder, processes)


def _do(path: Path, folder: Path, processes: Processes) -> None:
    from alignloop.progress import QuietProgress
    from alignloop.training.loop import run_here

    job: TrainJob = pickle.loads(path.read_bytes())
    progress = WrittenProgress(folder / PROGRESS) if processes.is_first else QuietProgress()
    result = run_here(replace(job, progress=progress), processes=processes)
    if processes.is_first:
        _write_new(result_file(path), asdict(result))


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


def _report(folder: Path, error: BaseException) -> None:
    from alignloop.training.loop import ProcessOutOfMemory

    if isinstance(error, ProcessOutOfMemory):
        _write_new(folder / OUT_OF_MEMORY, {"rows": error.rows})
        return
    described = {
        "class": type(error).__name__,
        "message": str(error),
        "path": str(getattr(error, "path", "")),
        "traceback": "".join(traceback.format_exception(error)),
    }
    _write_new(folder / ERROR, described)


def _write_new(path: Path, values: dict[str, Any]) -> None:
    """Write a file whole, unless it is there already."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values), encoding="utf-8")
    with suppress(FileExistsError):
        os.link(partial, path)
    partial.unlink()


def _end_with_parent() -> None:
    """End at once when the pipe ends: the parent closed it, or has ended in whatever way."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    if os.getpgrp() == os.getpid():  # what this process started is in its group
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
