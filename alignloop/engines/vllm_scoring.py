"""Log-likelihoods by vLLM: as few passes over as few tokens as the requests need.

requests --one-token continuations of one context--> one pass over it, from which all their logprobs are read
         --longer continuations--> a pass each over context + continuation
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import Loglikelihood, LoglikelihoodRequest

if TYPE_CHECKING:
    from vllm import LLM

_MOST_IDS = 20
"""Tokens read after one context: vLLM's `max_logprobs`."""
Found = dict[int, Loglikelihood]


def loglikelihoods(llm: LLM, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
    """Per request, in order.

    The letters of a question in lm-eval's MMLU are one-token continuations of one context: a fourth of the passes, and
    those read what questions share (the shots) from the prefix cache, which a prompt's own logprobs cannot.
    """
    one = [index for index, request in enumerate(requests) if len(request.continuation_ids) == 1]
    longer = [index for index, request in enumerate(requests) if len(request.continuation_ids) > 1]
    found = _next_tokens(llm, requests, one) | _continuations(llm, requests, longer)
    return [found[index] for index in range(len(requests))]


def _next_tokens(llm: LLM, requests: Sequence[LoglikelihoodRequest], indices: Sequence[int]) -> Found:
    from vllm import SamplingParams

    by_context: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        by_context.setdefault(requests[index].context_ids, []).append(index)
    hands = [
        (context, own[start : start + _MOST_IDS])
        for context, own in by_context.items()
        for start in range(0, len(own), _MOST_IDS)
    ]
    if not hands:
        return {}
    asked = [sorted({requests[index].continuation_ids[0] for index in hand}) for _, hand in hands]
    params = [
        SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=ids, detokenize=False, ignore_eos=True)
        for ids in asked
    ]
    outputs = llm.generate([{"prompt_token_ids": list(context)} for context, _ in hands], params, use_tqdm=False)
    found: Found = {}
    for (_, hand), output in zip(hands, outputs, strict=True):
        drawn = output.outputs[0]
        for index in hand:
            (token_id,) = requests[index].continuation_ids
            logprob = float(drawn.logprobs[0][token_id].logprob)
            found[index] = Loglikelihood((logprob,), is_greedy=drawn.token_ids[0] == token_id)
    return found


def _continuations(llm: LLM, requests: Sequence[LoglikelihoodRequest], indices: Sequence[int]) -> Found:
    from vllm import SamplingParams

    if not indices:
        return {}
    # prompt_logprobs=0: of the prompt's own tokens, with their ranks, and no runners-up.
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, ignore_eos=True)
    asked = [requests[index] for index in indices]
    prompts = [{"prompt_token_ids": [*request.context_ids, *request.continuation_ids]} for request in asked]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return {index: _of_prompt(request, output) for index, request, output in zip(indices, asked, outputs, strict=True)}


def _of_prompt(request: LoglikelihoodRequest, output: Any) -> Loglikelihood:
    scored = output.prompt_logprobs[len(request.context_ids) :]
    tokens = [entry[token_id] for entry, token_id in zip(scored, request.continuation_ids, strict=True)]
    return Loglikelihood(
        logprobs=tuple(float(token.logprob) for token in tokens),
        is_greedy=all(token.rank == 1 for token in tokens),
    )
