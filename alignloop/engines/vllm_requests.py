"""Requests as vLLM takes them, and what it answers as the engine protocol has it.

GenerateRequest --sampling_params--> LLM.generate --completions--> Completions
LoglikelihoodRequest --one token after a context that others share--> one pass over it, which has all their logprobs
                     --more tokens--> a pass each over context + continuation
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.errors import EngineError

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

_MAX_LOGPROBS = 20
"""Tokens read after one context: vLLM's `max_logprobs`."""


def sampling_params(
    request: GenerateRequest, *, eos: tuple[int, ...], schema_ends: tuple[int, ...] = ()
) -> SamplingParams:
    """How vLLM samples for a request.

    `eos` goes with every request: vLLM keeps the end tokens of the checkpoint it started with, which a swap does not
    change. `schema_ends` are tokens that may also end a completion held to a schema.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = request.json_schema
    return SamplingParams(
        n=1 if request.temperature == 0 else request.num_candidates,  # greedy candidates are all the same
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=None if request.seed is None or request.temperature == 0 else _spread(request.seed),
        stop_token_ids=sorted({*request.stop_token_ids, *eos, *(() if schema is None else schema_ends)}),
        ignore_eos=True,
        stop=list(request.stop_strings) or None,
        detokenize=bool(request.stop_strings),
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
    )


def _spread(seed: int) -> int:
    """Scatter seeds: vLLM gives candidate k the seed + k, so neighbouring seeds would share candidates."""
    return (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**62


def completions(request: GenerateRequest, output: Any) -> list[Completion]:
    drawn = []
    for candidate in sorted(output.outputs, key=lambda candidate: candidate.index):
        reason = candidate.finish_reason
        if reason not in ("stop", "length"):
            raise EngineError(
                f"vLLM ended a completion with finish reason {reason!r}; only stop and length are expected"
            )
        drawn.append(Completion(token_ids=tuple(candidate.token_ids), finish_reason=reason))
    return drawn * request.num_candidates if request.temperature == 0 else drawn


def loglikelihoods(llm: LLM, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
    """Per request, in order, by as few passes over as few tokens as they need.

    The letters of a question in lm-eval's MMLU are one-token continuations of one context: a fourth of the passes, and
    those read what questions share (the shots) from the prefix cache, which a prompt's own logprobs cannot.
    """
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    longer = []
    for index, request in enumerate(requests):
        if len(request.continuation_ids) == 1:
            by_context[request.context_ids].append(index)
        else:
            longer.append(index)
    passes = [
        (context, own[start : start + _MAX_LOGPROBS])
        for context, own in by_context.items()
        for start in range(0, len(own), _MAX_LOGPROBS)
    ]
    found = _of_next_tokens(llm, requests, passes) if passes else {}
    if longer:
        found |= zip(longer, _of_continuations(llm, [requests[index] for index in longer]), strict=True)
    return [found[index] for index in range(len(requests))]


def _of_next_tokens(
    llm: LLM, requests: Sequence[LoglikelihoodRequest], passes: Sequence[tuple[tuple[int, ...], list[int]]]
) -> dict[int, Loglikelihood]:
    """By request, of passes over a context for some of the requests that continue it."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=sorted({requests[index].continuation_ids[0] for index in indices}),
            detokenize=False,
            ignore_eos=True,
        )
        for _, indices in passes
    ]
    outputs = llm.generate([{"prompt_token_ids": list(context)} for context, _ in passes], params, use_tqdm=False)
    found = {}
    for (_, indices), output in zip(passes, outputs, strict=True):
        drawn = output.outputs[0]
        for index in indices:
            (token_id,) = requests[index].continuation_ids
            logprob = float(drawn.logprobs[0][token_id].logprob)
            found[index] = Loglikelihood((logprob,), is_greedy=drawn.token_ids[0] == token_id)
    return found


def _of_continuations(llm: LLM, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
    from vllm import SamplingParams

    # prompt_logprobs=0: of the prompt's own tokens, with their ranks, and no runners-up.
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": [*request.context_ids, *request.continuation_ids]} for request in requests]
    scored = []
    for request, output in zip(requests, llm.generate(prompts, params, use_tqdm=False), strict=True):
        entries = output.prompt_logprobs[len(request.context_ids) :]
        tokens = [entry[token_id] for entry, token_id in zip(entries, request.continuation_ids, strict=True)]
        logprobs = tuple(float(token.logprob) for token in tokens)
        scored.append(Loglikelihood(logprobs=logprobs, is_greedy=all(token.rank == 1 for token in tokens)))
    return scored


@contextmanager
def lent_tokenizer(
    llm: LLM, requests: Sequence[GenerateRequest], *, read: Callable[[], Any]
) -> Iterator[tuple[int, ...]]:
    """Lend vLLM the served checkpoint's tokenizer for one call where stop strings or JSON schemas need it.

    vLLM starts without one, and it is taken away again: so a checkpoint that has none can be served, and a later
    checkpoint's tokenizer is never confused with the first one's. Yields the tokens that may end a completion held to a
    schema, beside those of the request.

    Raises:
        EngineError: it is needed and the checkpoint has none, or vLLM cannot hold a completion to a schema.
    """
    from vllm.exceptions import VLLMValidationError

    by_schema = any(request.json_schema is not None for request in requests)
    if not by_schema and not any(request.stop_strings for request in requests):
        yield ()
        return
    tokenizer, engine = read(), llm.llm_engine
    try:
        engine.output_processor.tokenizer = tokenizer
        if by_schema:
            manager = _grammar_manager(llm)
            engine.renderer.tokenizer = manager.tokenizer = tokenizer
            # Without a tokenizer at its start vLLM has no threads to compile in; it compiles a schema once.
            manager._use_async_grammar_compilation = False
        yield () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    except VLLMValidationError as error:
        raise EngineError(f"generate: vLLM cannot hold completions to a JSON schema: {error}") from error
    finally:
        engine.output_processor.tokenizer = engine.renderer.tokenizer = None


def read_tokenizer(checkpoint: Path) -> Any:
    from vllm.tokenizers import get_tokenizer

    try:
        return get_tokenizer(str(checkpoint))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{checkpoint}: its tokenizer cannot be read, which stop strings and JSON schemas need ({error}); save the "
            "tokenizer beside the weights"
        ) from error


def forget_grammars(llm: LLM) -> None:
    """Grammars compiled for one checkpoint's tokens are not another's."""
    manager = _grammar_manager(llm)
    if manager.backend is not None:
        manager.backend.destroy()
        manager.backend = None


def _grammar_manager(llm: LLM) -> Any:
    """vLLM's structured output manager, which lives in this process like the whole engine core."""
    return llm.llm_engine.engine_core.engine_core.structured_output_manager
