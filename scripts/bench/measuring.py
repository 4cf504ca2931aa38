"""Every measurement in a process of its own, forked from one server that has the libraries imported already.

TRL breaks an earlier trainer with a second one, and peak memory belongs to a process. Importing takes ten seconds, so
the server does it once; it runs nothing, and so has no threads that a fork would lose.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scripts.bench.training_cases import Measurement, Request

PRELOADED = [
    "torch",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.tensor",
    "datasets",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.sft_trainer",
    "alignloop.training.trainer",
    "alignloop.training.scoring",
]
LOG_LINES = 25


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


class Measurer:
    """Runs measurements one after another.

    Args:
        threads: of torch, in every process.
        work: folder with models and rows; gets `measuring.log`, what the processes print.
    """

    def __init__(self, *, threads: int, work: Path) -> None:
        # The server and all it forks inherit these; torch reads them when it is imported.
        os.environ |= {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
        }
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._log = work / "measuring.log"
        self._work = work

    def prepare(self, *, sizes: Sequence[str], names: Sequence[str], data_dir: Path) -> None:
        """Models and rows into the work folder."""
        self._call(_prepare, self._work, list(sizes), list(names), data_dir)

    def measure(self, request: Request) -> Measurement:
        """Raises BenchError where the process fails."""
        measured = self._call(_measure, request)
        assert isinstance(measured, Measurement)
        return measured

    def _call(self, work: Callable[..., Any], *args: Any) -> Any:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_child, args=(sender, str(self._log), work, args))
        process.start()
        sender.close()
        try:
            succeeded, value = receiver.recv()
        except EOFError:
            process.join()
            succeeded, value = False, f"the process died (exit code {process.exitcode}); out of memory?"
        process.join()
        if not succeeded:
            raise BenchError(f"{_name(work, args)} failed: {value}\n{self._log_tail()}")
        return value

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines)


def _name(work: Callable[..., Any], args: Sequence[Any]) -> str:
    request = args[0]
    if isinstance(request, Request):
        return f"{request.case} ({request.side}, {request.size}, {request.setting.label})"
    return work.__name__.strip("_")


def _in_child(sender: Connection, log: str, work: Callable[..., Any], args: Sequence[Any]) -> None:
    """What the trainers print goes to the log."""
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        # What the server imported stays: walking it cost a third of a second at every collection of garbage.
        gc.freeze()
        try:
            answer = (True, work(*args))
        except Exception as error:
            traceback.print_exc()
            answer = (False, f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
    sender.send(answer)


def _prepare(work: Path, sizes: Sequence[str], names: Sequence[str], data_dir: Path) -> None:
    from scripts.bench.training_data import prepare

    prepare(work, sizes=sizes, names=names, data_dir=data_dir)


def _measure(request: Request) -> Measurement:
    from scripts.bench.training_sides import measure

    return measure(request)
