"""Engines side by side on one machine, behind the protocol of one: `engine.data_parallel`.

    requests --dealt in turn--> EngineProcess 0 .. N-1, at the same time --> results in the order asked

Each has its own weights, KV cache (`engine.kv_cache_gb` each), share of the machine and log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, Engine, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.process import EngineProcess
from alignloop.engines.worker import MachineShare

R = TypeVar("R")
S = TypeVar("S")
_RECHECK_SECONDS = 0.1


class EnginePool(Engine):
    """An `Engine` made of several; one that dies is started again alone, up to `engine.max_restarts` times each.

    On a CPU what a seeded request gives does not depend on the number of engines, byte for byte. On a GPU kernels
    depend on the batch, and the number of engines decides which requests are in one: it holds there as far as vLLM is
    deterministic on one kind of GPU, and wholly with `VLLM_BATCH_INVARIANT=1` where vLLM has it (in beta; NVIDIA GPUs
    of compute capability 8.0 and newer). A request without a seed draws from the stream of the engine it is dealt to.

    `shares` has one for each engine. Engine i logs to `<stem>-<i><suffix>` beside `log_file`; `say` gets a line a
    start.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        shares: Sequence[MachineShare],
        log_file: Path,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        logs = [log_file.with_name(f"{log_file.stem}-{index}{log_file.suffix}") for index in range(len(shares))]
        self.engines = tuple(
            EngineProcess(config, log_file=log, say=say, share=share) for log, share in zip(logs, shares, strict=True)
        )

    @property
    def num_starts(self) -> int:
        """Starts of all engines together: their number, unless one died."""
        return sum(engine.num_starts for engine in self.engines)

    def load_weights(self, checkpoint: Path) -> None:
        """Every engine serves `checkpoint`, each seen by its own canary."""
        self._all(lambda engine: engine.load_weights(checkpoint))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        self.engines[0].check_generate(requests)
        return self._dealt(requests, EngineProcess.generate)

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self.engines[0].check_loglikelihood(requests)
        return self._dealt(requests, EngineProcess.loglikelihood)

    def sleep(self) -> None:
        self._all(EngineProcess.sleep)

    def wake(self) -> None:
        self._all(EngineProcess.wake)

    def close(self) -> None:
        self._all(EngineProcess.close)

    def _dealt(self, requests: Sequence[R], ask: Callable[[EngineProcess, Sequence[R]], list[S]]) -> list[S]:
        """Request i goes to engine i mod N: long and short ones that lie together in a file are spread."""
        num = len(self.engines)
        answers = self._together(ask, [requests[index::num] for index in range(num)])
        return [answers[index % num][index // num] for index in range(len(requests))]

    def _all(self, do: Callable[[EngineProcess], None]) -> None:
        self._together(lambda engine, _: do(engine), [None] * len(self.engines))

    def _together(self, ask: Callable[[EngineProcess, R], S], parts: Sequence[R]) -> list[S]:
        """One thread an engine; an error is raised when all have ended, so that no engine is left half-way."""
        with ThreadPoolExecutor(max_workers=len(self.engines), thread_name_prefix="engine") as threads:
            futures = [threads.submit(ask, engine, part) for engine, part in zip(self.engines, parts, strict=True)]
            try:
                wait(futures)
            except BaseException:  # Ctrl-C
                self._stop(futures)
                raise
            return [future.result() for future in futures]

    def _stop(self, futures: Sequence[Future[S]]) -> None:
        """End what the engines are at: one that was interrupted half-way is put away and starts anew when used."""
        unfinished = list(futures)
        while unfinished:
            for engine, future in zip(self.engines, futures, strict=True):
                if not future.done():
                    engine.interrupt()
            unfinished = [future for future in futures if not future.done()]
            wait(unfinished, timeout=_RECHECK_SECONDS)
        for engine in self.engines:
            engine.resume()
