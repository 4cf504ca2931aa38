"""Lifetime of an engine's process: it starts, answers, dies, hangs, is interrupted, and answers the same again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_case import interrupted, is_running, plain_greedy, plain_logprobs, resident_mb

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, LoglikelihoodRequest
from alignloop.engines.process import EngineProcess
from alignloop.engines.watch import CallWatch, Pace, Stalled, Work, tokens_made
from alignloop.engines.worker import Pipe
from alignloop.errors import EngineError, ModelError

CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=8)
GREEDY = GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=6, temperature=0.0)
SCORED = LoglikelihoodRequest((5, 6), (7, 8))
BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"


@pytest.fixture
def engine(process_engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]) -> EngineProcess:
    """Serves `a`."""
    process_engine.load_weights(checkpoints.a)
    said.clear()
    return process_engine


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", request.param], start_new_session=True)
    yield process.pid
    process.kill()
    process.wait()


def test_nothing_starts_before_the_first_load(tmp_path: Path) -> None:
    engine = EngineProcess(CONFIG, log_file=tmp_path / "engine.log")
    with pytest.raises(EngineError, match="call load_weights first"):
        engine.generate([GREEDY])
    engine.sleep()
    engine.wake()
    assert (engine.num_starts, engine.pid) == (0, None)


def test_answers_as_transformers_does(engine: EngineProcess, checkpoints: SimpleNamespace) -> None:
    assert engine.generate([GREEDY])[0][0].token_ids == plain_greedy(checkpoints.a, GREEDY.prompt_ids, max_tokens=6)
    (scored,) = engine.loglikelihood([SCORED])
    assert scored.logprobs == pytest.approx(plain_logprobs(checkpoints.a, (5, 6), (7, 8)), abs=1e-4)
    assert engine.generate([]) == engine.loglikelihood([]) == []


def test_neither_ctrl_c_nor_a_folder_that_is_no_checkpoint_ends_it(
    engine: EngineProcess, checkpoints: SimpleNamespace, tmp_path: Path
) -> None:
    num_starts, pid = engine.num_starts, engine.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert engine.generate([GREEDY])
    with pytest.raises(ModelError, match=r"no config\.json"):
        engine.load_weights(tmp_path)
    engine.load_weights(checkpoints.a)
    assert (engine.num_starts, engine.pid) == (num_starts, pid)


def test_its_memory_is_the_childs_alone(engine: EngineProcess) -> None:
    before = resident_mb(os.getpid())
    engine.generate([GenerateRequest(prompt_ids=(5, 6), max_tokens=8, seed=1)] * 8)
    assert engine.pid is not None
    assert resident_mb(engine.pid) > 100
    assert resident_mb(os.getpid()) - before < 30


@pytest.mark.slow
def test_interrupted_call_does_not_answer_the_next_one(engine: EngineProcess) -> None:
    expected, num_starts, pid = engine.generate([GREEDY]), engine.num_starts, engine.pid
    assert pid is not None
    with interrupted(after=0.5):
        engine.generate([GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=250, seed=seed) for seed in range(50)])
    assert not is_running(pid)
    assert engine.generate([GREEDY]) == expected
    assert engine.num_starts == num_starts + 1


@pytest.mark.slow
def test_dead_between_calls_it_is_started_again(
    engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]
) -> None:
    engine.load_weights(checkpoints.b)
    expected, num_starts = engine.generate([GREEDY]), engine.num_starts
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert engine.generate([GREEDY]) == expected
    assert len(said) == engine.num_starts - num_starts == 1


def test_close_leaves_no_process_and_may_be_repeated(engine: EngineProcess) -> None:
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


def stopped_in(engine: EngineProcess, call: Callable[[], object], said: list[str]) -> object:
    """What a call gives whose engine is stopped before it is made."""
    said.clear()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    result = call()
    assert any(f"process {pid} is stopped (`kill -CONT {pid}` lets it go on)" in line for line in said)
    assert any("given up: is stopped" in line and "(engine.stall_seconds: 3)" in line for line in said)
    assert not Path(f"/proc/{pid}").exists()
    return result


def test_a_stopped_engine_is_said_and_started_again_and_answers_the_same(
    engine: EngineProcess, said: list[str]
) -> None:
    expected, num_starts = engine.generate([GREEDY]), engine.num_starts
    assert stopped_in(engine, lambda: engine.generate([GREEDY]), said) == expected
    assert engine.num_starts == num_starts + 1


@pytest.mark.slow
def test_whatever_it_is_asked(engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]) -> None:
    expected = engine.loglikelihood([SCORED])
    assert stopped_in(engine, lambda: engine.loglikelihood([SCORED]), said) == expected
    stopped_in(engine, lambda: engine.load_weights(checkpoints.b), said)
    stopped_in(engine, engine.sleep, said)
    stopped_in(engine, engine.wake, said)
    # More than a socket takes: a process that is stopped does not read it.
    many = [LoglikelihoodRequest(tuple(range(4, 200)), (7, 8))] * 600
    assert len(stopped_in(engine, lambda: engine.loglikelihood(many), said)) == 600  # type: ignore[arg-type]


@pytest.mark.slow
def test_stopped_in_its_start(process_engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]) -> None:
    process_engine.close()
    said.clear()
    num_starts = process_engine.num_starts

    def stop_the_first() -> None:
        while (pid := process_engine.pid) is None:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(pid, signal.SIGSTOP)

    threading.Thread(target=stop_the_first).start()
    process_engine.load_weights(checkpoints.a)
    assert process_engine.num_starts == num_starts + 2
    assert any("load_weights" in line and "is stopped" in line for line in said)


def looked_at(watch: CallWatch, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watch.look()
        time.sleep(0.1)


@pytest.mark.parametrize("child", [IDLE], indirect=True)
def test_a_silent_process_is_said_after_a_tenth_and_given_up(child: int) -> None:
    lines: list[str] = []
    watch = CallWatch("generate", pid=child, limit=1e6, stall_seconds=2.0, say=lines.append)
    with pytest.raises(Stalled, match=r"has used no processor time for [2-9] s \(engine\.stall_seconds: 2\)"):
        looked_at(watch, seconds=20.0)
    assert len(lines) == 1
    assert f"generate: process {child} has used no processor time" in lines[0]


@pytest.mark.parametrize("child", [BUSY], indirect=True)
def test_a_busy_process_has_until_its_limit_and_one_that_goes_on_is_said_to(child: int) -> None:
    lines: list[str] = []
    watch = CallWatch("generate", pid=child, limit=5.0, stall_seconds=3.0, say=lines.append)
    os.kill(child, signal.SIGSTOP)
    looked_at(watch, seconds=1.0)
    os.kill(child, signal.SIGCONT)
    with pytest.raises(Stalled, match=r"no end of this call after [5-9] s, at work all the time"):
        looked_at(watch, seconds=20.0)
    assert [line.split(f"process {child} ")[1][:7] for line in lines] == ["is stop", "goes on"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The run itself was stopped for an hour: its engine was not given a chance either."""
    watch = CallWatch("generate", pid=os.getpid(), limit=100.0, stall_seconds=50.0, say=lambda line: None)
    watch._looked -= 3600.0
    watch.look()
    assert watch._waited == 1.0


def test_limits_grow_with_what_is_asked(tmp_path: Path) -> None:
    """300 + 1 a token of the longest + 1 a token of all; once a call made 400 tokens in 2 s, 20 x 0.005 of all."""
    pace = Pace(EngineConfig(name="transformers"))
    requests = [GenerateRequest((1,) * 10, max_tokens=90, num_candidates=4), GenerateRequest((1,) * 30, max_tokens=20)]
    work = Work.of_generate(requests)
    assert (work.tokens, work.longest) == (10 + 4 * 90 + 30 + 20, 100)
    assert pace.limit("generate", work) == 300 + 100 + 420
    made = [[Completion((1,) * 80, "stop")] * 4, [Completion((1,) * 40, "stop")]]
    assert tokens_made(requests, made) == 400
    pace.took("generate", seconds=2.0, tokens=400)
    assert pace.limit("generate", work) == pytest.approx(300 + 100 + 20 * 0.005 * 420)
    pace.took("generate", seconds=1.0, tokens=1000)  # a faster call makes no later one late
    assert pace.limit("generate", work) == pytest.approx(300 + 100 + 42)
    scoring = Work.of_loglikelihood([SCORED, LoglikelihoodRequest((1,) * 5, (2,))])
    assert pace.limit("loglikelihood", scoring) == 300 + 6 + 10
    # A load may take 15 minutes, and as long as its weights are large: 4 MB are a fifth of a second.
    (tmp_path / "model.safetensors").write_bytes(bytes(4_000_000))
    assert pace.limit("load_weights", Work.of_weights(tmp_path)) == pytest.approx(300 + 900 + 0.2)


def test_a_message_that_stops_half_way_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    looks: list[int] = []
    theirs.send(b"\0" * 7)  # of a length's 8 bytes
    with pytest.raises(EOFError):
        Pipe(ours, ends=lambda: not looks.append(1)).receive()  # type: ignore[func-returns-value]
    with pytest.raises(EOFError):
        Pipe(ours, ends=lambda: not looks.append(1)).send(bytes(10_000_000))  # type: ignore[func-returns-value]
    assert len(looks) == 2


def test_what_was_written_before_the_end_is_read() -> None:
    ours, theirs = socket.socketpair()
    Pipe(theirs).send({"a": [1, 2]})
    theirs.close()
    pipe = Pipe(ours, ends=lambda: True)
    assert pipe.receive() == {"a": [1, 2]}
    with pytest.raises(EOFError):
        pipe.receive()
