"""vLLM itself, without alignloop's engine process around it, and the loop with an engine started for each use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from alignloop.config.engine import EngineConfig
from alignloop.engines import vllm_engine
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import eos_token_ids
from alignloop.engines.vllm_requests import completions, loglikelihoods, sampling_params
from alignloop.progress import PlainProgress
from scripts.bench.processes import Hosted


class _Vllm:
    """An `LLM` with these arguments, and sampling parameters as alignloop's engine makes them."""

    def __init__(self, checkpoint: Path, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**arguments)
        self._eos = eos_token_ids(checkpoint)

    def _outputs(self, requests: Sequence[GenerateRequest]) -> Sequence[Any]:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        params = [sampling_params(request, eos=self._eos) for request in requests]
        outputs: Sequence[Any] = self._llm.generate(prompts, params, use_tqdm=False)
        return outputs


class RawVllm(_Vllm):
    """With the engine's own arguments, and vLLM's scheduler."""

    def __init__(self, config: EngineConfig, checkpoint: Path) -> None:
        arguments = vllm_engine.llm_arguments(config, checkpoint)
        arguments.pop("scheduler_cls", None)
        super().__init__(checkpoint, arguments)

    def generate(self, requests: Sequence[GenerateRequest]) -> tuple[float, list[tuple[int, ...]]]:
        """Seconds of one `LLM.generate` call over all requests, and the token ids of their candidates."""
        self._llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = self._outputs(requests)
        seconds = time.perf_counter() - started
        drawn = [one for output in outputs for one in sorted(output.outputs, key=lambda one: one.index)]
        return seconds, [tuple(one.token_ids) for one in drawn]

    def swap(self, checkpoint: Path) -> float:
        """Seconds of a swap by the engine's worker extension, without its canary."""
        started = time.perf_counter()
        self._llm.collective_rpc("swap_weights", args=(str(checkpoint),))
        self._llm.reset_prefix_cache()
        return time.perf_counter() - started


class DefaultVllm(_Vllm):
    """`LLM(checkpoint)`: an engine process of vLLM's own, compiled, with vLLM's choice of threads and blocks.

    It gets only the recipe's dtype, what seeded requests need on a CPU (no prefill is split), and the recipe's size of
    the KV cache: vLLM takes nine tenths of all memory by default, and does not start where that is not free.
    Requests become parameters, and outputs answers, as in alignloop's engine; there is no canary.
    """

    def __init__(self, config: EngineConfig, checkpoint: Path) -> None:
        cache = int(config.kv_cache_gb * 2**30)
        unsplit = {"enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
        arguments = {"model": str(checkpoint), "dtype": config.dtype, "kv_cache_memory_bytes": cache, **unsplit}
        super().__init__(checkpoint, arguments)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        outputs = self._outputs(requests)
        return [completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        return loglikelihoods(self._llm, requests)

    def end(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class ColdEngine:
    """An `Engine` as scripts do without one: vLLM is started for a checkpoint, used, and ended.

    A use ends when the engine is put to sleep (something trains, scores or embeds) or another checkpoint is loaded.
    """

    def __init__(self, config: EngineConfig, *, log_file: Path, say: Callable[[str], None], **options: Any) -> None:
        self._config, self._log_file, self._say = config, log_file, say
        self._checkpoint: Path | None = None
        self._process: Hosted | None = None
        self.num_starts = 0

    def load_weights(self, checkpoint: Path) -> None:
        if checkpoint != self._checkpoint:
            self.close()
        self._checkpoint = checkpoint

    def generate(self, requests: Sequence[GenerateRequest]) -> Any:
        return self._ask("generate", requests)

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> Any:
        return self._ask("loglikelihood", requests)

    def _ask(self, verb: str, requests: Sequence[Any]) -> Any:
        if self._process is None:
            self.num_starts += 1
            self._say(f"engine: start {self.num_starts}, vLLM's default way, log in {self._log_file}")
            self._process = Hosted(DefaultVllm, self._config, self._checkpoint, log=self._log_file)
        return self._process.call(verb, list(requests))

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    sleep = close

    def wake(self) -> None:
        """It starts at its next use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run_quickstart(cold: bool, rounds: int, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds of a run, its engine starts and its rounds' benchmarks; `cold`: with `ColdEngine` under the stages."""
    from alignloop.loop.run import run

    with patch("alignloop.loop.run.open_engine", ColdEngine) if cold else nullcontext():
        progress = PlainProgress(interval=30.0)
        result = run("quickstart", rounds=rounds, run_dir=run_dir, overrides=overrides, progress=progress)
    metrics = [row.metrics for row in result.rounds]
    return {"seconds": result.seconds, "starts": result.num_engine_starts, "metrics": metrics}
