"""Lifetime of the engine process, with the transformers engine inside: it starts sooner, all else is the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.engines.environment import child_environment
from alignloop.engines.open import FALLBACK, open_engine
from alignloop.engines.process import EngineProcess
from alignloop.errors import EngineError, ModelError, UserError
from alignloop.loop.check import check

CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=8)
GREEDY = GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=6, temperature=0.0)
LONG = [GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=250, seed=seed) for seed in range(50)]


@pytest.fixture(scope="module")
def starts() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, starts: list[str]) -> Iterator[EngineProcess]:
    with EngineProcess(CONFIG, log_file=tmp_path_factory.mktemp("log") / "engine.log", say=starts.append) as engine:
        yield engine


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_nothing_starts_before_the_first_load(engine: EngineProcess) -> None:
    assert (engine.num_starts, engine.pid) == (0, None)
    with pytest.raises(EngineError, match="call load_weights first"):
        engine.generate([GREEDY])
    engine.sleep()
    engine.wake()
    assert engine.num_starts == 0


def test_answers_as_transformers_does(
    engine: EngineProcess, checkpoints: SimpleNamespace, plain_forward: SimpleNamespace, starts: list[str]
) -> None:
    engine.load_weights(checkpoints.a)
    expected = plain_forward.greedy(checkpoints.a, GREEDY.prompt_ids, max_tokens=6)
    assert engine.generate([GREEDY])[0][0].token_ids == expected
    scored = engine.loglikelihood([LoglikelihoodRequest((5, 6), (7, 8))])[0]
    assert scored.logprobs == pytest.approx(plain_forward.logprobs(checkpoints.a, (5, 6), (7, 8)), abs=1e-4)
    assert len(starts) == engine.num_starts == 1


def test_empty_calls_are_answered(engine: EngineProcess) -> None:
    assert engine.generate([]) == []
    assert engine.loglikelihood([]) == []


def test_ctrl_c_does_not_reach_the_child(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    engine.load_weights(checkpoints.a)
    assert engine.pid is not None
    assert os.getpgid(engine.pid) != os.getpgid(0)
    os.kill(engine.pid, signal.SIGINT)
    assert engine.generate([GREEDY])
    assert engine.num_starts == 1


def test_a_checkpoint_that_is_none_is_refused_and_the_engine_lives_on(
    engine: EngineProcess, checkpoints: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        engine.load_weights(tmp_path)
    engine.load_weights(checkpoints.a)
    assert engine.num_starts == 1


@pytest.mark.slow
def test_interrupted_call_does_not_answer_the_next_one(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    engine.load_weights(checkpoints.a)
    expected = engine.generate([GREEDY])
    pid = engine.pid
    assert pid is not None

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(LONG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not is_running(pid)
    assert engine.generate([GREEDY]) == expected
    assert engine.num_starts == 2


@pytest.mark.slow
def test_dead_between_calls_it_is_started_again(
    engine: EngineProcess, checkpoints: SimpleNamespace, starts: list[str]
) -> None:
    engine.load_weights(checkpoints.b)
    expected = engine.generate([GREEDY])
    num_starts = engine.num_starts
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert engine.generate([GREEDY]) == expected
    assert len(starts) == engine.num_starts == num_starts + 1


def test_close_leaves_no_process_and_may_be_repeated(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    engine.load_weights(checkpoints.a)
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    assert not is_running(pid)
    assert engine.pid is None


@pytest.mark.slow
def test_broken_weights_and_a_death_too_many(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoints.a.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text((broken / "config.json").read_text().replace('"llama"', '"llamma"'))
    log_file = tmp_path / "engine.log"
    with EngineProcess(CONFIG.model_copy(update={"max_restarts": 0}), log_file=log_file) as engine:
        with pytest.raises(EngineError, match=r"(?s)load_weights failed in the engine: .*engine\.log"):
            engine.load_weights(broken)
        assert engine.pid is None
        assert "Traceback" in log_file.read_text()
        engine.load_weights(checkpoints.a)  # an error that came back in words is no death
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"died 1 times .*engine\.max_restarts: 0.*generate: killed by signal 9"):
            engine.generate([GREEDY])


def test_environment_is_fixed_before_the_child_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    environment = child_environment(CONFIG)
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment  # it would go before engine.kv_cache_gb
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["OMP_NUM_THREADS"] == "3"  # the user's own choice stays
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"


def test_vllm_asked_for_and_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("alignloop.engines.open.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"engine\.name: transformers"):
        open_engine(EngineConfig(name="vllm"), log_file=tmp_path / "engine.log")


def test_transformers_generates_where_vllm_is_not_installed_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("alignloop.engines.open", "alignloop.config.engine"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    said: list[str] = []
    with open_engine(
        EngineConfig(dtype="float32", max_model_len=256), log_file=tmp_path / "engine.log", say=said.append
    ) as engine:
        engine.load_weights(QUICKSTART / "base")
        assert engine.generate([GREEDY])[0][0].token_ids
    assert FALLBACK in said

    recipe = load_recipe("quickstart")
    assert recipe.engine.name == "transformers"
    assert FALLBACK in check(recipe).notes
    assert FALLBACK in check(load_recipe(recipe)).notes  # a run reads what the command line has read once more
    named = load_recipe("quickstart", overrides=["engine.name=transformers"])
    assert FALLBACK not in check(named).notes


def test_run_and_plan_say_that_transformers_generates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alignloop: Callable[..., Any]
) -> None:
    for module in ("alignloop.engines.open", "alignloop.config.engine"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    # A disk without room: the run ends when it has said what it is about to do.
    monkeypatch.setattr("alignloop.loop.check.shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    ran = alignloop("run", "quickstart", "--run-dir", str(tmp_path / "run"))
    assert ran.code != 0
    assert "free" in ran.err
    assert " ".join(ran.out.split()).count("vLLM is not installed: the transformers engine generates") == 1
    assert "vLLM is not installed: the transformers engine generates" in " ".join(alignloop("plan").out.split())
