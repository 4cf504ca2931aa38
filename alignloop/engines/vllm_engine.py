"""vLLM inside the engine process: one `LLM` whose weights are swapped in place.

`alignloop.engines.process` starts the process and sets its environment before vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.config.engine import EngineConfig
from alignloop.engines import canary
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import architecture, eos_token_ids
from alignloop.engines.structured import BACKEND, ServedTokenizer, forget_grammars
from alignloop.engines.vllm_scoring import loglikelihoods
from alignloop.errors import EngineError, UserError

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

_CPU_BLOCK_TOKENS = 32
"""K completions share only full KV blocks of their prompt; vLLM's default on CPU is 128 tokens a block."""


class OtherArchitecture(Exception):
    """The checkpoint's weights do not fit into the engine that runs: a new process must serve it."""


class VllmEngine:
    """Serves one checkpoint at a time. Used by `alignloop.engines.worker` alone."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._llm: LLM | None = None
        self._served: Path | None = None
        self._architecture: dict[str, Any] = {}
        self._eos: tuple[int, ...] = ()
        self._tokenizer: ServedTokenizer | None = None
        self._sighting: canary.Sighting | None = None
        self._asleep = False

    def load_weights(self, checkpoint: Path) -> None:
        """Serve `checkpoint`; see `Engine.load_weights`.

        Raises:
            OtherArchitecture: it cannot be swapped in here.
            EngineError: the canary failed.
        """
        if self._llm is not None and architecture(checkpoint) != self._architecture:
            raise OtherArchitecture(str(checkpoint))
        starts = self._llm is None
        if self._llm is None:
            self._llm = _start(self._config, checkpoint)
            self._architecture = architecture(checkpoint)
        elif self._asleep:
            self._wake_with(checkpoint)
        elif checkpoint != self._served:
            self._swap(checkpoint)
        else:
            return
        self._eos = eos_token_ids(checkpoint)
        self._tokenizer = ServedTokenizer(checkpoint)
        forget_grammars(self._llm)
        self._served = checkpoint
        self._sighting = canary.check(
            self.loglikelihood,
            checkpoint=checkpoint,
            dtype=self._config.dtype,
            tolerance=self._config.canary_tolerance,
            before=self._sighting,
            after_swap=not starts,
        )

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """Completions per request; see `Engine.generate`.

        Raises:
            EngineError: the checkpoint has no tokenizer that stop strings or a JSON schema need, or vLLM cannot hold
                a completion to the schema.
        """
        llm = self._ready()
        self._reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        assert self._tokenizer is not None
        with self._tokenizer.lent_to(llm, requests) as ends:
            params = [_sampling_params(request, eos=self._eos, ends=ends) for request in requests]
            outputs = llm.generate(prompts, params, use_tqdm=False)
        return [_completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        llm = self._ready()
        self._reset_prefix_cache()
        return loglikelihoods(llm, requests)

    def sleep(self) -> None:
        """On an accelerator: weights and KV cache leave its memory. On CPU vLLM has no sleep and nothing happens."""
        if self._llm is not None and not self._asleep and not _on_cpu():
            self._reset_prefix_cache()
            self._llm.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep and self._served is not None:
            self.load_weights(self._served)

    def _wake_with(self, checkpoint: Path) -> None:
        """Level 2 sleep forgets the weights: they are loaded again before the KV cache takes its memory."""
        assert self._llm is not None
        self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("swap_weights", args=(str(checkpoint),))
        self._llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        self._sighting = None  # waking to the same weights repeats the same logprobs, rightly
        self._reset_prefix_cache()

    def _swap(self, checkpoint: Path) -> None:
        assert self._llm is not None
        self._llm.collective_rpc("swap_weights", args=(str(checkpoint),))
        self._reset_prefix_cache()

    def _ready(self) -> LLM:
        if self._llm is None:
            raise EngineError("the engine serves no model yet: call load_weights first")
        if self._asleep:
            raise EngineError("the engine sleeps: call wake or load_weights first")
        return self._llm

    def _reset_prefix_cache(self) -> None:
        """Blocks computed by earlier weights, or by an earlier call, never reach a later one."""
        assert self._llm is not None
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not drop its prefix cache: blocks of an earlier call are still in use")


def _start(config: EngineConfig, checkpoint: Path) -> LLM:
    from vllm import LLM

    _check_platform(config)
    try:
        return LLM(**llm_arguments(config, checkpoint))
    except Exception as error:
        if (refusal := _refusal(config, checkpoint, error)) is None:
            raise
        raise UserError(refusal) from error


def _refusal(config: EngineConfig, checkpoint: Path, error: Exception) -> str | None:
    """What a recipe's writer is told where vLLM does not start because of its settings; None: it is a defect."""
    told = str(error)
    if "Value error, " in told:  # pydantic's: the reason, then the whole configuration
        told = told.partition("Value error, ")[2].partition(" [type=")[0]
    if "KV cache" in told or "cache blocks" in told:
        return (
            f"engine.kv_cache_gb ({config.kv_cache_gb:g}; on a GPU engine.gpu_memory_utilization, "
            f"{config.gpu_memory_utilization:g}) leaves no room for one sequence of engine.max_model_len "
            f"({config.max_model_len}) tokens of {checkpoint}: raise the first or lower the last. vLLM: {told}"
        )
    if config.quantization is not None:
        return (
            f"engine.quantization: {config.quantization} does not serve {checkpoint} on this machine: leave it out, or "
            f"give a checkpoint that is quantised so. vLLM: {told}"
        )
    if isinstance(error, ValueError):
        return f"vLLM does not serve {checkpoint} with the recipe's engine settings: {told}"
    return None


def llm_arguments(config: EngineConfig, checkpoint: Path) -> dict[str, Any]:
    """What `vllm.LLM` is made with."""
    return {
        "model": str(checkpoint),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the checkpoint's sampling defaults must not mix into the requests
        "dtype": config.dtype,
        "quantization": config.quantization,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        # A model of few wits writes line breaks between two fields of an answer until it is cut off.
        "structured_outputs_config": {"backend": BACKEND, "disable_any_whitespace": True},
        "scheduler_cls": "alignloop.engines.scheduler.reserving_scheduler",
        "worker_extension_cls": "alignloop.engines.weight_swap.SwapWeights",
        "disable_log_stats": True,
        "seed": 0,
        **(_cpu_arguments(config) if _on_cpu() else _accelerator_arguments(config)),
    }


def _check_platform(config: EngineConfig) -> None:
    """Refuse what this machine's vLLM cannot do.

    Raises:
        UserError: names the field.
    """
    import torch
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform

    known = current_platform.supported_quantization or QUANTIZATION_METHODS
    if config.quantization is not None and config.quantization not in known:
        raise UserError(
            f"engine.quantization: {config.quantization} is not one that vLLM has on {current_platform.device_name} "
            f"({', '.join(sorted(known))}): take one of these, or leave it out"
        )
    dtypes = current_platform.supported_dtypes
    if getattr(torch, config.dtype) not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise UserError(
            f"engine.dtype: {config.dtype} is not one that {current_platform.device_name} computes in ({names}): set "
            "engine.dtype: float32"
        )


def _cpu_arguments(config: EngineConfig) -> dict[str, Any]:
    return {
        "block_size": _CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
        # A seeded request whose prefill is split crashes vLLM 0.32 on CPU: no prefill is split.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, config.max_model_len),
    }


def _accelerator_arguments(config: EngineConfig) -> dict[str, Any]:
    return {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": True}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _sampling_params(request: GenerateRequest, *, eos: tuple[int, ...], ends: tuple[int, ...] = ()) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = request.json_schema
    return SamplingParams(
        n=1 if request.temperature == 0 else request.num_candidates,  # greedy candidates are all the same
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=None if request.seed is None or request.temperature == 0 else _spread(request.seed),
        # The checkpoint's own end tokens are given with every request: vLLM keeps those of the checkpoint it
        # started with, which a swap does not change.
        stop_token_ids=sorted({*request.stop_token_ids, *eos, *(() if schema is None else ends)}),
        ignore_eos=True,
        stop=list(request.stop_strings) or None,
        detokenize=bool(request.stop_strings),
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
    )


def _spread(seed: int) -> int:
    """Scatter seeds: vLLM gives candidate k the seed + k, so neighbouring seeds would share candidates."""
    return (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**62


def _completions(request: GenerateRequest, output: Any) -> list[Completion]:
    drawn = [_completion(candidate) for candidate in sorted(output.outputs, key=lambda candidate: candidate.index)]
    return drawn * request.num_candidates if request.temperature == 0 else drawn


def _completion(candidate: Any) -> Completion:
    reason = candidate.finish_reason
    if reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a completion with finish reason {reason!r}; only stop and length are expected")
    return Completion(token_ids=tuple(candidate.token_ids), finish_reason=reason)
