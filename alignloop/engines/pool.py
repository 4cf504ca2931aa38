"""Engines side by side on one machine, behind the protocol of one: `engine.data_parallel`.

    requests --dealt in turn--> EngineProcess 0 .. N-1, at the same time --> results in the order asked

Each has its own weights, KV cache (`engine.kv_cache_gb` each), share of the machine and log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.placement import EnginePlace
from alignloop.engines.process import EngineProcess

R = TypeVar("R")
S = TypeVar("S")
_RECHECK_SECONDS = 0.1


class EnginePool:
    """An `Engine` made of several; one that dies is started again alone, up to `engine.max_restarts` times each.

    On a CPU what a seeded request gives does not depend on the number of engines, byte for byte. On a GPU kernels
    depend on the batch, and the number of engines decides which requests are in one: it holds there as far as vLLM is
    deterministic on one kind of GPU, and wholly with `VLLM_BATCH_INVARIANT=1` where vLLM has it (in beta; NVIDIA GPUs
    of compute capability 8.0 and newer). A request without a seed draws from the stream of the engine it is dealt to.

    Args:
        config: of every engine.
        placed: one engine for each place.
        log_file: engine i writes to `<stem>-<i><suffix>` beside it.
        say: gets one line for each start.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        placed: Sequence[EnginePlace],
        log_file: Path,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._engines = tuple(
            EngineProcess(
                config,
                log_file=log_file.with_name(f"{log_file.stem}-{index}{log_file.suffix}"),
                say=say,
                place=place,
            )
            for index, place in enumerate(placed)
        )

    @property
    def num_starts(self) -> int:
        """Starts of all engines together: their number, unless one died."""
        return sum(engine.num_starts for engine in self._engines)

    @property
    def engines(self) -> tuple[EngineProcess, ...]:
        return self._engines

    def load_weights(self, checkpoint: Path) -> None:
        """Every engine serves `checkpoint`, each seen by its own canary."""
        self._all(lambda engine: engine.load_weights(checkpoint))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        self._engines[0].check_generate(requests)
        return self._dealt(requests, lambda engine, hand: engine.generate(hand))

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self._engines[0].check_loglikelihood(requests)
        return self._dealt(requests, lambda engine, hand: engine.loglikelihood(hand))

    def sleep(self) -> None:
        self._all(lambda engine: engine.sleep())

    def wake(self) -> None:
        self._all(lambda engine: engine.wake())

    def close(self) -> None:
        self._all(lambda engine: engine.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _dealt(self, requests: Sequence[R], ask: Callable[[EngineProcess, Sequence[R]], list[S]]) -> list[S]:
        """Request i goes to engine i mod N: long and short ones that lie together in a file are spread."""
        num = len(self._engines)
        hands = [requests[index::num] for index in range(num)]
        answers = self._together(
            [
                lambda engine=engine, hand=hand: ask(engine, hand)  # type: ignore[misc]
                for engine, hand in zip(self._engines, hands, strict=True)
            ]
        )
        return [answers[index % num][index // num] for index in range(len(requests))]

    def _all(self, do: Callable[[EngineProcess], None]) -> None:
        self._together([lambda engine=engine: do(engine) for engine in self._engines])  # type: ignore[misc]

    def _together(self, calls: Sequence[Callable[[], S]]) -> list[S]:
        """One thread a call; an error is raised when all have ended, so that no engine is left half-way."""
        with ThreadPoolExecutor(max_workers=len(calls), thread_name_prefix="engine") as threads:
            futures = [threads.submit(call) for call in calls]
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
            for engine, future in zip(self._engines, futures, strict=True):
                if not future.done():
                    engine.interrupt()
            unfinished = [future for future in futures if not future.done()]
            wait(unfinished, timeout=_RECHECK_SECONDS)
        for engine in self._engines:
            engine.resume()
