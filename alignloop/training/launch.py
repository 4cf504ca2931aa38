"""Training on several processes: started, watched, and ended from the one process that waits for them.

    run_launched ─► FOLDER/job-00.pickle ─► accelerate launch ─► worker (rank 0) ─► progress.jsonl, result.json
                 ◄─ lines become Progress calls, errors become  └► worker (rank 1)
                    the errors they were                        └► ...

The workers hold the end of a pipe: when this process is gone, however it went, they end.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignloop import errors
from alignloop.config.training import TrainingConfig
from alignloop.errors import AlignloopError, DiskFullError, TrainingError, UserError
from alignloop.process_state import descendants, is_stopped
from alignloop.progress import Progress, QuietProgress
from alignloop.temporary import make_temporary
from alignloop.training.accelerate_file import AccelerateFile, accelerate_file
from alignloop.training.progress_lines import ReadProgress
from alignloop.training.row_runner import TRAINING_REMEDY
from alignloop.training.run import RunResult
from alignloop.training.setup import TrainJob
from alignloop.training.watch import TrainingWatch
from alignloop.training.worker import ERROR, LAUNCH_FOLDER, OUT_OF_MEMORY, PROGRESS, result_file

WORKER = "alignloop.training.worker"
POLL_SECONDS = 0.1
CLOSE_SECONDS = 15.0
TAIL_LINES = 30


def run_launched(jobs: Sequence[TrainJob], *, training: TrainingConfig, progress: Progress) -> list[RunResult]:
    """Run jobs, one after another, on `training.num_processes` processes.

    Where one of the processes runs out of memory all of them are started again with half the rows per microbatch, from
    the last resume point.

    Raises:
        TrainingError, ModelError, DiskFullError: what a process raised.
        UserError: there are not so many GPUs.
    """
    file = accelerate_file(training)
    _check_devices(training, file, progress=progress)
    folder = jobs[0].out_dir.resolve() / LAUNCH_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = _write_jobs(jobs, folder)
    while not _attempt(folder, paths, training, file, progress=progress):
        rows = _halved(json.loads((folder / OUT_OF_MEMORY).read_text(encoding="utf-8"))["rows"])
        progress.say(
            f"  out of memory in one of {training.num_processes} processes: starting them again with {rows} rows per "
            "microbatch"
        )
        for name in (OUT_OF_MEMORY, ERROR):
            (folder / name).unlink(missing_ok=True)
        _write_jobs([replace(job, max_rows=rows) for job in jobs], folder)
    results = [_result(path) for path in paths]
    shutil.rmtree(folder)
    return results


def _write_jobs(jobs: Sequence[TrainJob], folder: Path) -> list[Path]:
    paths = []
    for number, job in enumerate(jobs):
        path = folder / f"job-{number:02d}.pickle"
        job = replace(
            job,
            checkpoint=job.checkpoint.resolve(),
            reference=None if job.reference is None else job.reference.resolve(),
            out_dir=job.out_dir.resolve(),
            progress=QuietProgress(),
        )
        path.write_bytes(pickle.dumps(job))
        paths.append(path)
    return paths


def _result(job_file: Path) -> RunResult:
    values = json.loads(result_file(job_file).read_text(encoding="utf-8"))
    return RunResult(values["metrics"], tuple(values["checkpoint_metrics"]))


def _halved(rows: int) -> int:
    if rows == 1:
        raise TrainingError(f"out of memory with one row at a time: {TRAINING_REMEDY}")
    return rows // 2


def _check_devices(training: TrainingConfig, file: AccelerateFile, *, progress: Progress) -> None:
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < training.num_processes:
        raise UserError(
            f"training.num_processes is {training.num_processes}, but there are {num_gpus} GPUs here: one process a GPU"
        )
    if file.mixed_precision != "no":
        progress.say(f"  {file.path}: mixed_precision {file.mixed_precision} is not used: the stage's dtype decides")


# ---- one start --------------------------------------------------------------------------------------------------


def _attempt(
    folder: Path, jobs: Sequence[Path], training: TrainingConfig, file: AccelerateFile, *, progress: Progress
) -> bool:
    """Start the processes and wait until all jobs are done; False where memory ran out in one of them."""
    (folder / PROGRESS).unlink(missing_ok=True)
    log = folder / "log.txt"
    with _launched(folder, training, file, log=log) as child, ReadProgress(folder / PROGRESS, progress) as lines:
        watch = TrainingWatch(child.pid, say=progress.say)
        while child.poll() is None:
            lines.pass_on()
            watch.look()
            time.sleep(POLL_SECONDS)
        lines.pass_on()
    if (folder / OUT_OF_MEMORY).is_file():
        return False
    if (folder / ERROR).is_file():
        raise raised(json.loads((folder / ERROR).read_text(encoding="utf-8")))
    if not all(result_file(path).is_file() for path in jobs):
        raise TrainingError(
            f"a training process ended without a word (the system kills processes when memory runs out). {_tail(log)}"
        )
    return True


@contextmanager
def _launched(
    folder: Path, training: TrainingConfig, file: AccelerateFile, *, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    scratch = make_temporary("training")
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                _command(folder, training, file),
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


# ---- what went wrong --------------------------------------------------------------------------------------------


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


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return f"The end of {log}:\n" + "\n".join(lines)
