"""The engine protocol: token ids in, token ids out. One engine lives through a run.

    GenerateRequest --generate--> num_candidates Completions
    LoglikelihoodRequest --loglikelihood--> Loglikelihood

Text never crosses this boundary, so no second BOS and no re-tokenisation can happen behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from alignloop.errors import EngineError


@dataclass(frozen=True)
class GenerateRequest:
    prompt_ids: tuple[int, ...]
    max_tokens: int
    """Longest completion, in tokens, stop token included."""
    num_candidates: int = 1
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """Makes the completions a function of (weights, request) on a CPU; on a GPU also of the batch, as far as its
    kernels depend on that (see `pool`). None draws from the engine's own stream."""
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    """Benchmarks only (lm-eval's `until`): generation ends where one appears in the decoded text."""
    json_schema: str | None = None
    """A JSON schema the completion is held to, token by token, where the engine can (vLLM; for a judge's verdict).
    The transformers engine samples freely: whoever reads the completion checks it."""


@dataclass(frozen=True)
class Completion:
    token_ids: tuple[int, ...]
    """As sampled; ends with the stop token where finish_reason is `stop` by token."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """Score `continuation_ids` after `context_ids` (both non-empty)."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


@dataclass(frozen=True)
class Loglikelihood:
    logprobs: tuple[float, ...]
    """Natural-log probability of each continuation token."""
    is_greedy: bool
    """Whether every continuation token is the argmax at its position."""

    @property
    def total(self) -> float:
        return sum(self.logprobs)


class ModelRunner(Protocol):
    """The verbs of an engine, without its lifetime: what runs inside an engine's process."""

    def load_weights(self, checkpoint: Path) -> None:
        """Serve `checkpoint` (a Hugging Face directory) from now on.

        Swaps weights in place when the architecture is the one being served, drops the prefix cache, and
        compares logprobs of fixed prompts with a plain forward pass. Loading what is served already is free. An engine
        that sleeps wakes with these weights; those it served before are not loaded for it.

        A checkpoint of another architecture is served by a new start, which is said.

        Raises:
            EngineError: the served model disagrees with the checkpoint, or the engine cannot start.
            UserError: the checkpoint is incomplete or the engine's settings do not fit it or this machine.
        """

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """Completions per request, in order, `num_candidates` each."""

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        """Per request, in order."""

    def sleep(self) -> None:
        """Give accelerator memory back while something else trains. A no-op on CPU."""

    def wake(self) -> None:
        """Undo `sleep`; the weights served before are served again."""


class Engine(ModelRunner, Protocol):
    """Runs a model. A context manager that owns its lifetime; starts at the first use. Implementations inherit it."""

    def close(self) -> None:
        """End the engine and everything it started. Idempotent."""

    @property
    def num_starts(self) -> int:
        """How many times an engine was started in this run: 1, or as many as stand side by side, unless one died or a
        checkpoint of another architecture came."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def check_generate(requests: Sequence[GenerateRequest], *, max_model_len: int, vocab_size: int | None) -> None:
    """Refuse a call, before any of it is run, with a request that cannot be run to its longest completion: an
    EngineError names the first such request. `max_model_len` is prompt + completion in tokens; an unknown `vocab_size`
    is None."""
    for index, request in enumerate(requests):
        where = f"generate request {index}"
        _check_ids(request.prompt_ids, where=f"{where}: the prompt", vocab_size=vocab_size)
        if request.max_tokens < 1 or request.num_candidates < 1:
            raise EngineError(
                f"{where}: max_tokens ({request.max_tokens}) and num_candidates ({request.num_candidates}) must be at "
                "least 1"
            )
        if request.temperature < 0 or not 0 < request.top_p <= 1:
            raise EngineError(
                f"{where}: temperature ({request.temperature}) must not be negative and top_p "
                f"({request.top_p}) must be above 0 and at most 1"
            )
        if request.json_schema is not None:
            _check_schema(request.json_schema, where=where)
        total = len(request.prompt_ids) + request.max_tokens
        if total > max_model_len:
            raise EngineError(
                f"{where}: a prompt of {len(request.prompt_ids)} tokens and a completion of up to {request.max_tokens} "
                f"are {total} tokens, more than engine.max_model_len ({max_model_len}): shorten the prompt, lower "
                "max_tokens or raise engine.max_model_len"
            )


def check_loglikelihood(
    requests: Sequence[LoglikelihoodRequest], *, max_model_len: int, vocab_size: int | None
) -> None:
    """As `check_generate`. One position of `max_model_len` stays free: vLLM scores a prompt only while it samples a
    token after it."""
    for index, request in enumerate(requests):
        where = f"loglikelihood request {index}"
        _check_ids(request.context_ids, where=f"{where}: the context", vocab_size=vocab_size)
        _check_ids(request.continuation_ids, where=f"{where}: the continuation", vocab_size=vocab_size)
        total = len(request.context_ids) + len(request.continuation_ids)
        if total > max_model_len - 1:
            raise EngineError(
                f"{where}: a context of {len(request.context_ids)} tokens and a continuation of "
                f"{len(request.continuation_ids)} are {total} tokens, more than engine.max_model_len - 1 "
                f"({max_model_len - 1}): shorten the context or raise engine.max_model_len"
            )


def _check_schema(schema: str, *, where: str) -> None:
    try:
        value = json.loads(schema)
    except ValueError as error:
        raise EngineError(f"{where}: its json_schema is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise EngineError(f"{where}: its json_schema is a JSON {type(value).__name__}, an object is wanted")


def _check_ids(token_ids: Sequence[int], *, where: str, vocab_size: int | None) -> None:
    if not token_ids:
        raise EngineError(f"{where} is empty: an engine needs at least one token")
    if min(token_ids) < 0 or (vocab_size is not None and max(token_ids) >= vocab_size):
        # An id outside the embedding reads other memory on some engines instead of failing.
        bad = next(i for i in token_ids if i < 0 or (vocab_size is not None and i >= vocab_size))
        raise EngineError(f"{where} holds token id {bad}, outside the model's vocabulary of {vocab_size}")
