"""vLLM inside the engine process: one `LLM` whose weights are swapped in place.

`alignloop.engines.process` starts the process and sets its environment before vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import EMBEDDING_NAMES, architecture, eos_token_ids, text_config, weight_files
from alignloop.engines.plain import Sighting, check_served
from alignloop.engines.vllm_requests import (
    completions,
    forget_grammars,
    lent_tokenizer,
    loglikelihoods,
    read_tokenizer,
    sampling_params,
)
from alignloop.errors import EngineError, UserError

if TYPE_CHECKING:
    import torch
    from vllm import LLM

_CPU_BLOCK_TOKENS = 32
"""K completions share only full KV blocks of their prompt; vLLM's default on CPU is 128 tokens a block."""
_HEAD_NAME = "lm_head.weight"


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
        self._tokenizer: Callable[[], Any] = lambda: None
        self._sighting: Sighting | None = None
        self._asleep = False

    def load_weights(self, checkpoint: Path) -> None:
        """See `Engine.load_weights`; OtherArchitecture where the checkpoint cannot be swapped in here."""
        if self._llm is not None and architecture(checkpoint) != self._architecture:
            raise OtherArchitecture(str(checkpoint))
        starts = self._llm is None
        if self._llm is None:
            self._llm = _start(self._config, checkpoint)
            self._architecture = architecture(checkpoint)
        elif self._asleep or checkpoint != self._served:
            self._swap(self._llm, checkpoint)
        else:
            return
        self._eos = eos_token_ids(checkpoint)
        self._tokenizer = cache(partial(read_tokenizer, checkpoint))  # where it is needed, once
        forget_grammars(self._llm)
        self._served = checkpoint
        self._sighting = check_served(
            self.loglikelihood,
            checkpoint=checkpoint,
            dtype=self._config.dtype,
            tolerance=self._config.canary_tolerance,
            before=self._sighting,
            after_swap=not starts,
        )

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """See `Engine.generate`; EngineError where the checkpoint has no tokenizer that stop strings or a JSON schema
        need, or vLLM cannot hold a completion to the schema."""
        llm = self._ready()
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        with lent_tokenizer(llm, requests, read=self._tokenizer) as ends:
            params = [sampling_params(request, eos=self._eos, schema_ends=ends) for request in requests]
            outputs = llm.generate(prompts, params, use_tqdm=False)
        return [completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        return loglikelihoods(self._ready(), requests)

    def sleep(self) -> None:
        """On an accelerator: weights and KV cache leave its memory. On CPU vLLM has no sleep and nothing happens."""
        if self._llm is not None and not self._asleep and not _on_cpu():
            _reset_prefix_cache(self._llm)
            self._llm.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep and self._served is not None:
            self.load_weights(self._served)

    def _swap(self, llm: LLM, checkpoint: Path) -> None:
        """Level 2 sleep forgets the weights: they are loaded again before the KV cache takes its memory."""
        if self._asleep:
            llm.wake_up(tags=["weights"])
        llm.collective_rpc("swap_weights", args=(str(checkpoint),))
        if self._asleep:
            llm.wake_up(tags=["kv_cache"])
            self._sighting = None  # waking to the same weights repeats the same logprobs, rightly
        self._asleep = False
        _reset_prefix_cache(llm)

    def _ready(self) -> LLM:
        """vLLM, awake and with an empty prefix cache: blocks computed by an earlier call never reach a later one."""
        if self._llm is None:
            raise EngineError("the engine serves no model yet: call load_weights first")
        if self._asleep:
            raise EngineError("the engine sleeps: call wake or load_weights first")
        _reset_prefix_cache(self._llm)
        return self._llm


class SwapWeights:
    """Methods vLLM mixes into its worker class, so `self` is a worker, one per accelerator."""

    model_runner: Any

    def swap_weights(self, checkpoint: str) -> None:
        """Load the weights of `checkpoint`, a directory of the architecture being served, in place."""
        self.model_runner.reload_weights(weights_iterator=named_weights(Path(checkpoint)))


def named_weights(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every weight, and the head of a model whose head is its embedding.

    vLLM's reload takes embedding and head as two layers even where they share a tensor, and a head that is missing here
    keeps the old weights in silence. EngineError where the head is tied and the embedding has no name known here.
    """
    from safetensors import safe_open

    head_is_due = bool(text_config(checkpoint).get("tie_word_embeddings"))
    embedding: torch.Tensor | None = None
    for file in weight_files(checkpoint):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict: it cannot be iterated
                tensor = tensors.get_tensor(name)
                head_is_due = head_is_due and name != _HEAD_NAME
                if name.endswith(EMBEDDING_NAMES):
                    embedding = tensor
                yield name, tensor
    if head_is_due:
        if embedding is None:
            raise EngineError(
                f"{checkpoint}: the head is tied to the embedding, but no weight is called "
                f"{' or '.join(EMBEDDING_NAMES)}; vLLM cannot swap this architecture: set engine.name: transformers"
            )
        yield _HEAD_NAME, embedding


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
    """The message for the recipe's writer where vLLM does not start because of its settings; None: it is a defect."""
    reason = str(error)
    if "Value error, " in reason:  # pydantic's: the reason, then the whole configuration
        reason = reason.partition("Value error, ")[2].partition(" [type=")[0]
    if "KV cache" in reason or "cache blocks" in reason:
        return (
            f"engine.kv_cache_gb ({config.kv_cache_gb:g}; on a GPU engine.gpu_memory_utilization, "
            f"{config.gpu_memory_utilization:g}) leaves no room for one sequence of engine.max_model_len "
            f"({config.max_model_len}) tokens of {checkpoint}: raise the first or lower the last. vLLM: {reason}"
        )
    if config.quantization is not None:
        return (
            f"engine.quantization: {config.quantization} does not serve {checkpoint} on this machine: leave it out, or "
            f"give a checkpoint that is quantised so. vLLM: {reason}"
        )
    if isinstance(error, ValueError):
        return f"vLLM does not serve {checkpoint} with the recipe's engine settings: {reason}"
    return None


def llm_arguments(config: EngineConfig, checkpoint: Path) -> dict[str, Any]:
    """What `vllm.LLM` is made with."""
    on_accelerator = {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": True}
    on_cpu = {
        "block_size": _CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
        # A seeded request whose prefill is split crashes vLLM 0.32 on CPU: no prefill is split.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, config.max_model_len),
    }
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
        # One backend for all: vLLM picks by the schema otherwise, and then compiles every schema with the first one's.
        # A model of few wits writes line breaks between two fields of an answer until it is cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "scheduler_cls": "alignloop.engines.scheduler.reserving_scheduler",
        "worker_extension_cls": "alignloop.engines.vllm_engine.SwapWeights",
        "disable_log_stats": True,
        "seed": 0,
        **(on_cpu if _on_cpu() else on_accelerator),
    }


def _check_platform(config: EngineConfig) -> None:
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


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _reset_prefix_cache(llm: LLM) -> None:
    if not llm.reset_prefix_cache():
        raise EngineError("vLLM could not drop its prefix cache: blocks of an earlier call are still in use")
