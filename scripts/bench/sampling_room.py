"""What the cases of the sampling benchmark share: a work folder, and engines that stay open until they are let go."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest
from alignloop.engines.environment import child_environment
from alignloop.engines.placement import EnginePlace, num_cores
from alignloop.engines.process import EngineProcess
from scripts.bench.sampling_cases import ENGINE, Amount, EngineName, Model, Size
from scripts.bench.sampling_models import BASE, checkpoint
from scripts.bench.sampling_vllm import RawVllm, VllmProcess


class RecordingEngine(EngineProcess):
    """An `EngineProcess` that keeps the requests it was given.

    Attributes:
        requests: of all `generate` calls since they were last cleared.
        cold_start: seconds from making it to the end of its first `load_weights`: what a run pays once.
    """

    def __init__(self, config: EngineConfig, *, log_file: Path, first: Path) -> None:
        started = time.perf_counter()
        super().__init__(config, log_file=log_file)
        self.requests: list[GenerateRequest] = []
        self.load_weights(first)
        self.cold_start = time.perf_counter() - started

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        self.requests.extend(requests)
        return super().generate(requests)


class Room:
    """A context manager: leaving it ends every engine.

    Args:
        work: folder for checkpoints, prompts, stages and logs.
    """

    def __init__(self, work: Path, amount: Amount, *, has_own_threads: bool) -> None:
        self.work, self.amount = work, amount
        self.has_own_threads = has_own_threads
        self._engines: dict[str, RecordingEngine] = {}
        self._raw: dict[str, VllmProcess] = {}
        self._stack = ExitStack()

    def checkpoint(self, size: Size, which: str) -> Path:
        return checkpoint(self.work, size, which)

    def open_ahead(self, wanted: Sequence[tuple[EngineName, Model]]) -> None:
        """Open engines, the first by itself, so that its cold start is one, and the others side by side."""
        if not wanted:
            return
        for _, model in wanted:
            if model != "base":
                self.checkpoint(model, "a")

        def open_one(name: EngineName, model: Model) -> None:
            if name == "raw":
                assert model != "base", "vLLM alone serves random models"
                self.raw(model)
            else:
                self.engine(name, model)

        open_one(*wanted[0])
        with ThreadPoolExecutor() as pool:
            for opening in [pool.submit(open_one, *one) for one in wanted[1:]]:
                opening.result()

    def engine(self, name: Literal["vllm", "transformers"], model: Model) -> RecordingEngine:
        """alignloop's engine, warm, serving checkpoint `a` of a random model, or the quickstart's base."""
        first = BASE if model == "base" else self.checkpoint(model, "a")
        # A new architecture is a new process for vLLM alone.
        key = f"{name}-{model}" if name == "vllm" else name
        if key not in self._engines:
            config = EngineConfig(name=name, **ENGINE)
            log_file = self.work / f"engine-{key}.log"
            self._engines[key] = self._stack.enter_context(RecordingEngine(config, log_file=log_file, first=first))
        self._engines[key].load_weights(first)
        return self._engines[key]

    def raw(self, size: Size) -> VllmProcess:
        """vLLM alone with the same settings, serving checkpoint `a`."""
        if size not in self._raw:
            config = EngineConfig(name="vllm", **ENGINE)
            self._raw[size] = self._stack.enter_context(
                VllmProcess(
                    RawVllm,
                    config,
                    self.checkpoint(size, "a"),
                    environment=child_environment(config, place=EnginePlace(num_cores())),
                    log=self.work / f"raw-{size}.log",
                )
            )
        return self._raw[size]

    def side_environment(self) -> dict[str, str]:
        """For a whole run in a process of its own: the caller's, so that each side chooses its threads itself."""
        environment = dict(os.environ)
        if not self.has_own_threads:
            environment.pop("OMP_NUM_THREADS", None)
        return environment

    def let_go(self) -> None:
        """End all engines: the next case needs the memory, or the cores to itself."""
        self._stack.close()
        self._engines.clear()
        self._raw.clear()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *exc: object) -> None:
        self.let_go()
