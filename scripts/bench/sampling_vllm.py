"""vLLM itself, without alignloop's engine process around it: in processes that the benchmark starts and ends.

RawVllm      an `LLM` with the settings of alignloop's engine: what the sample stage is held against
DefaultVllm  an `LLM` as vLLM starts it by default: what the warm engine is held against
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alignloop.config.engine import EngineConfig
from alignloop.engines import vllm_engine
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import eos_token_ids
from alignloop.engines.vllm_scoring import loglikelihoods
from scripts.bench.measuring import BenchError

_BOOT = "import sys; sys.path.append(sys.argv[1]); from scripts.bench.sampling_vllm import main; main()"
LOG_LINES = 25
CLOSE_SECONDS = 20.0
Completions = list[list[tuple[int, ...]]]
"""Token ids of each request's candidates."""


class RawVllm:
    """The engine's own arguments and sampling parameters, and nothing of the engine around them: vLLM's scheduler."""

    def __init__(self, config: EngineConfig, checkpoint: Path) -> None:
        from vllm import LLM

        arguments = vllm_engine.llm_arguments(config, checkpoint)
        arguments.pop("scheduler_cls", None)
        self._llm = LLM(**arguments)
        self._eos = eos_token_ids(checkpoint)

    def generate(self, requests: Sequence[GenerateRequest]) -> tuple[float, Completions]:
        """Seconds of one `LLM.generate` call over all requests, and what came of it."""
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        params = [vllm_engine._sampling_params(request, eos=self._eos) for request in requests]
        self._llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return seconds, [
            [tuple(one.token_ids) for one in sorted(output.outputs, key=lambda one: one.index)] for output in outputs
        ]

    def swap(self, checkpoint: Path) -> float:
        """Seconds of a swap by the engine's worker extension, without its canary."""
        started = time.perf_counter()
        self._llm.collective_rpc("swap_weights", args=(str(checkpoint),))
        self._llm.reset_prefix_cache()
        return time.perf_counter() - started

    def end(self) -> None:
        """It lives in this process alone."""


class DefaultVllm:
    """`LLM(checkpoint)`: an engine process of vLLM's own, compiled, with vLLM's choice of threads and blocks.

    Given are only the recipe's dtype, what seeded requests need on a CPU (no prefill is split), and the recipe's size
    of the KV cache: vLLM takes nine tenths of all memory by default, and does not start where that is not free.
    Requests become parameters, and outputs answers, as in alignloop's engine; there is no canary.
    """

    def __init__(self, config: EngineConfig, checkpoint: Path) -> None:
        from vllm import LLM

        self._llm = LLM(
            str(checkpoint),
            dtype=config.dtype,
            enable_chunked_prefill=False,
            max_num_batched_tokens=8192,
            kv_cache_memory_bytes=int(config.kv_cache_gb * 2**30),
        )
        self._eos = eos_token_ids(checkpoint)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        params = [vllm_engine._sampling_params(request, eos=self._eos) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [vllm_engine._completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        return loglikelihoods(self._llm, requests)

    def end(self) -> None:
        """End vLLM's engine process."""
        self._llm.llm_engine.engine_core.shutdown()


class VllmProcess:
    """One of the classes above in a process of its own; a context manager.

    Args:
        build: called in the process with `arguments`; its methods are what `call` reaches, its `end` is called last.
        environment: of the process, in whole.
        log: everything the process prints is appended to it.

    Raises:
        BenchError: it does not start.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any, environment: Mapping[str, str], log: Path) -> None:
        ours, childs = socket.socketpair()
        command = [sys.executable, "-P", "-c", _BOOT, str(Path(__file__).resolve().parents[2]), str(childs.fileno())]
        with ours, childs, log.open("ab") as file:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environment),
                pass_fds=(childs.fileno(),),
                start_new_session=True,  # a group of its own: ending it takes vLLM's processes with it
            )
            self._pipe = Connection(ours.detach())
        self._log = log
        self._send("start", (build, arguments))

    def call(self, verb: str, *arguments: Any) -> Any:
        """What the method returned.

        Raises:
            BenchError: it raised, or the process died.
        """
        return self._send(verb, arguments)

    def close(self) -> None:
        """End it and every process that vLLM started for it. Idempotent."""
        self._pipe.close()
        try:
            self._child.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def __enter__(self) -> VllmProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, verb: str, content: Any) -> Any:
        try:
            self._pipe.send((verb, content))
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError):
            succeeded, value = False, "the process died; out of memory?"
        except BaseException:
            self.close()  # interrupted: the answer still to come would be taken for that of the next call
            raise
        if not succeeded:
            self.close()
            tail = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise BenchError(f"vLLM, {verb}: {value}\n" + "\n".join(f"    {line}" for line in tail))
        return value


def main() -> None:
    """The process: builds what it is told to, then answers calls until the other end of the pipe is closed."""
    descriptor = int(sys.argv[-1])
    os.set_inheritable(descriptor, False)  # or vLLM's own processes would keep the pipe open
    pipe = Connection(descriptor)
    hosted: Any = None
    while True:
        try:
            verb, content = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            if verb == "start":
                build, arguments = content
                hosted, value = build(*arguments), None
            else:
                value = getattr(hosted, verb)(*content)
            answer = (True, value)
        except Exception as error:
            traceback.print_exc()
            answer = (False, f"{type(error).__name__}: {error}")
        with suppress(OSError):
            pipe.send(answer)
    if hosted is not None:
        hosted.end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # exit handlers of torch and vLLM can hang, and nothing is left to save
