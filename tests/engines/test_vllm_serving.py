"""Real vLLM on CPU, one engine for the folder; each test loads the weights it needs (a swap is cheap)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_case import plain_greedy, plain_logprobs, resident_mb
from jsonschema import validate
from transformers import PreTrainedTokenizerFast

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.engines.plain import check_served
from alignloop.engines.process import EngineProcess
from alignloop.errors import EngineError, UserError

SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"enum": ["first", "second", "tie"]},
        "points": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["winner", "points"],
    "additionalProperties": False,
}


def prompt(seed: int, length: int = 40) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, 512) for _ in range(length))


def sampled(num: int = 4, *, max_tokens: int = 24) -> list[GenerateRequest]:
    return [GenerateRequest(prompt_ids=prompt(i), max_tokens=max_tokens, num_candidates=3, seed=i) for i in range(num)]


@pytest.fixture
def engine(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> EngineProcess:
    """Serves `a`."""
    vllm_engine.load_weights(checkpoints.a)
    return vllm_engine


def test_same_seeds_give_the_same_ids_whatever_ran_before(engine: EngineProcess) -> None:
    first = engine.generate(sampled())
    engine.generate([GenerateRequest(prompt_ids=prompt(0), max_tokens=8)])  # fills the prefix cache, draws
    assert engine.generate(sampled()) == first


def test_candidates_of_a_prompt_differ_and_neighbouring_seeds_share_none(engine: EngineProcess) -> None:
    one = GenerateRequest(prompt_ids=prompt(0), max_tokens=24, num_candidates=4, seed=7)
    candidates = [c.token_ids for group in engine.generate([one, replace(one, seed=8)]) for c in group]
    assert len(candidates) == len(set(candidates)) == 8


def test_greedy_equals_transformers(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    request = GenerateRequest(prompt_ids=prompt(3), max_tokens=16, num_candidates=2, temperature=0.0, seed=5)
    (candidates,) = engine.generate([request])
    assert [c.token_ids for c in candidates] == [plain_greedy(checkpoints.a, prompt(3), max_tokens=16)] * 2


def test_stop_token_and_stop_string_end_a_completion(engine: EngineProcess) -> None:
    request = GenerateRequest(prompt_ids=prompt(3), max_tokens=16, temperature=0.0)
    free = engine.generate([request])[0][0]
    stop = free.token_ids[5]
    end = free.token_ids.index(stop) + 1
    for stopping in (replace(request, stop_token_ids=(stop,)), replace(request, stop_strings=(f"w{stop:03d}",))):
        stopped = engine.generate([stopping])[0][0]
        assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:end], "stop")
    assert free.finish_reason == "length"


def test_loglikelihood_equals_a_plain_forward_pass(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    """One-token continuations share a pass: more of them than one pass reads, twice the same, two contexts with a long
    beginning in common."""
    engine.load_weights(checkpoints.b)
    shots = prompt(3) * 4
    contexts = [shots + prompt(4), shots + prompt(5), prompt(6)]
    greedy = plain_greedy(checkpoints.b, contexts[0], max_tokens=1)
    requests = [LoglikelihoodRequest(contexts[0], (token,)) for token in (*range(5, 30), 7, *greedy)]
    requests += [LoglikelihoodRequest(contexts[1], (9,)), LoglikelihoodRequest(contexts[2], (9, 10))]
    requests = requests[::2] + requests[1::2]
    requests += [LoglikelihoodRequest(prompt(4), prompt(5, 9)), LoglikelihoodRequest((9,), (8,))]
    requests += [LoglikelihoodRequest(prompt(4), plain_greedy(checkpoints.b, prompt(4), max_tokens=4))]
    scored = engine.loglikelihood(requests)
    for request, result in zip(requests, scored, strict=True):
        expected = plain_logprobs(checkpoints.b, request.context_ids, request.continuation_ids)
        assert result.logprobs == pytest.approx(expected, abs=1e-3)
        if request.context_ids == contexts[0]:
            assert result.is_greedy is (request.continuation_ids == greedy)
    assert [result.is_greedy for result in (scored[-3], scored[-1])] == [False, True]


def test_swap_moves_the_tied_head_drops_shared_blocks_and_comes_back(
    engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    # tolerance 1e-3 in the fixture: a head left behind fails the canary inside load_weights as well
    scored = LoglikelihoodRequest(context_ids=prompt(6), continuation_ids=prompt(7, 5))
    greedy = GenerateRequest(prompt_ids=prompt(8, 100), max_tokens=12, temperature=0.0)  # three full blocks
    num_starts = engine.num_starts
    for checkpoint in (checkpoints.a, checkpoints.b, checkpoints.a):
        engine.load_weights(checkpoint)
        expected = plain_logprobs(checkpoint, scored.context_ids, scored.continuation_ids)
        assert engine.loglikelihood([scored])[0].logprobs == pytest.approx(expected, abs=1e-3)
        expected_ids = plain_greedy(checkpoint, greedy.prompt_ids, max_tokens=12)
        assert engine.generate([greedy])[0][0].token_ids == expected_ids
    assert engine.num_starts == num_starts


def test_loading_what_is_served_is_free(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    started = time.monotonic()
    engine.load_weights(checkpoints.a)
    assert time.monotonic() - started < 0.05


def test_canary_sees_other_weights_and_a_swap_that_did_not_happen_under_its_tolerance(
    engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    check: dict[str, Any] = {"dtype": "float32", "tolerance": 0.1}
    with pytest.raises(EngineError, match="disagrees with a plain forward pass"):
        check_served(engine.loglikelihood, checkpoint=checkpoints.b, **check)
    before = check_served(engine.loglikelihood, checkpoint=checkpoints.a, **check)
    stale = check_served(engine.loglikelihood, checkpoint=checkpoints.nudged, **check)
    assert 0 < stale.mean_difference < 0.1  # the tolerance alone does not see it
    with pytest.raises(EngineError, match="kept the old weights"):
        check_served(engine.loglikelihood, checkpoint=checkpoints.nudged, before=before, **check)


def test_too_long_is_refused_and_the_engine_lives_on(engine: EngineProcess) -> None:
    with pytest.raises(EngineError, match=r"prompt of 200 tokens .* up to 57 .* 257 tokens, .*max_model_len \(256\)"):
        engine.generate([GenerateRequest(prompt_ids=prompt(0, 200), max_tokens=57)])
    longest = GenerateRequest(prompt_ids=prompt(0, 200), max_tokens=56, temperature=0.0)
    assert len(engine.generate([longest])[0][0].token_ids) <= 56
    assert len(engine.loglikelihood([LoglikelihoodRequest(prompt(0, 200), prompt(1, 55))])[0].logprobs) == 55


def judged(*, schema: object = None, seed: int = 1) -> GenerateRequest:
    text = None if schema is None else json.dumps(schema)
    return GenerateRequest(prompt(9), max_tokens=100, num_candidates=4, temperature=1.5, seed=seed, json_schema=text)


def test_every_completion_parses_and_fits_the_schema(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    engine.load_weights(checkpoints.spelled)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoints.spelled)
    requests = [judged(schema=SCHEMA), judged(), judged(schema=SCHEMA, seed=2)]
    held, free, held_again = engine.generate(requests)
    for completion in [*held, *held_again]:
        assert completion.finish_reason == "stop"
        validate(json.loads(tokenizer.decode(completion.token_ids, skip_special_tokens=True)), SCHEMA)
    assert engine.generate([judged()]) == [free]  # a neighbour's schema changes nothing
    assert engine.generate([judged(schema=SCHEMA)]) == [held]


def test_a_schema_that_cannot_be_held_to_is_refused_and_the_engine_lives_on(
    engine: EngineProcess, checkpoints: SimpleNamespace, tmp_path: Path
) -> None:
    num_starts = engine.num_starts
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoints.a / name, bare / name)
    engine.load_weights(bare)
    with pytest.raises(EngineError, match=r"bare: its tokenizer cannot be read, which .* JSON schemas need"):
        engine.generate([judged(schema=SCHEMA)])
    assert engine.generate([judged()])
    engine.load_weights(checkpoints.spelled)
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(EngineError, match="cannot hold completions to a JSON schema"):
        engine.generate([judged(), judged(schema=unique)])
    assert engine.generate([judged(schema=SCHEMA)])
    assert engine.num_starts == num_starts


@pytest.mark.slow
def test_killed_in_mid_run_it_is_started_again_with_the_same_result(
    engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    """Also: an engine started fresh on `b` gives what the engine swapped to `b` gave, in another process."""
    engine.load_weights(checkpoints.b)
    requests = sampled(60, max_tokens=200)
    expected, num_starts, pid = engine.generate(requests), engine.num_starts, engine.pid
    assert pid is not None
    killer = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert engine.generate(requests) == expected
    killer.join()
    assert engine.num_starts == num_starts + 1
    assert engine.pid != pid


def test_swaps_leave_memory_where_it_was(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    both = [checkpoints.a, checkpoints.b]
    for checkpoint in both * 2:  # the first ones fill allocators
        engine.load_weights(checkpoint)
    pid = engine.pid
    assert pid is not None
    before = resident_mb(pid)
    for number in range(15):
        engine.load_weights(both[number % 2])
        engine.generate(sampled(1, max_tokens=4))
    # The weights are 3 MB: 15 copies left behind are 45.
    assert resident_mb(pid) - before < 15
    assert engine.pid == pid


@pytest.mark.slow
def test_untied_heads_are_swapped_after_a_start_of_their_own(
    engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    num_starts = engine.num_starts
    request = LoglikelihoodRequest(context_ids=prompt(6), continuation_ids=prompt(7, 5))
    for checkpoint in (checkpoints.untied, checkpoints.untied_b, checkpoints.untied):
        engine.load_weights(checkpoint)
        expected = plain_logprobs(checkpoint, request.context_ids, request.continuation_ids)
        assert engine.loglikelihood([request])[0].logprobs == pytest.approx(expected, abs=1e-3)
    assert engine.num_starts == num_starts + 1  # another architecture than the tied one's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("fp9", r"engine\.quantization: fp9 is not one that vLLM has on"),
        ("awq", r"engine\.quantization: awq does not serve .*/a on this machine"),
    ],
)
def test_a_quantisation_that_cannot_be_is_named(
    checkpoints: SimpleNamespace, tmp_path: Path, quantization: str, message: str
) -> None:
    config = EngineConfig(max_model_len=256, quantization=quantization, kv_cache_gb=0.01)
    with (
        EngineProcess(config, log_file=tmp_path / "engine.log") as engine,
        pytest.raises(UserError, match=message),
    ):
        engine.load_weights(checkpoints.a)
