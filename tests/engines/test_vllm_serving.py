"""Real vLLM on CPU, one engine for the file; each test loads the weights it needs (a swap is cheap)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignloop.config.engine import EngineConfig
from alignloop.engines import canary
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.engines.process import EngineProcess
from alignloop.errors import EngineError, UserError


def prompt(seed: int, length: int = 40) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, 512) for _ in range(length))


def sampled(num: int = 4, *, max_tokens: int = 24) -> list[GenerateRequest]:
    return [GenerateRequest(prompt_ids=prompt(i), max_tokens=max_tokens, num_candidates=3, seed=i) for i in range(num)]


def test_same_seeds_give_the_same_ids_whatever_ran_before(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.a)
    first = vllm_engine.generate(sampled())
    vllm_engine.generate([GenerateRequest(prompt_ids=prompt(0), max_tokens=8)])  # fills the prefix cache, draws
    assert vllm_engine.generate(sampled()) == first


def test_candidates_of_a_prompt_differ_and_neighbouring_seeds_share_none(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.a)
    one = GenerateRequest(prompt_ids=prompt(0), max_tokens=24, num_candidates=4, seed=7)
    candidates = [c.token_ids for group in vllm_engine.generate([one, replace(one, seed=8)]) for c in group]
    assert len(candidates) == 8
    assert len(set(candidates)) == 8


def test_greedy_equals_transformers(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.a)
    request = GenerateRequest(prompt_ids=prompt(3), max_tokens=16, num_candidates=2, temperature=0.0, seed=5)
    (candidates,) = vllm_engine.generate([request])
    expected = plain_forward.greedy(checkpoints.a, prompt(3), max_tokens=16)
    assert [c.token_ids for c in candidates] == [expected, expected]


def test_stop_token_is_kept_and_ends_the_completion(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    vllm_engine.load_weights(checkpoints.a)
    request = GenerateRequest(prompt_ids=prompt(3), max_tokens=16, temperature=0.0)
    free = vllm_engine.generate([request])[0][0]
    stop = free.token_ids[5]
    end = free.token_ids.index(stop) + 1
    stopped = vllm_engine.generate([replace(request, stop_token_ids=(stop,))])[0][0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:end], "stop")
    assert free.finish_reason == "length"


def test_stop_string_ends_the_completion(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    vllm_engine.load_weights(checkpoints.a)
    request = GenerateRequest(prompt_ids=prompt(3), max_tokens=16, temperature=0.0)
    free = vllm_engine.generate([request])[0][0]
    end = free.token_ids.index(free.token_ids[5]) + 1
    stopped = vllm_engine.generate([replace(request, stop_strings=(f"w{free.token_ids[5]:03d}",))])[0][0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:end], "stop")


def test_loglikelihood_equals_a_plain_forward_pass(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.b)
    greedy = plain_forward.greedy(checkpoints.b, prompt(4), max_tokens=4)
    requests = [
        LoglikelihoodRequest(context_ids=prompt(4), continuation_ids=prompt(5, 9)),
        LoglikelihoodRequest(context_ids=prompt(4), continuation_ids=greedy),
        LoglikelihoodRequest(context_ids=(9,), continuation_ids=(8,)),
    ]
    scored = vllm_engine.loglikelihood(requests)
    for request, result in zip(requests, scored, strict=True):
        expected = plain_forward.logprobs(checkpoints.b, request.context_ids, request.continuation_ids)
        assert result.logprobs == pytest.approx(expected, abs=1e-3)
    assert [result.is_greedy for result in scored[:2]] == [False, True]


def test_one_token_continuations_share_a_pass_and_equal_a_plain_forward_pass(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    """More of them than one pass reads, twice the same, two contexts with a long beginning in common, one longer."""
    vllm_engine.load_weights(checkpoints.b)
    shots = prompt(3) * 4
    contexts = [shots + prompt(4), shots + prompt(5), prompt(6)]
    greedy = plain_forward.greedy(checkpoints.b, contexts[0], max_tokens=1)
    requests = [LoglikelihoodRequest(contexts[0], (token,)) for token in (*range(5, 30), 7, *greedy)]
    requests += [LoglikelihoodRequest(contexts[1], (9,)), LoglikelihoodRequest(contexts[2], (9, 10))]
    requests = requests[::2] + requests[1::2]
    scored = vllm_engine.loglikelihood(requests)
    for request, result in zip(requests, scored, strict=True):
        expected = plain_forward.logprobs(checkpoints.b, request.context_ids, request.continuation_ids)
        assert result.logprobs == pytest.approx(expected, abs=1e-3)
        if request.context_ids == contexts[0]:
            assert result.is_greedy is (request.continuation_ids == tuple(greedy))


def test_swap_moves_the_tied_head_and_comes_back(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    # tolerance 1e-3 in the fixture: a head left behind fails the canary inside load_weights as well
    request = LoglikelihoodRequest(context_ids=prompt(6), continuation_ids=prompt(7, 5))
    for checkpoint in (checkpoints.a, checkpoints.b, checkpoints.a):
        vllm_engine.load_weights(checkpoint)
        expected = plain_forward.logprobs(checkpoint, request.context_ids, request.continuation_ids)
        assert vllm_engine.loglikelihood([request])[0].logprobs == pytest.approx(expected, abs=1e-3)
    assert vllm_engine.num_starts == 1


def test_loading_what_is_served_is_free(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    vllm_engine.load_weights(checkpoints.a)
    started = time.monotonic()
    vllm_engine.load_weights(checkpoints.a)
    assert time.monotonic() - started < 0.05


def test_canary_sees_other_weights(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    vllm_engine.load_weights(checkpoints.a)
    with pytest.raises(EngineError, match="disagrees with a plain forward pass"):
        canary.check(vllm_engine.loglikelihood, checkpoint=checkpoints.b, dtype="float32", tolerance=0.1)


def test_canary_sees_a_swap_that_did_not_happen_under_its_tolerance(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.a)
    check = {"dtype": "float32", "tolerance": 0.1}
    before = canary.check(vllm_engine.loglikelihood, checkpoint=checkpoints.a, **check)
    stale = canary.check(vllm_engine.loglikelihood, checkpoint=checkpoints.nudged, **check)
    assert 0 < stale.mean_difference < 0.1  # the tolerance alone does not see it
    with pytest.raises(EngineError, match="kept the old weights"):
        canary.check(vllm_engine.loglikelihood, checkpoint=checkpoints.nudged, before=before, **check)


def test_too_long_is_refused_and_the_engine_lives_on(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    vllm_engine.load_weights(checkpoints.a)
    with pytest.raises(EngineError, match=r"prompt of 200 tokens .* up to 57 .* 257 tokens, .*max_model_len \(256\)"):
        vllm_engine.generate([GenerateRequest(prompt_ids=prompt(0, 200), max_tokens=57)])
    longest = GenerateRequest(prompt_ids=prompt(0, 200), max_tokens=56, temperature=0.0)
    assert len(vllm_engine.generate([longest])[0][0].token_ids) <= 56
    assert len(vllm_engine.loglikelihood([LoglikelihoodRequest(prompt(0, 200), prompt(1, 55))])[0].logprobs) == 55


@pytest.mark.slow
def test_killed_in_mid_run_it_is_started_again_with_the_same_result(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    """Also: an engine started fresh on `b` gives what the engine swapped to `b` gave, in another process."""
    vllm_engine.load_weights(checkpoints.a)
    vllm_engine.load_weights(checkpoints.b)
    requests = sampled(60, max_tokens=200)
    expected = vllm_engine.generate(requests)
    num_starts = vllm_engine.num_starts
    pid = vllm_engine.pid
    assert pid is not None
    killer = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert vllm_engine.generate(requests) == expected
    killer.join()
    assert vllm_engine.num_starts == num_starts + 1
    assert vllm_engine.pid != pid


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_swaps_leave_memory_where_it_was(vllm_engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    both = [checkpoints.a, checkpoints.b]
    for checkpoint in both * 2:  # the first ones fill allocators
        vllm_engine.load_weights(checkpoint)
    pid = vllm_engine.pid
    assert pid is not None
    before = resident_mb(pid)
    for number in range(15):
        vllm_engine.load_weights(both[number % 2])
        vllm_engine.generate(sampled(1, max_tokens=4))
    # The weights are 3 MB: 15 copies left behind are 45.
    assert resident_mb(pid) - before < 15
    assert vllm_engine.pid == pid


def test_swap_drops_the_blocks_of_a_shared_prompt(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    request = GenerateRequest(prompt_ids=prompt(8, 100), max_tokens=12, temperature=0.0)  # three full blocks
    for checkpoint in (checkpoints.a, checkpoints.b, checkpoints.a):
        vllm_engine.load_weights(checkpoint)
        expected = plain_forward.greedy(checkpoint, request.prompt_ids, max_tokens=12)
        assert vllm_engine.generate([request])[0][0].token_ids == expected


@pytest.mark.slow
def test_untied_heads_are_swapped_after_a_start_of_their_own(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace
) -> None:
    vllm_engine.load_weights(checkpoints.a)
    num_starts = vllm_engine.num_starts
    request = LoglikelihoodRequest(context_ids=prompt(6), continuation_ids=prompt(7, 5))
    for checkpoint in (checkpoints.untied, checkpoints.untied_b, checkpoints.untied):
        vllm_engine.load_weights(checkpoint)
        expected = plain_forward.logprobs(checkpoint, request.context_ids, request.continuation_ids)
        assert vllm_engine.loglikelihood([request])[0].logprobs == pytest.approx(expected, abs=1e-3)
    assert vllm_engine.num_starts == num_starts + 1  # another architecture than the tied one's


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
