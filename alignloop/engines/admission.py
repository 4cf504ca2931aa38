"""Requests an engine refuses before it starts on any: all or nothing, with the sizes named."""

from __future__ import annotations

import json
from collections.abc import Sequence

from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.errors import EngineError


def check_generate(requests: Sequence[GenerateRequest], *, max_model_len: int, vocab_size: int | None) -> None:
    """Refuse a call with a request that cannot be run to its longest completion.

    Args:
        max_model_len: longest prompt + completion, in tokens.
        vocab_size: of the served model; None where its config does not say.

    Raises:
        EngineError: names the first bad request and its sizes.
    """
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
    """Refuse a call with a request that does not fit.

    One position of `max_model_len` stays free: vLLM scores a prompt only while it samples a token after it.

    Raises:
        EngineError: names the first bad request and its sizes.
    """
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
        read = json.loads(schema)
    except ValueError as error:
        raise EngineError(f"{where}: its json_schema is not JSON ({error})") from error
    if not isinstance(read, dict):
        raise EngineError(f"{where}: its json_schema is a JSON {type(read).__name__}, an object is wanted")


def _check_ids(token_ids: Sequence[int], *, where: str, vocab_size: int | None) -> None:
    if not token_ids:
        raise EngineError(f"{where} is empty: an engine needs at least one token")
    if min(token_ids) < 0 or (vocab_size is not None and max(token_ids) >= vocab_size):
        # An id outside the embedding reads other memory on some engines instead of failing.
        bad = next(i for i in token_ids if i < 0 or (vocab_size is not None and i >= vocab_size))
        raise EngineError(f"{where} holds token id {bad}, outside the model's vocabulary of {vocab_size}")
