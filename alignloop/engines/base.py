"""The engine protocol: token ids in, token ids out. One engine process lives through a run.

    GenerateRequest --generate--> Generation (num_candidates Completions)
    LoglikelihoodRequest --loglikelihood--> Loglikelihood

Text never crosses this boundary, so no second BOS and no re-tokenisation can happen behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt and how to sample from it."""

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
    """One sampled completion."""

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


class Engine(Protocol):
    """Runs a model. A context manager that owns its lifetime; starts at the first use."""

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

    def close(self) -> None:
        """End the engine and everything it started. Idempotent."""

    @property
    def num_starts(self) -> int:
        """How many times an engine was started in this run: 1, or as many as stand side by side, unless one died or a
        checkpoint of another architecture came."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
