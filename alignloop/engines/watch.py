"""Whether processes at work still work: one that is stopped or hangs is reported, and given up after a while.

Two limits on a call of an engine. Without a sign of life, which is processor time used by the engine or what it
started, it ends after `engine.stall_seconds`. With it, after a time that grows with the tokens asked for: an endless
loop looks like work. Whoever waits for a training looks at its processes in the same way.
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

LOOK_SECONDS = 0.5
SILENCE_SECONDS = 30.0
"""A process without a sign of life is reported after this time at the latest."""
SILENCE_SHARE = 0.1
"""A silent engine is reported after this share of `engine.stall_seconds`, and after SILENCE_SECONDS at the latest."""
START_SECONDS = 900.0
"""For a start, beside the reading of weights: imports, compilation, a look at the memory."""
BYTES_PER_SECOND = 20e6
"""Slowest reading of weights that is still taken for work."""
SLOWER = 20.0
"""How many times slower than the slowest call so far one may be: a small batch uses a machine less well."""
_GROUP_SECONDS = 2.0
"""Silence of a leader after which the other processes of its group are looked at: at most times it works itself."""
_LIFE_SECONDS = 0.02
_LIFE_SHARE = 0.005
"""An idle Python process wakes its threads now and then: so much processor time, and share of the time, is no work."""
_PARENT, _GROUP, _USER_TICKS, _SYSTEM_TICKS = 1, 2, 11, 12
"""Indexes into what `_stat` gives."""


class Stalled(Exception):
    """The engine is given up; says what it did not do, and for how long."""


@dataclass(frozen=True)
class Work:
    tokens: int = 0
    """Of all its prompts and longest completions."""
    longest: int = 0
    """Of the longest of them alone: steps that no batch makes fewer."""
    bytes: int = 0
    """Of weights to be read, for which a process may have to start."""

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
        return cls(bytes=size_of(checkpoint))


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
        loading = START_SECONDS + work.bytes / BYTES_PER_SECOND if work.bytes else 0.0
        return self._config.stall_seconds + loading + work.longest * slowest + work.tokens * each


class CallWatch:
    """Looks at a process, leader of its group, during a call.

    Time in which this process itself does not look (it was stopped, too, or the machine slept) does not count. `limit`
    is the seconds the call may take with signs of life, `stall_seconds` without one; `say` gets a line where the
    process falls silent, and where it goes on.
    """

    def __init__(self, verb: str, *, pid: int, limit: float, stall_seconds: float, say: Callable[[str], None]) -> None:
        self._verb, self._pid, self._limit, self._stall, self._say = verb, pid, limit, stall_seconds, say
        self._report_after = min(SILENCE_SECONDS, SILENCE_SHARE * stall_seconds)
        self._looked = time.monotonic()
        self._waited = 0.0
        self._members = [pid]
        self._signs = SignsOfLife(self._members)
        self._reported = False

    def look(self) -> None:
        """Raises Stalled where the process has to be given up."""
        now = time.monotonic()
        self._waited += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        self._look_for_life()
        silent = self._waited - self._signs.last
        if silent >= self._stall:
            raise Stalled(f"{self._state()} for {silent:.0f} s (engine.stall_seconds: {self._stall:g})")
        if self._waited >= self._limit:
            raise Stalled(
                f"no end of this call after {self._waited:.0f} s, at work all the time (allowed for what it asks: "
                f"{self._limit:.0f} s; engine.seconds_per_token)"
            )
        if silent >= self._report_after and not self._reported:
            self._reported = True
            self._say(
                f"engine: {self._verb}: process {self._pid} {self._state()} for {silent:.0f} s; it is ended and "
                f"started again after {self._stall:.0f} s of that (engine.stall_seconds)"
            )

    def _look_for_life(self) -> None:
        if self._waited - self._signs.last >= _GROUP_SECONDS:
            self._members = group_members(self._pid)
        self._signs.look(self._members, waited=self._waited)  # where the system does not tell, only the limit holds
        if self._reported and self._signs.last == self._waited:
            self._reported = False
            self._say(f"engine: {self._verb}: process {self._pid} goes on")

    def _state(self) -> str:
        return stopped_line(self._pid) if is_stopped(self._pid) else "has used no processor time"


class SignsOfLife:
    """Processor time that processes use, as the sign that they work."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._used = processor_seconds(pids) or 0.0
        self.last = 0.0
        """When there was one, in the seconds that `look` is called with."""

    def look(self, pids: Sequence[int], *, waited: float) -> None:
        used = processor_seconds(pids)
        if used is None:  # not to be known on this system
            self.last = waited
        elif used < self._used or used - self._used >= max(_LIFE_SECONDS, _LIFE_SHARE * (waited - self.last)):
            self._used, self.last = used, waited


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    return _stat(pid)[:1] == ["T"]


def stopped_line(pid: int) -> str:
    """What to print of a stopped process, with the way out."""
    return f"is stopped (`kill -CONT {pid}` lets it go on)"


def processor_seconds(pids: Sequence[int]) -> float | None:
    """That processes have used so far, together; None where the system does not tell."""
    found = [fields for pid in pids if len(fields := _stat(pid)) > _SYSTEM_TICKS]
    if not found:
        return None
    ticks = sum(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS]) for fields in found)
    return ticks / os.sysconf("SC_CLK_TCK")


def group_members(leader: int) -> list[int]:
    """The processes of the group that `leader` leads, itself among them."""
    return [pid for pid in _all_pids() if pid == leader or _stat(pid)[_GROUP : _GROUP + 1] == [str(leader)]]


def descendants(ancestor: int) -> list[int]:
    """The processes that `ancestor` has started, and those that they have, whatever group they are of."""
    children: dict[str, list[int]] = {}
    for pid in _all_pids():
        for parent in _stat(pid)[_PARENT : _PARENT + 1]:
            children.setdefault(parent, []).append(pid)
    found, unvisited = list[int](), [ancestor]
    while unvisited:
        of_one = children.get(str(unvisited.pop()), [])
        found += of_one
        unvisited += of_one
    return found


def _all_pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
