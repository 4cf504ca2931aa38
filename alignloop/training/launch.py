"""Training on several processes: started, watched, and ended from the one process that waits for them.

    run_launched ─► FOLDER/job-00.pickle ─► accelerate launch ─► worker (rank 0) ─► progress.jsonl, result.json
                 ◄─ lines become Progress calls, errors become  └► worker (rank 1)
                    the errors they were                        └► ...

The workers read from a pipe: when this process ends, in whatever way, they end.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignloop import errors
from alignloop.config.training import TrainingConfig
from alignloop.engines.watch import SILENCE_SECONDS, SignsOfLife, descendants, is_stopped, stopped_line
from alignloop.errors import AlignloopError, DiskFullError, TrainingError, UserError
from alignloop.progress import Advance, Progress, QuietProgress
from alignloop.temporary import make_temporary
from alignloop.training.accelerate_file import AccelerateFile, accelerate_file
from alignloop.training.job import TrainJob
from alignloop.training.loop import TrainMetrics
from alignloop.training.rows import TRAINING_REMEDY
from alignloop.training.worker import ERROR, LAUNCH_FOLDER, OUT_OF_MEMORY, PROGRESS, result_file

WORKER = "alignloop.training.worker"
POLL_SECONDS = 0.1
CLOSE_SECONDS = 15.0
TAIL_LINES = 30
LOOK_SECONDS = 1.0


def run_launched(jobs: Sequence[TrainJob], *, training: TrainingConfig, progress: Progress) -> list[TrainMetrics]:
    """Run jobs, one after another, on `training.num_processes` processes.

    Where one of the processes runs out of memory all of them are started again with half the rows per microbatch, from
    the last resume point.

    Raises:
        TrainingError, ModelError, DiskFullError: what a process raised.
        UserError: there are not so many GPUs.
    """
    file = accelerate_file(training)
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < training.num_processes:
        raise UserError(
            f"training.num_processes is {training.num_processes}, but there are {num_gpus} GPUs here: one process a GPU"
        )
    if file.mixed_precision != "no":
        progress.say(f"  {file.path}: mixed_precision {file.mixed_precision} is not used: the stage's dtype decides")
    folder = jobs[0].out_dir.resolve() / LAUNCH_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = _write_jobs(jobs, folder, max_rows=None)
    while not _attempt(folder, files, training, file, progress=progress):
        if (rows := _read(folder / OUT_OF_MEMORY)["rows"] // 2) == 0:
            raise TrainingError(f"out of memory with one row at a time: {TRAINING_REMEDY}")
        progress.say(
            f"  out of memory in one of {training.num_processes} processes: starting them again with {rows} rows per "
            "microbatch"
        )
        for name in (OUT_OF_MEMORY, ERROR):
            (folder / name).unlink(missing_ok=True)
        _write_jobs(jobs, folder, max_rows=rows)
    results = [_read(result_file(path)) for path in files]
    shutil.rmtree(folder)
    return [TrainMetrics(values["metrics"], tuple(values["checkpoint_metrics"])) for values in results]


def _write_jobs(jobs: Sequence[TrainJob], folder: Path, *, max_rows: int | None) -> list[Path]:
    files = []
    for number, job in enumerate(jobs):
        files.append(folder / f"job-{number:02d}.pickle")
        absolute = replace(
            job,
            checkpoint=job.checkpoint.resolve(),
            reference=None if job.reference is None else job.reference.resolve(),
            out_dir=job.out_dir.resolve(),
            progress=QuietProgress(),
            max_rows=max_rows or job.max_rows,
        )
        files[-1].write_bytes(pickle.dumps(absolute))
    return files


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _attempt(
    folder: Path, jobs: Sequence[Path], training: TrainingConfig, file: AccelerateFile, *, progress: Progress
) -> bool:
    """Start the processes and wait until all jobs are done; False where memory ran out in one of them."""
    (folder / PROGRESS).unlink(missing_ok=True)
    log = folder / "log.txt"
    with (
        _launched(_command(folder, training, file), log=log) as child,
        closing(ReadProgress(folder / PROGRESS, progress)) as lines,
    ):
        watch = TrainingWatch(child.pid, say=progress.say)
        while child.poll() is None:
            lines.pass_on()
            watch.look()
            time.sleep(POLL_SECONDS)
        lines.pass_on()
    if (folder / OUT_OF_MEMORY).is_file():
        return False
    if (folder / ERROR).is_file():
        raise raised(_read(folder / ERROR))
    if not all(result_file(path).is_file() for path in jobs):
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        raise TrainingError(
            "a training process ended without a word (the system kills processes when memory runs out). "
            f"The end of {log}:\n" + "\n".join(tail)
        )
    return True


@contextmanager
def _launched(command: Sequence[str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    scratch = make_temporary("training")
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment() | {"TMPDIR": str(scratch.path)},  # the launcher leaves folders when it is killed
                start_new_session=True,  # the terminal's Ctrl-C passes it by: it ends when this process says so
            )
        try:
            yield child
        finally:
            _end(child)
    finally:
        scratch.remove()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what was started; nothing of it is left afterwards."""
    assert child.stdin is not None
    child.stdin.close()  # the workers read the end of the pipe and leave
    for pid in filter(is_stopped, descendants(child.pid)):  # this one cannot, and is in a session of its own
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    if child.poll() is None:
        child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(CLOSE_SECONDS)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _command(folder: Path, training: TrainingConfig, file: AccelerateFile) -> list[str]:
    options = {
        "config_file": file.path.resolve(),
        "num_processes": training.num_processes,
        "num_machines": 1,
        "main_process_port": 0,  # any free one: several runs may share a machine
        "mixed_precision": "no",
        "num_cpu_threads_per_process": max(1, torch.get_num_threads() // training.num_processes),
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, "--module", WORKER, str(folder)]


def _environment() -> dict[str, str]:
    """This process's own, without what another launcher may have left in it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "ACCELERATE_"))}
    fixed = {
        # A `torch.py` or `datasets/` in the user's directory must not be imported instead of the real one.
        "PYTHONSAFEPATH": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if not torch.cuda.is_available():
        fixed["ACCELERATE_USE_CPU"] = "true"
    package_root = str(Path(__file__).resolve().parents[2])
    if package_root != sysconfig.get_paths()["purelib"]:  # a checkout may be on this process's path alone
        fixed["PYTHONPATH"] = os.pathsep.join(filter(None, [inherited.get("PYTHONPATH"), package_root]))
    return {**inherited, **fixed}


def raised(values: dict[str, Any]) -> AlignloopError:
    """The error that a worker wrote down, as it was; a defect keeps its traceback."""
    if values["class"] == DiskFullError.__name__:
        return DiskFullError(Path(values["path"]))
    kind = getattr(errors, values["class"], None)
    if isinstance(kind, type) and issubclass(kind, AlignloopError):
        error = kind.__new__(kind)
        Exception.__init__(error, values["message"])
        return error
    return TrainingError(f"a training process failed:\n{values['traceback']}")


# ---- watched --------------------------------------------------------------------------------------------------------


class TrainingWatch:
    """Reports a process of a launched training that is stopped, and silence of all of them.

    The others wait for it, for hours, as they wait for a process that writes a checkpoint; nothing is ended here. Time
    in which this process itself does not look (it was stopped, too, or the machine slept) does not count.

    Args:
        launcher: its process; it looks at its workers all the time, which is no sign of life.
        said_after: seconds after which `say` gets a line.
    """

    def __init__(self, launcher: int, *, say: Callable[[str], None], said_after: float = SILENCE_SECONDS) -> None:
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


class ReadProgress:
    """Reads what `WrittenProgress` has written so far and calls the same of `progress`.

    Close it: a task that its writer did not end is ended then.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self._offset = 0
        self._tasks: list[tuple[ExitStack, Advance]] = []

    def close(self) -> None:
        while self._tasks:
            self._tasks.pop()[0].close()

    def pass_on(self) -> None:
        """Pass on the lines that are new."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
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
