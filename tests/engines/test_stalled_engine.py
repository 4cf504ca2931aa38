"""An engine that is stopped or hangs is said, given up and started again; one that works is left alone."""

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

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, LoglikelihoodRequest
from alignloop.engines.pipe import Pipe
from alignloop.engines.process import EngineProcess
from alignloop.engines.watch import CallWatch, Pace, Stalled, Work, tokens_made

CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=8, stall_seconds=3.0)
GREEDY = GenerateRequest(prompt_ids=(5, 6, 7), max_tokens=6, temperature=0.0)
SCORED = LoglikelihoodRequest((5, 6), (7, 8))
BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Iterator[EngineProcess]:
    config = CONFIG.model_copy(update={"max_restarts": 9})
    with EngineProcess(config, log_file=tmp_path_factory.mktemp("log") / "engine.log", say=said.append) as engine:
        yield engine


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", request.param], start_new_session=True)
    yield process.pid
    process.kill()
    process.wait()


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
    engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]
) -> None:
    engine.load_weights(checkpoints.a)
    expected = engine.generate([GREEDY])
    assert stopped_in(engine, lambda: engine.generate([GREEDY]), said) == expected
    assert engine.num_starts == 2


@pytest.mark.slow
def test_whatever_it_is_asked(engine: EngineProcess, checkpoints: SimpleNamespace, said: list[str]) -> None:
    engine.load_weights(checkpoints.a)
    expected = engine.loglikelihood([SCORED])
    assert stopped_in(engine, lambda: engine.loglikelihood([SCORED]), said) == expected
    stopped_in(engine, lambda: engine.load_weights(checkpoints.b), said)
    stopped_in(engine, engine.sleep, said)
    stopped_in(engine, engine.wake, said)
    # More than a socket takes: a process that is stopped does not read it.
    many = [LoglikelihoodRequest(tuple(range(4, 200)), (7, 8))] * 600
    assert len(stopped_in(engine, lambda: engine.loglikelihood(many), said)) == 600  # type: ignore[arg-type]


@pytest.mark.slow
def test_stopped_in_its_start(tmp_path: Path, checkpoints: SimpleNamespace) -> None:
    said: list[str] = []
    with EngineProcess(CONFIG, log_file=tmp_path / "engine.log", say=said.append) as engine:

        def stop_the_first() -> None:
            while (pid := engine.pid) is None:
                time.sleep(0.01)
            time.sleep(0.3)
            os.kill(pid, signal.SIGSTOP)

        threading.Thread(target=stop_the_first).start()
        engine.load_weights(checkpoints.a)
        assert engine.num_starts == 2
    assert any("load_weights" in line and "is stopped" in line for line in said)


@pytest.mark.parametrize("child", [IDLE], indirect=True)
def test_a_silent_process_is_said_after_a_tenth_and_given_up(child: int) -> None:
    said: list[str] = []
    watch = CallWatch("generate", pid=child, limit=1e6, stall_seconds=2.0, say=said.append)
    with pytest.raises(Stalled, match=r"has used no processor time for [2-9] s \(engine\.stall_seconds: 2\)"):
        looked_at(watch, seconds=20.0)
    assert len(said) == 1
    assert f"generate: process {child} has used no processor time" in said[0]


@pytest.mark.parametrize("child", [BUSY], indirect=True)
def test_a_busy_process_has_until_its_limit(child: int) -> None:
    said: list[str] = []
    watch = CallWatch("generate", pid=child, limit=2.5, stall_seconds=1.5, say=said.append)
    with pytest.raises(Stalled, match=r"no end of this call after [2-9] s, at work all the time"):
        looked_at(watch, seconds=20.0)


@pytest.mark.parametrize("child", [BUSY], indirect=True)
def test_a_process_that_goes_on_is_said_to(child: int) -> None:
    said: list[str] = []
    watch = CallWatch("generate", pid=child, limit=1e6, stall_seconds=1e3, say=said.append)
    watch._said_after = 0.6
    os.kill(child, signal.SIGSTOP)
    looked_at(watch, seconds=1.5)
    os.kill(child, signal.SIGCONT)
    looked_at(watch, seconds=1.5)
    assert [line.split(f"process {child} ")[1][:7] for line in said] == ["is stop", "goes on"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The run itself was stopped for an hour: its engine was not given a chance either."""
    watch = CallWatch("generate", pid=os.getpid(), limit=100.0, stall_seconds=50.0, say=lambda line: None)
    watch._looked -= 3600.0
    watch.look()
    assert watch._waited == 1.0


def test_limits_grow_with_what_is_asked() -> None:
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


def test_a_load_may_take_as_long_as_its_weights_are_large(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(4_000_000))
    limit = Pace(EngineConfig(name="transformers")).limit("load_weights", Work.of_weights(tmp_path))
    assert limit == pytest.approx(300 + 900 + 0.2)


def test_a_message_that_stops_half_way_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    looks = []

    def gone() -> bool:
        looks.append(1)
        return True

    theirs.send(b"\0" * 7)  # of a length's 8 bytes
    with pytest.raises(EOFError):
        Pipe(ours, ends=gone).receive()
    with pytest.raises(EOFError):
        Pipe(ours, ends=gone).send(bytes(10_000_000))
    assert len(looks) == 2


def test_what_was_written_before_the_end_is_read() -> None:
    ours, theirs = socket.socketpair()
    Pipe(theirs).send({"a": [1, 2]})
    theirs.close()
    pipe = Pipe(ours, ends=lambda: True)
    assert pipe.receive() == {"a": [1, 2]}
    with pytest.raises(EOFError):
        pipe.receive()


def looked_at(watch: CallWatch, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watch.look()
        time.sleep(0.1)
