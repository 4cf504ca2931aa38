from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from engine_case import plain_greedy, plain_logprobs

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import EngineError

CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=4)


@pytest.fixture(scope="module")
def engine(checkpoints: SimpleNamespace) -> TransformersEngine:
    engine = TransformersEngine(CONFIG)
    with pytest.raises(EngineError, match="load_weights first"):
        engine.generate([GenerateRequest(prompt_ids=(5,), max_tokens=1)])
    engine.load_weights(checkpoints.a)
    return engine


def test_greedy_in_padded_batches_equals_one_at_a_time(
    engine: TransformersEngine, checkpoints: SimpleNamespace
) -> None:
    prompts = [tuple(range(10, 10 + length)) for length in (3, 17, 5, 9, 30, 4)]  # two batches of at most four
    requests = [GenerateRequest(prompt_ids=p, max_tokens=8, temperature=0.0, num_candidates=2) for p in prompts]
    for request, candidates in zip(requests, engine.generate(requests), strict=True):
        expected = plain_greedy(checkpoints.a, request.prompt_ids, max_tokens=8)
        assert [c.token_ids for c in candidates] == [expected, expected]


def test_seeded_completions_do_not_depend_on_their_neighbours(engine: TransformersEngine) -> None:
    requests = [GenerateRequest(prompt_ids=(5, 6, 7 + i), max_tokens=12, num_candidates=3, seed=i) for i in range(4)]
    together = engine.generate(requests)
    assert [engine.generate([request])[0] for request in reversed(requests)] == together[::-1]
    assert len({c.token_ids for c in together[0]}) == 3


def test_stop_token_and_stop_string_end_a_completion(engine: TransformersEngine) -> None:
    request = GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=12, temperature=0.0)
    free = engine.generate([request])[0][0]
    stop = free.token_ids[3]
    end = free.token_ids.index(stop) + 1
    for stopping in (replace(request, stop_token_ids=(stop,)), replace(request, stop_strings=(f"w{stop:03d}",))):
        completion = engine.generate([stopping])[0][0]
        assert (completion.token_ids, completion.finish_reason) == (free.token_ids[:end], "stop")
    assert free.finish_reason == "length"


def test_loglikelihood_in_padded_batches(engine: TransformersEngine, checkpoints: SimpleNamespace) -> None:
    greedy = plain_greedy(checkpoints.a, (5, 6, 7), max_tokens=3)
    requests = [
        LoglikelihoodRequest((5, 6, 7), greedy),
        LoglikelihoodRequest(tuple(range(40, 70)), (9, 8, 7, 6)),
        LoglikelihoodRequest((4,), (4,)),
    ]
    results = engine.loglikelihood(requests)
    for request, result in zip(requests, results, strict=True):
        expected = plain_logprobs(checkpoints.a, request.context_ids, request.continuation_ids)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
    assert [result.is_greedy for result in results[:2]] == [True, False]
