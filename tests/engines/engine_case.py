"""What the tests of engines share: processes looked at, a call interrupted, lines that were said, a plain model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from alignloop.config.engine import EngineConfig
from alignloop.engines.worker import child_environment
from alignloop.progress import QuietProgress


class Lines(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def interrupted(*, after: float) -> Iterator[None]:
    """Ctrl-C in the midst of what stands inside, which must end at once."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - started < after + 5


def run_vllm(script: str, *arguments: str) -> Any:
    """The JSON that a process of vLLM's prints last, in the environment of an engine's."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**child_environment(EngineConfig()), "CXX": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def plain_greedy(checkpoint: Path, prompt_ids: tuple[int, ...], *, max_tokens: int, eos: int = 1) -> tuple[int, ...]:
    """Argmax decoding by transformers in this process, one sequence, float32, without a cache."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(max_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == eos:
                break
    return tuple(ids[len(prompt_ids) :])


def plain_logprobs(checkpoint: Path, context: tuple[int, ...], continuation: tuple[int, ...]) -> list[float]:
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        all_logprobs = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    first = len(context) - 1
    return [float(all_logprobs[first + i, token_id]) for i, token_id in enumerate(continuation)]
