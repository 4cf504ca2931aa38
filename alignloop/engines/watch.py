"""Whether an engine at work still works: one that is stopped or hangs is said, and given up after a while.

Two limits on a call. Without a sign of life, which is processor time used by the engine or what it started, it ends
after `engine.stall_seconds`. With it, after a time that grows with the tokens asked for: an endless loop looks like
work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.artifacts import size_of
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, LoglikelihoodRequest
from alignloop.engines.pipe import LOOK_SECONDS

SAID_SECONDS = 30.0
SAID_SHARE = 0.1
"""A silent engine is said after this share of `engine.stall_seconds`, and after SAID_SECONDS at the latest."""
START_SECONDS = 900.0
"""For a start, beside the reading of weights: imports, compilation, a look at the memory."""
BYTES_PER_SECOND = 20e6
"""Slowest reading of weights that is still taken for work."""
SLOWER = 20.0
"""How many times slower than the slowest call so far one may be: a small batch uses a machine less well."""
_LIFE_SECONDS = 0.02
_LIFE_SHARE = 0.005
"""An idle Python process wakes its threads now and then: so much processor time, and share of the time, is no work."""
_OTHERS_SECONDS = 2.0
_GROUP, _USER_TICKS, _SYSTEM_TICKS = 2, 11, 12
"""Places in what `_stat` gives."""


class Stalled(Exception):
    """The engine is given up; says what it did not do, and for how long."""


@dataclass(frozen=True)
class Work:
    """What a call asks for.

    Attributes:
        tokens: of all its prompts and longest completions.
        longest: of the longest of them alone: steps that no batch makes fewer.
        bytes: of weights to be read.
        starts: whether a process may have to start for it.
    """

    tokens: int = 0
    longest: int = 0
    bytes: int = 0
    starts: bool = False

    @classmethod
    def of_generate(cls, requests: Sequence[GenerateRequest]) -> Work:
        return cls(
            tokens=sum(len(r.prompt_ids) + r.num_candidates * r.max_tokens for r in requests),
            longest=max((len(r.prompt_ids) + r.max_tokens for r in requests), default=0),
        )

    @classmethod
    def of_loglikelihood(cls, requests: Sequence[LoglikelihoodRequest]) -> Work:
        lengths = [len(r.context_ids) + len(r.continuation_ids) for r in requests]
        return cls(tokens=sum(lengths), longest=max(lengths, default=0))

    @classmethod
    def of_weights(cls, checkpoint: Path) -> Work:
        return cls(bytes=size_of(checkpoint), starts=True)


def tokens_made(requests: Sequence[GenerateRequest], results: Sequence[Sequence[Completion]]) -> int:
    """Tokens that an answered `generate` was about: its prompts and what was sampled."""
    return sum(len(r.prompt_ids) for r in requests) + sum(len(c.token_ids) for made in results for c in made)


class Pace:
    """Seconds a token of each verb: the slowest call so far, or what the recipe says before there is one."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._slowest: dict[str, float] = {}

    def took(self, verb: str, *, seconds: float, tokens: int) -> None:
        if tokens:
            self._slowest[verb] = max(self._slowest.get(verb, 0.0), seconds / tokens)

    def limit(self, verb: str, work: Work) -> float:
        """Seconds a call may take that shows signs of life."""
        slowest = self._config.seconds_per_token
        each = min(slowest, SLOWER * self._slowest[verb]) if verb in self._slowest else slowest
        start = START_SECONDS if work.starts else 0.0
        return (
            self._config.stall_seconds
            + start
            + work.bytes / BYTES_PER_SECOND
            + work.longest * slowest
            + work.tokens * each
        )


class CallWatch:
    """Looks at a process while it is asked something.

    Time in which this process itself does not look (it was stopped, too, or the machine slept) does not count.

    Args:
        pid: leader of its process group.
        limit: seconds the call may take with signs of life.
        stall_seconds: and without one.
        say: gets a line where the process falls silent, and where it goes on.
    """

    def __init__(self, verb: str, *, pid: int, limit: float, stall_seconds: float, say: Callable[[str], None]) -> None:
        self._verb, self._pid, self._limit, self._stall, self._say = verb, pid, limit, stall_seconds, say
        self._said_after = min(SAID_SECONDS, SAID_SHARE * stall_seconds)
        self._looked = time.monotonic()
        self._waited = self._alive_at = 0.0
        self._members = [pid]
        self._used = processor_seconds(self._members) or 0.0
        self._said = False

    def look(self) -> None:
        """Raises Stalled where the process has to be given up."""
        now = time.monotonic()
        self._waited += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        self._look_for_life()
        silent = self._waited - self._alive_at
        if silent >= self._stall:
            raise Stalled(f"{self._state()} for {silent:.0f} s (engine.stall_seconds: {self._stall:g})")
        if self._waited >= self._limit:
            raise Stalled(
                f"no end of this call after {self._waited:.0f} s, at work all the time (allowed for what it asks: "
                f"{self._limit:.0f} s; engine.seconds_per_token)"
            )
        if silent >= self._said_after and not self._said:
            self._said = True
            self._say(
                f"engine: {self._verb}: process {self._pid} {self._state()} for {silent:.0f} s; it is ended and "
                f"started again after {self._stall:.0f} s of that (engine.stall_seconds)"
            )

    def _look_for_life(self) -> None:
        silent = self._waited - self._alive_at
        if silent >= _OTHERS_SECONDS:  # at most times the leader itself works, and the others need no look
            self._members = group_members(self._pid)
        used = processor_seconds(self._members)
        if used is None:  # not to be known on this system: only the limit holds
            self._alive_at = self._waited
        elif used < self._used or used - self._used >= max(_LIFE_SECONDS, _LIFE_SHARE * silent):
            self._used, self._alive_at = used, self._waited
            if self._said:
                self._said = False
                self._say(f"engine: {self._verb}: process {self._pid} goes on")

    def _state(self) -> str:
        if _stat(self._pid)[:1] == ["T"]:
            return f"is stopped (`kill -CONT {self._pid}` lets it go on)"
        return "has used no processor time"


def processor_seconds(pids: Sequence[int]) -> float | None:
    """Processor time that processes have used so far, together; None where the system does not tell."""
    found = [fields for pid in pids if len(fields := _stat(pid)) > _SYSTEM_TICKS]
    if not found:
        return None
    ticks = sum(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS]) for fields in found)
    return ticks / os.sysconf("SC_CLK_TCK")


def group_members(leader: int) -> list[int]:
    """The processes of the group that `leader` leads, itself among them."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid == leader or _stat(pid)[_GROUP : _GROUP + 1] == [str(leader)]]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
