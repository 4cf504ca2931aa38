"""Engines side by side: lifetimes with the transformers engine, which starts sooner; sameness with real vLLM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_case import interrupted, is_running

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.engines.open import open_engine
from alignloop.engines.pool import EnginePool
from alignloop.engines.process import EngineProcess
from alignloop.errors import EngineError

CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=8, data_parallel=2)
REQUESTS = [GenerateRequest(prompt_ids=(5, 6, 7 + i), max_tokens=10 + i, num_candidates=2, seed=i) for i in range(5)]
SCORED = [LoglikelihoodRequest((5, 6 + i), (7, 8)) for i in range(5)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePool]:
    said: list[str] = []
    log_file = tmp_path_factory.mktemp("pool") / "engine.log"
    with open_engine(CONFIG, log_file=log_file, say=said.append) as pool:
        assert isinstance(pool, EnginePool)
        yield pool
    assert {line.rpartition("/")[2] for line in said} == {"engine-0.log", "engine-1.log"}


def pids(pool: EnginePool) -> list[int]:
    return [engine.pid for engine in pool.engines if engine.pid is not None]


def test_results_are_those_of_one_engine_in_the_order_asked(
    pool: EnginePool, process_engine: EngineProcess, checkpoints: SimpleNamespace
) -> None:
    for engine in (pool, process_engine):
        engine.load_weights(checkpoints.a)
    assert pool.num_starts == 2
    assert pool.generate(REQUESTS) == process_engine.generate(REQUESTS)
    for here, there in zip(pool.loglikelihood(SCORED), process_engine.loglikelihood(SCORED), strict=True):
        assert here.logprobs == pytest.approx(there.logprobs, abs=1e-5)  # other rows share the batch
    assert pool.generate([]) == []
    assert pool.generate(REQUESTS[:1]) == pool.generate(REQUESTS)[:1]


def test_a_refused_request_is_named_by_its_place_among_all(pool: EnginePool, checkpoints: SimpleNamespace) -> None:
    pool.load_weights(checkpoints.a)
    with pytest.raises(EngineError, match="generate request 3: a prompt of 3 tokens"):
        pool.generate([*REQUESTS[:3], replace(REQUESTS[3], max_tokens=300), REQUESTS[4]])
    assert pool.num_starts == 2


@pytest.mark.slow
def test_one_that_dies_is_started_again_alone(pool: EnginePool, checkpoints: SimpleNamespace) -> None:
    pool.load_weights(checkpoints.b)
    long = [replace(request, max_tokens=200, seed=i) for i, request in enumerate(REQUESTS * 4)]
    expected = pool.generate(long)
    first, second = pids(pool)
    killer = threading.Timer(0.5, os.kill, (second, signal.SIGKILL))
    killer.start()
    assert pool.generate(long) == expected
    killer.join()
    assert pool.num_starts == 3
    assert pids(pool)[0] == first
    assert pids(pool)[1] != second


@pytest.mark.slow
def test_interrupted_it_ends_both_at_once_and_goes_on_when_asked(
    pool: EnginePool, checkpoints: SimpleNamespace
) -> None:
    pool.load_weights(checkpoints.a)
    expected, busy = pool.generate(REQUESTS), pids(pool)
    with interrupted(after=0.5):
        pool.generate([replace(REQUESTS[0], max_tokens=250, seed=seed) for seed in range(100)])
    assert not any(is_running(pid) for pid in busy)
    assert pool.generate(REQUESTS) == expected


@pytest.mark.slow
def test_a_death_too_many_is_an_error_and_close_ends_all(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_restarts": 0})
    with open_engine(config, log_file=tmp_path / "engine.log") as pool:
        assert isinstance(pool, EnginePool)
        pool.load_weights(checkpoints.a)
        running = pids(pool)
        os.kill(running[1], signal.SIGKILL)
        with pytest.raises(EngineError, match=r"died 1 times .*killed by signal 9"):
            pool.generate(REQUESTS)
        assert is_running(running[0])
    assert not any(is_running(pid) for pid in running)
    pool.close()


@pytest.mark.slow
def test_vllm_gives_the_same_tokens_however_many_engines(
    vllm_engine: EngineProcess, checkpoints: SimpleNamespace, tmp_path: Path
) -> None:
    """Two real vLLM engines against the folder's one; each has its own canary, which load_weights raises from."""
    config = EngineConfig(
        dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gb=0.25, canary_tolerance=1e-3, data_parallel=2
    )
    requests = [GenerateRequest((5, 6, 7 + i), max_tokens=40, num_candidates=3, seed=i) for i in range(9)]
    vllm_engine.load_weights(checkpoints.b)
    expected = vllm_engine.generate(requests)
    with open_engine(config, log_file=tmp_path / "engine.log") as pool:
        pool.load_weights(checkpoints.a)
        pool.load_weights(checkpoints.b)
        assert pool.generate(requests) == expected
        assert pool.num_starts == 2
