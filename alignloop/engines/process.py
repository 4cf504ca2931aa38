"""The engine as the rest of alignloop sees it: one child process that lives through a run.

    EngineProcess.generate --EngineCall---> pipe --> worker --> VllmEngine.generate
                           <--CallResult--- pipe <--

vLLM runs inside that one child (no engine process of its own), so there is one process to start, to kill and to
restart, its memory ends with it, and nothing it prints reaches the terminal.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import (
    Completion,
    Engine,
    GenerateRequest,
    Loglikelihood,
    LoglikelihoodRequest,
    check_generate,
    check_loglikelihood,
)
from alignloop.engines.checkpoint import check_servable, text_config
from alignloop.engines.watch import CallWatch, Pace, Stalled, Work, tokens_made
from alignloop.engines.worker import CallResult, EngineCall, MachineShare, Pipe, Verb, child_environment
from alignloop.errors import EngineError, UserError
from alignloop.temporary import make_temporary

_BOOT = "import sys; sys.path.append(sys.argv[1]); from alignloop.engines.worker import main; main()"
"""Run with `-P`: a `torch.py` or `datasets/` in the user's directory must not be imported instead of the real one."""
_LEAVE_SECONDS = 0.5
_CLOSE_SECONDS = 10.0
_TAIL_LINES = 30


class EngineDied(Exception):
    """The child ended without answering, or was given up. Caught in here: the call is repeated on a new child."""


class EngineProcess(Engine):
    """An `Engine` in a process of its own; starts at the first `load_weights`.

    The child's output is appended to `log_file`; `say` gets one line for each start, and where the child falls silent.
    A `share` of None is the whole machine.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        log_file: Path,
        say: Callable[[str], None] = lambda line: None,
        share: MachineShare | None = None,
    ) -> None:
        self._config = config
        self._log_file = log_file
        self._say = say
        self._share = share
        self._interrupted = False
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self._watch: CallWatch | None = None
        self._pace = Pace(config)
        self._load = Work()
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
            self._load = Work.of_weights(checkpoint)
        self._checkpoint = None  # a failed load leaves nothing served
        self._repeat(EngineCall("load_weights", (checkpoint,)), self._load)
        self._checkpoint, self._vocab_size = checkpoint, vocab_size

    def check_generate(self, requests: Sequence[GenerateRequest]) -> None:
        """Refuse what `generate` would refuse, before it starts on any."""
        check_generate(requests, max_model_len=self._config.max_model_len, vocab_size=self._vocab_size)

    def check_loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> None:
        check_loglikelihood(requests, max_model_len=self._config.max_model_len, vocab_size=self._vocab_size)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        self.check_generate(requests)
        if not requests:
            return []
        started = time.monotonic()
        result: list[list[Completion]] = self._ask("generate", list(requests), work=Work.of_generate(requests))
        made = tokens_made(requests, result)
        self._pace.took("generate", seconds=time.monotonic() - started, tokens=made)
        return result

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self.check_loglikelihood(requests)
        if not requests:
            return []
        work, started = Work.of_loglikelihood(requests), time.monotonic()
        result: list[Loglikelihood] = self._ask("loglikelihood", list(requests), work=work)
        self._pace.took("loglikelihood", seconds=time.monotonic() - started, tokens=work.tokens)
        return result

    def sleep(self) -> None:
        if self._child is not None and self._checkpoint is not None:
            self._ask("sleep", work=self._load)

    def wake(self) -> None:
        if self._checkpoint is not None:
            self._ask("wake", work=self._load)

    def close(self) -> None:
        """Ask the child to end, then kill it; waits until it is gone."""
        self._end_child(patience=_CLOSE_SECONDS)  # it reads the end of the pipe and leaves

    def interrupt(self) -> None:
        """From another thread: make the call under way fail, by killing the child; `resume` allows calls again."""
        self._interrupted = True
        child = self._child
        if child is not None and child.returncode is None:
            _kill_group(child)

    def resume(self) -> None:
        """After `interrupt`, when the call it was meant for has failed."""
        self._interrupted = False

    def _ask(self, verb: Verb, *arguments: Any, work: Work) -> Any:
        if self._checkpoint is None:
            raise EngineError(f"{verb}: the engine serves no model: call load_weights first")
        return self._repeat(EngineCall(verb, arguments), work)

    def _repeat(self, call: EngineCall, work: Work) -> Any:
        """Make a call, on a new child where the last one died, as often as `engine.max_restarts` allows."""
        while True:
            try:
                if self._child is None:
                    self._start()
                    if call.verb != "load_weights":  # what was served before
                        self._make(EngineCall("load_weights", (self._checkpoint,)), self._load)
                return self._make(call, work)
            except EngineDied as death:
                if self._interrupted:
                    raise EngineError(f"{call.verb}: interrupted") from death
                self._num_deaths += 1
                if self._num_deaths > self._config.max_restarts:
                    raise EngineError(
                        f"the engine died {self._num_deaths} times in this run (engine.max_restarts: "
                        f"{self._config.max_restarts}), last in {call.verb}: {death}. {self._log_tail()}"
                    ) from death

    def _make(self, call: EngineCall, work: Work) -> Any:
        """What a call gives; where the checkpoint is of another architecture, on a new child."""
        result = self._exchange(call, work)
        if result.kind == "done":
            return result.value
        if result.kind == "refused":
            raise EngineError(result.value)
        self.close()
        if result.kind == "unusable":
            raise UserError(result.value)
        if result.kind == "broken":
            raise EngineError(f"{call.verb} failed in the engine: {result.value}\n(the engine's log: {self._log_file})")
        self._say("engine: the checkpoint is of another architecture than the one served; starting anew")
        self._start()
        return self._make(call, work)

    def _exchange(self, call: EngineCall, work: Work) -> CallResult:
        """EngineDied where the child is gone or was given up; it has been put away then."""
        assert self._child is not None
        assert self._pipe is not None
        self._watch = CallWatch(
            call.verb,
            pid=self._child.pid,
            limit=self._pace.limit(call.verb, work),
            stall_seconds=self._config.stall_seconds,
            say=self._say,
        )
        try:
            self._pipe.send(call)
            result: CallResult = self._pipe.receive()
            return result
        except (EOFError, OSError) as error:
            code = self._end_child(patience=_LEAVE_SECONDS)
            how = (
                f"killed by signal {-code} (9 is often the system out of memory)" if code < 0 else f"exit status {code}"
            )
            raise EngineDied(how) from error
        except Stalled as stall:
            self._end_child()
            self._say(f"engine: {call.verb}: given up: {stall}")
            raise EngineDied(str(stall)) from stall
        except BaseException:
            # Interrupted half-way (Ctrl-C): the result still to come would be taken for that of the next call.
            self._end_child()
            raise

    def _look(self) -> bool:
        """While the child is silent: whether it has ended. Raises Stalled where it has to be given up."""
        assert self._child is not None
        assert self._watch is not None
        if _has_ended(self._child):
            return True
        self._watch.look()
        return False

    def _end_child(self, *, patience: float = 0.0) -> int:
        """Close the pipe, wait up to `patience` seconds for the child, then kill its group; its exit status."""
        child = self._child
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if child is not None:
            deadline = time.monotonic() + patience
            try:
                while not _has_ended(child) and time.monotonic() < deadline:
                    time.sleep(0.02)
            finally:
                _kill_group(child)  # before the child is reaped, so that its id cannot have passed to another group
                self._child = None
                child.wait()
        self._remove_scratch()
        return 0 if child is None else child.returncode

    def _start(self) -> None:
        self._num_starts += 1
        line = f"engine: start {self._num_starts} ({self._config.name}), log in {self._log_file}"
        self._say(line)
        ours, childs = socket.socketpair()
        package_root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-P", "-c", _BOOT, str(package_root), str(childs.fileno()), str(os.getpid())]
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        scratch = make_temporary("engine")
        self._remove_scratch = weakref.finalize(self, scratch.remove)  # at exit, too
        with childs, self._log_file.open("ab") as log:
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
            log.flush()
            self._child = subprocess.Popen(
                [*command, self._config.model_dump_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(self._config, share=self._share, scratch=scratch.path),
                pass_fds=(childs.fileno(),),
                start_new_session=True,  # a group of its own: the terminal's Ctrl-C passes it by, and close takes all
            )
            self._pipe = Pipe(ours, ends=self._look)

    def _log_tail(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return f"The end of {self._log_file}:\n" + "\n".join(lines)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended, without reaping it."""
    if child.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
