"""The engine and the judge."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer

from alignloop.config.base import Fraction, NonEmptyText, NonNegativeFloat, PositiveFloat, PositiveInt, Section


def default_engine() -> Literal["vllm", "transformers"]:
    """vLLM where it is installed."""
    return "vllm" if find_spec("vllm") is not None else "transformers"


class EngineConfig(Section):
    """The engine that samples, judges and evaluates."""

    name: Annotated[Literal["vllm", "transformers"], Field(json_schema_extra={"default": "vllm"})] = Field(
        default_factory=default_engine
    )
    """`vllm`, which is the default where it is installed; `transformers` is several times slower."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: PositiveInt = 4096
    """Longest prompt + completion, in tokens."""
    max_num_seqs: PositiveInt = 256
    kv_cache_gb: PositiveFloat = 1.0
    """KV cache size on CPU, where it is set explicitly; each engine's, with `data_parallel`."""
    gpu_memory_utilization: Fraction = 0.85
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    data_parallel: PositiveInt = 1
    """Engines side by side on this machine, each with its share of the requests. On a CPU what they sample does not
    depend on how many they are. On a GPU kernels depend on the batch: it holds wholly with `VLLM_BATCH_INVARIANT=1`
    only, where vLLM has it."""
    quantization: str | None = None
    """Passed to vLLM, for example `fp8`."""
    enforce_eager: bool = True
    """No compilation: starts faster. Set false for long runs on GPU."""
    canary_tolerance: PositiveFloat = 0.1
    """Largest mean difference of logprobs between the engine and a plain forward pass, in nats a token."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often an engine that died, or was given up, is started again in a run."""
    stall_seconds: PositiveFloat = 300.0
    """An engine at work that uses no processor time for so long is stopped or hangs: it is ended and started again. It
    is said after a tenth of that, 30 seconds at most."""
    seconds_per_token: PositiveFloat = 1.0
    """Slowest pace that is still taken for work. A call may take `stall_seconds`, this for each token of its longest
    prompt and completion, and for all its tokens 20 times what they took at the slowest pace of the run's earlier calls
    (before there is one, this). A load has 15 minutes and a second for each 20 MB instead of the tokens."""


class JudgeConfig(Section):
    """A model that compares completions: on the run's own engine, or behind an OpenAI-compatible endpoint."""

    model: NonEmptyText
    """A Hugging Face directory for the engine; with `endpoint` the name it is served under."""
    endpoint: str | None = None
    """Base URL, for example `http://localhost:8000/v1`. None: the run's own engine."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; unset is fine where none is asked for."""
    prompt: NonEmptyText = "pairwise"
    """A bundled judging prompt's name, or a file of yours."""
    both_orders: bool = True
    """Ask with the two completions in either order; where the answers contradict each other it is a tie."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 512
    """Longest answer."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """How often an answer that cannot be read is asked for again, and an endpoint that fails called again."""
    timeout_seconds: PositiveFloat = 120.0
    """Of a request to the endpoint, from its beginning to the last byte of its answer; at most 4 MiB are read."""
    concurrency: PositiveInt = 16
    """Requests to the endpoint at a time."""


class EngineComputes(Section):
    """The part of the engine's config that results depend on; sizes and retries do not count."""

    engine: str
    max_model_len: PositiveInt
    engine_dtype: str
    quantization: str | None


def computing(engine: EngineConfig) -> dict[str, Any]:
    """The values of `EngineComputes`."""
    return {
        "engine": engine.name,
        "max_model_len": engine.max_model_len,
        "engine_dtype": engine.dtype,
        "quantization": engine.quantization,
    }


class JudgeSettings(JudgeConfig):
    """A judge as its verdicts depend on it: not on where an endpoint is, its key, or how long and how often it is
    asked, so that none of these costs what is judged already."""

    api_key_variable: str = Field("OPENAI_API_KEY", exclude=True)
    max_retries: Annotated[int, Field(ge=0)] = Field(2, exclude=True)
    timeout_seconds: PositiveFloat = Field(120.0, exclude=True)
    concurrency: PositiveInt = Field(16, exclude=True)

    @field_serializer("endpoint")
    def _anywhere(self, endpoint: str | None) -> str | None:
        return None if endpoint is None else "(any)"


def judging(judge: JudgeConfig | None, engine: EngineConfig) -> tuple[JudgeSettings | None, EngineComputes | None]:
    """A judge as its verdicts depend on it, and the engine that it runs on, where it runs on the run's own."""
    if judge is None:
        return None, None
    on_engine = EngineComputes(**computing(engine)) if judge.endpoint is None else None
    return JudgeSettings(**dict(judge)), on_engine
