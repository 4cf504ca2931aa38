"""An engine's process ends with its run, whatever way that ends, and leaves no process and no file of any kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_case import is_running

from alignloop.config.engine import EngineConfig
from alignloop.engines.watch import group_members

TRANSFORMERS = EngineConfig(name="transformers", dtype="float32", max_model_len=256, max_num_seqs=8)
VLLM = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gb=0.01)
RUN = """
import os, signal, sys
from pathlib import Path
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest
from alignloop.engines.open import open_engine

config, log_file, checkpoint = EngineConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
engine = open_engine(config, log_file=log_file)
engine.load_weights(checkpoint)
engines = getattr(engine, "engines", [engine])
print(*[one.pid for one in engines], flush=True)
work = [GenerateRequest(prompt_ids=(5, 6), max_tokens=200, seed=i) for i in range(200)]
"""
ENDS = {
    "killed at work": ("engine.generate(work)", signal.SIGKILL),
    "terminated at work": ("engine.generate(work)", signal.SIGTERM),
    "interrupted at work": ("engine.generate(work)", signal.SIGINT),
    "an exception in a with block": ("with engine:\n    raise ValueError", None),
    "an exception without one": ("raise ValueError", None),
    "its engine killed, then left": ("os.kill(engines[-1].pid, signal.SIGKILL)", None),
}


def gone_within(pids: list[int], seconds: float) -> bool:
    """Whether the groups the children lead are gone: processes that vLLM starts are in them."""

    def running() -> bool:
        return any(is_running(member) for pid in pids for member in group_members(pid))

    deadline = time.monotonic() + seconds
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running()


def shared_files(pid: int) -> set[Path]:
    """Files in shared memory that a process has mapped or open."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[-1] for line in maps if "/dev/shm/" in line}
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    return {Path(name) for name in mapped | opened if name.startswith("/dev/shm/")}


def end(config: EngineConfig, how: str, *, checkpoint: Path, folder: Path) -> list[int]:
    """Ids of the engines of a run that ended that way and left nothing."""
    last, signum = ENDS[how]
    temporary = folder / "tmp"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN + last, config.model_dump_json(), str(folder / "engine.log"), str(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert children, (folder / "engine.log").read_text()[-2000:]
    shared: set[Path] = set()
    if signum is not None:
        time.sleep(0.5)  # into the call, which does not read the pipe
        assert all(is_running(pid) for pid in children)
        shared = {file for pid in children for file in shared_files(pid)}
        parent.send_signal(signum)
    parent.wait(timeout=30)
    parent.stdout.close()
    assert gone_within(children, 5.0)
    assert list(temporary.rglob("*")) == []
    assert [file for file in shared if file.exists()] == []
    return children


@pytest.mark.parametrize("how", ENDS)
def test_no_process_and_no_file_is_left(how: str, checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    end(TRANSFORMERS, how, checkpoint=checkpoints.a, folder=tmp_path)


def test_nor_by_vllm(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    """Threads, sockets and shared memory are vLLM's own; how its process ends is the same for both engines."""
    pytest.importorskip("vllm")
    end(VLLM, "killed at work", checkpoint=checkpoints.a, folder=tmp_path)


@pytest.mark.slow
def test_nor_by_engines_side_by_side(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    config = TRANSFORMERS.model_copy(update={"data_parallel": 2})
    assert len(end(config, "killed at work", checkpoint=checkpoints.a, folder=tmp_path)) == 2
