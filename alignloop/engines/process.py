"""The engine as the rest of alignloop sees it: one child process that lives through a run.

    EngineProcess.generate --Call--> pipe --> worker.serve --> VllmEngine.generate
                           <-Reply-- pipe <--

vLLM runs inside that one child (no engine process of its own), so there is one process to start, to kill and to
restart, its memory ends with it, and nothing it prints reaches the terminal.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignloop.config.engine import EngineConfig
from alignloop.engines.admission import check_generate, check_loglikelihood
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import check_servable, text_config
from alignloop.engines.placement import EnginePlace, num_cores
from alignloop.engines.worker import SCRATCH, Call, Reply, Verb
from alignloop.errors import EngineError, UserError

_BOOT = "import sys; sys.path.append(sys.argv[1]); from alignloop.engines.worker import main; main()"
"""Run with `-P`: a `torch.py` or `datasets/` in the user's directory must not be imported instead of the real one."""
_ALIVE_CHECK_SECONDS = 0.5
_CLOSE_SECONDS = 10.0
_TAIL_LINES = 30


class EngineDied(Exception):
    """The child ended without answering. Caught in here: the call is repeated on a new child."""


class EngineProcess:
    """An `Engine` in a process of its own; starts at the first `load_weights`.

    Args:
        config: which engine and how.
        log_file: everything the child prints is appended to it.
        say: gets one line for each start.
        place: its share of the machine; None is all of it.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        log_file: Path,
        say: Callable[[str], None] = lambda line: None,
        place: EnginePlace | None = None,
    ) -> None:
        self._config = config
        self._log_file = log_file
        self._say = say
        self._place = place or EnginePlace(num_cores())
        self._interrupted = False
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._remove_scratch: Callable[[], object] = lambda: None
        self._checkpoint: Path | None = None
        self._vocab_size: int | None = None
        self._num_starts = 0
        self._num_deaths = 0

    @property
    def num_starts(self) -> int:
        return self._num_starts

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def load_weights(self, checkpoint: Path) -> None:
        checkpoint = checkpoint.resolve()
        vocab_size = self._vocab_size
        if checkpoint != self._checkpoint:  # a large tokenizer takes a second to read, and stages load every shard
            check_servable(checkpoint, self._config)
            vocab_size = text_config(checkpoint).get("vocab_size")
        self._checkpoint = None  # a failed load leaves nothing served
        self._repeat(Call("load_weights", (checkpoint,)))
        self._checkpoint, self._vocab_size = checkpoint, vocab_size

    def check_generate(self, requests: Sequence[GenerateRequest]) -> None:
        """Refuse what `generate` would refuse before it starts on any.

        Raises:
            EngineError: names the first bad request.
        """
        check_generate(requests, max_model_len=self._config.max_model_len, vocab_size=self._vocab_size)

    def check_loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> None:
        """The same for `loglikelihood`."""
        check_loglikelihood(requests, max_model_len=self._config.max_model_len, vocab_size=self._vocab_size)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        self.check_generate(requests)
        result: list[list[Completion]] = self._ask("generate", list(requests)) if requests else []
        return result

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self.check_loglikelihood(requests)
        result: list[Loglikelihood] = self._ask("loglikelihood", list(requests)) if requests else []
        return result

    def sleep(self) -> None:
        if self._child is not None and self._checkpoint is not None:
            self._ask("sleep")

    def wake(self) -> None:
        if self._checkpoint is not None:
            self._ask("wake")

    def close(self) -> None:
        """End the child: asked first, then made to; waits until it is gone."""
        if self._pipe is not None:
            self._pipe.close()  # the child reads the end of the pipe and leaves
            self._pipe = None
        if self._child is not None:
            _end(self._child, patience=_CLOSE_SECONDS)
            self._child = None
        self._remove_scratch()

    def interrupt(self) -> None:
        """From another thread: make the call under way fail, by killing the child; `resume` allows calls again."""
        self._interrupted = True
        child = self._child
        if child is not None and child.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def resume(self) -> None:
        """After `interrupt`, when the call it was meant for has failed."""
        self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, verb: Verb, *arguments: Any) -> Any:
        if self._checkpoint is None:
            raise EngineError(f"{verb}: the engine serves no model: call load_weights first")
        return self._repeat(Call(verb, arguments))

    def _repeat(self, call: Call) -> Any:
        """Make a call, on a new child where the last one died, as often as `engine.max_restarts` allows."""
        while True:
            try:
                self._ensure_serving(call)
                return self._value(call, self._exchange(call))
            except EngineDied as death:
                if self._interrupted:
                    raise EngineError(f"{call.verb}: interrupted") from death
                self._num_deaths += 1
                if self._num_deaths > self._config.max_restarts:
                    raise EngineError(
                        f"the engine died {self._num_deaths} times in this run (engine.max_restarts: "
                        f"{self._config.max_restarts}), last in {call.verb}: {death}. {self._log_tail()}"
                    ) from death

    def _ensure_serving(self, call: Call) -> None:
        """Start a child where there is none, and have it serve what was served before."""
        if self._child is not None:
            return
        self._start()
        if call.verb != "load_weights":
            reload = Call("load_weights", (self._checkpoint,))
            self._value(reload, self._exchange(reload))

    def _value(self, call: Call, reply: Reply) -> Any:
        if reply.kind == "done":
            return reply.value
        if reply.kind == "refused":
            raise EngineError(reply.value)
        self.close()
        if reply.kind == "unusable":
            raise UserError(reply.value)
        if reply.kind == "broken":
            raise EngineError(f"{call.verb} failed in the engine: {reply.value}\n(the engine's log: {self._log_file})")
        self._say("engine: the checkpoint is of another architecture than the one served; starting anew")
        self._start()
        return self._value(call, self._exchange(call))

    def _exchange(self, call: Call) -> Reply:
        """Send a call and wait for its reply.

        Raises:
            EngineDied: the child is gone. It has been put away.
        """
        assert self._child is not None
        assert self._pipe is not None
        try:
            self._pipe.send(call)
            while not self._pipe.poll(_ALIVE_CHECK_SECONDS):
                if _has_ended(self._child) and not self._pipe.poll():
                    raise EOFError
            reply: Reply = self._pipe.recv()
            return reply
        except (EOFError, OSError) as error:
            raise EngineDied(self._put_away(patience=_ALIVE_CHECK_SECONDS)) from error
        except BaseException:
            # Interrupted half-way (Ctrl-C): the reply still to come would be taken for that of the next call.
            self._put_away(patience=0.0)
            raise

    def _put_away(self, *, patience: float) -> str:
        """Forget a child that cannot be used any more; how it ended, in words."""
        assert self._child is not None
        child = self._child
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = self._child = None
        _end(child, patience=patience)
        self._remove_scratch()
        code = child.returncode
        return f"killed by signal {-code} (9 is often the system out of memory)" if code < 0 else f"exit status {code}"

    def _start(self) -> None:
        self._num_starts += 1
        line = f"engine: start {self._num_starts} ({self._config.name}), log in {self._log_file}"
        self._say(line)
        ours, childs = socket.socketpair()
        package_root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-P", "-c", _BOOT, str(package_root), str(childs.fileno()), str(os.getpid())]
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="alignloop-engine-"))
        self._remove_scratch = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)  # at exit, too
        with ours, childs, self._log_file.open("ab") as log:
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
            log.flush()
            self._child = subprocess.Popen(
                [*command, self._config.model_dump_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(self._config, place=self._place, scratch=scratch),
                pass_fds=(childs.fileno(),),
                start_new_session=True,  # a group of its own: the terminal's Ctrl-C passes it by, and close takes all
            )
            self._pipe = Connection(ours.detach())

    def _log_tail(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return f"The end of {self._log_file}:\n" + "\n".join(lines)


def child_environment(
    config: EngineConfig, *, place: EnginePlace | None = None, scratch: Path | None = None
) -> dict[str, str]:
    """The child's environment: what must be set before torch and vLLM are imported.

    Args:
        place: its share of the machine; None is all of it.
        scratch: its own temporary folder, which it removes when it ends; None leaves it the usual one.
    """
    place = place or EnginePlace(num_cores())
    defaults = {
        # vLLM keeps one core back and pins to physical cores by default; on a small machine that leaves one of two.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(place.num_threads),
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
    ours = {**defaults, **os.environ, **fixed, **place.environment()}
    ours.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would go before `engine.kv_cache_gb`
    return ours


def _end(child: subprocess.Popen[bytes], *, patience: float) -> None:
    """Wait up to `patience` seconds for the child, then kill it and every process in its group."""
    deadline = time.monotonic() + patience
    while not _has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    with suppress(ProcessLookupError, PermissionError):
        # Before the child is reaped, so that its id cannot have passed to somebody else's group.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended, without reaping it."""
    if child.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
