"""The engine's process: its environment, the pipe it is asked through, and its own side, which ends with its parent.

Started by `alignloop.engines.process`; never by hand.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import ModelRunner
from alignloop.engines.watch import LOOK_SECONDS
from alignloop.errors import AlignloopError, UserError
from alignloop.temporary import remove_with_lock

Verb = Literal["load_weights", "generate", "loglikelihood", "sleep", "wake"]

SCRATCH = "ALIGNLOOP_ENGINE_SCRATCH"
"""Environment variable that names the process's own temporary folder, which goes when it ends: vLLM leaves files."""
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_PARENT_CHECK_SECONDS = 0.5
_LENGTH = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class EngineCall:
    verb: Verb
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CallResult:
    """What came of a call.

    `refused`: an error of ours, the engine lives on. `unusable`: the recipe or the checkpoint cannot be served here,
    which the user can put right. `broken`: something unforeseen. `other_architecture`: the checkpoint needs a process
    of its own. After the last three the process ends.
    """

    kind: Literal["done", "refused", "unusable", "broken", "other_architecture"]
    value: Any = None


@dataclass(frozen=True)
class MachineShare:
    num_threads: int
    """Of OpenMP."""
    devices: tuple[str, ...] | None = None
    """Names of its GPUs as CUDA_VISIBLE_DEVICES has them; None: all that are visible."""


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment(
    config: EngineConfig, *, share: MachineShare | None = None, scratch: Path | None = None
) -> dict[str, str]:
    """What must be set before torch and vLLM are imported in the engine's process. A `share` of None is all of the
    machine; `scratch` is the process's own temporary folder, which it removes when it ends; None leaves it the usual
    one."""
    share = share or MachineShare(num_cores())
    defaults = {
        # vLLM keeps one core back and pins to physical cores by default; on a small machine that leaves one of two.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(share.num_threads),
        # A swap takes fresh memory for all weights: in pages of 4 KiB, getting it is half of a swap's time on a CPU.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    fixed = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on a shared machine cost a factor of ten
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # a checkpoint is a local directory; nothing is to be looked up
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if config.enforce_eager:
        # vLLM compiles its logprob gathering even then, which wants a C++ compiler and a path without spaces.
        fixed["TORCHDYNAMO_DISABLE"] = "1"
    else:  # a cache is not for the scratch folder
        defaults["TORCHINDUCTOR_CACHE_DIR"] = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    if scratch is not None:
        fixed |= {"TMPDIR": str(scratch), SCRATCH: str(scratch)}
    if share.devices is not None:
        fixed[VISIBLE_DEVICES] = ",".join(share.devices)
    ours = {**defaults, **os.environ, **fixed}
    ours.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would go before `engine.kv_cache_gb`
    return ours


class Pipe:
    """One end of a socket pair between the two processes; what comes in is unpickled.

    A message is its length and its pickle. `multiprocessing.Connection` would wait without end in the middle of a
    message: for room to write to a process that has stopped reading, or for the rest of what one that stopped has begun
    to write. `ends` is called every `LOOK_SECONDS` in which nothing moves and tells whether the other side has ended.
    What it raises comes out of `send` or `receive`, which raise EOFError or OSError where the other side is gone.
    """

    def __init__(self, end: socket.socket, *, ends: Callable[[], bool] = lambda: False) -> None:
        self._end = end
        self._ends = ends
        end.setblocking(False)

    def send(self, value: object) -> None:
        content = pickle.dumps(value)
        for part in (_LENGTH.pack(len(content)), content):
            left = memoryview(part)
            while left:
                self._wait(selectors.EVENT_WRITE)
                with suppress(BlockingIOError):
                    left = left[self._end.send(left) :]

    def receive(self) -> Any:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def close(self) -> None:
        self._end.close()

    def _read(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            self._wait(selectors.EVENT_READ)
            chunk = self._end.recv(min(_CHUNK_BYTES, length - len(content)))
            if not chunk:
                raise EOFError
            content += chunk
        return bytes(content)

    def _wait(self, event: int) -> None:
        while not self._is_ready(event, seconds=LOOK_SECONDS):
            # What the other side wrote before it ended is still there to be read.
            if self._ends() and not self._is_ready(event, seconds=0):
                raise EOFError

    def _is_ready(self, event: int, *, seconds: float) -> bool:
        with selectors.DefaultSelector() as selector:  # select() itself knows no descriptor above 1,023
            selector.register(self._end, event)
            return bool(selector.select(seconds))


def main() -> None:
    """`argv`: file descriptor of the pipe, the parent's process id, the engine's config as JSON."""
    descriptor, parent, config_json = int(sys.argv[-3]), int(sys.argv[-2]), sys.argv[-1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide on
    os.set_inheritable(descriptor, False)  # or processes vLLM starts would keep the pipe open after this one
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    _serve(Pipe(socket.socket(fileno=descriptor)), _runner(EngineConfig.model_validate_json(config_json)))
    sys.stdout.flush()
    sys.stderr.flush()
    _remove_scratch()
    os._exit(0)  # torch's and vLLM's exit handlers have nothing to save and can hang


def _serve(pipe: Pipe, runner: ModelRunner) -> None:
    with suppress(EOFError, OSError):
        while True:
            result = _answer(runner, pipe.receive())
            pipe.send(result)
            if result.kind in ("broken", "unusable"):
                return


def _answer(runner: ModelRunner, call: EngineCall) -> CallResult:
    """Run one call. Tracebacks go to the log, messages to the parent."""
    from alignloop.engines.vllm_engine import OtherArchitecture

    try:
        return CallResult("done", getattr(runner, call.verb)(*call.arguments))
    except OtherArchitecture:
        return CallResult("other_architecture")
    except UserError as error:
        traceback.print_exc()
        return CallResult("unusable", str(error))
    except AlignloopError as error:
        # A failed load leaves unknown weights behind; anything else was refused before it began.
        return CallResult("broken" if call.verb in ("load_weights", "wake") else "refused", str(error))
    except Exception as error:
        traceback.print_exc()
        return CallResult("broken", f"{type(error).__name__}: {error}")


def _runner(config: EngineConfig) -> ModelRunner:
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
