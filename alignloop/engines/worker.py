"""The engine process's own side: reads calls from a private pipe, answers, and ends when its parent does.

Started by `alignloop.engines.process`; never by hand.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.pipe import Pipe
from alignloop.errors import AlignloopError, UserError
from alignloop.temporary import remove_with_lock

Verb = Literal["load_weights", "generate", "loglikelihood", "sleep", "wake"]

SCRATCH = "ALIGNLOOP_ENGINE_SCRATCH"
"""Environment variable that names the process's own temporary folder, which goes when it ends: vLLM leaves files."""
_PARENT_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Call:
    """One verb of the engine protocol."""

    verb: Verb
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    `refused`: an error of ours, the engine lives on. `unusable`: the recipe or the checkpoint cannot be served here,
    which the user can put right. `broken`: something unforeseen. `other_architecture`: the checkpoint needs a process
    of its own. After the last three the process ends.
    """

    kind: Literal["done", "refused", "unusable", "broken", "other_architecture"]
    value: Any = None


class HostedEngine(Protocol):
    """What runs in here: the verbs of `Engine` without its lifetime."""

    def load_weights(self, checkpoint: Path) -> None: ...

    def generate(self, requests: list[GenerateRequest]) -> list[list[Completion]]: ...

    def loglikelihood(self, requests: list[LoglikelihoodRequest]) -> list[Loglikelihood]: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


def main() -> None:
    """`argv`: file descriptor of the pipe, the parent's process id, the engine's config as JSON."""
    descriptor, parent, config_json = int(sys.argv[-3]), int(sys.argv[-2]), sys.argv[-1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide on
    os.set_inheritable(descriptor, False)  # or processes vLLM starts would keep the pipe open after this one
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    serve(Pipe(socket.socket(fileno=descriptor)), _hosted(EngineConfig.model_validate_json(config_json)))
    sys.stdout.flush()
    sys.stderr.flush()
    _remove_scratch()
    os._exit(0)  # torch's and vLLM's exit handlers have nothing to save and can hang


def serve(pipe: Pipe, engine: HostedEngine) -> None:
    """Answer calls until the parent closes the pipe or the engine is broken."""
    while True:
        try:
            call: Call = pipe.receive()
        except (EOFError, OSError):
            return
        reply = answer(engine, call)
        try:
            pipe.send(reply)
        except OSError:
            return
        if reply.kind in ("broken", "unusable"):
            return


def answer(engine: HostedEngine, call: Call) -> Reply:
    """Run one call. Tracebacks go to the log, messages to the parent."""
    from alignloop.engines.vllm_engine import OtherArchitecture

    try:
        return Reply("done", getattr(engine, call.verb)(*call.arguments))
    except OtherArchitecture:
        return Reply("other_architecture")
    except UserError as error:
        traceback.print_exc()
        return Reply("unusable", str(error))
    except AlignloopError as error:
        # A failed load leaves unknown weights behind; anything else was refused before it began.
        return Reply("broken" if call.verb in ("load_weights", "wake") else "refused", str(error))
    except Exception as error:
        traceback.print_exc()
        return Reply("broken", f"{type(error).__name__}: {error}")


def _hosted(config: EngineConfig) -> HostedEngine:
    if config.name == "vllm":
        from alignloop.engines.vllm_engine import VllmEngine

        return VllmEngine(config)
    from alignloop.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config)


def _end_with_parent(parent: int) -> None:
    """End at once when the parent is gone, however it went.

    The parent's id is watched, rather than the pipe alone: a long generate does not read the pipe, and other
    children of the parent may hold a copy of its end. PR_SET_PDEATHSIG would fire when the *thread* that
    started this process ends.
    """
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    _remove_scratch()
    if os.getpgrp() == os.getpid():  # the processes vLLM started for other accelerators are in this group
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _remove_scratch() -> None:
    """Where the parent is gone nobody else does."""
    if folder := os.environ.get(SCRATCH):
        remove_with_lock(Path(folder))
