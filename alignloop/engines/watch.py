"""Whether an engine at work still works: one that is stopped or hangs is said, and given up after a while.

Two limits on a call. Without a sign of life, which is processor time used by the engine or what it started, it ends
after `engine.stall_seconds`. With it, after a time that grows with the tokens asked for: an endless loop looks like
work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.artifacts import size_of
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, LoglikelihoodRequest
from alignloop.engines.pipe import LOOK_SECONDS
from alignloop.engines.process_state import SAID_SECONDS, SignsOfLife, group_members, is_stopped, stopped_line

SAID_SHARE = 0.1
"""A silent engine is said after this share of `engine.stall_seconds`, and after SAID_SECONDS at the latest."""
START_SECONDS = 900.0
"""For a start, beside the reading of weights: imports, compilation, a look at the memory."""
BYTES_PER_SECOND = 20e6
"""Slowest reading of weights that is still taken for work."""
SLOWER = 20.0
"""How many times slower than the slowest call so far one may be: a small batch uses a machine less well."""
_OTHERS_SECONDS = 2.0


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
        self._waited = 0.0
        self._members = [pid]
        self._signs = SignsOfLife(self._members)
        self._said = False

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
        if silent >= self._said_after and not self._said:
            self._said = True
            self._say(
                f"engine: {self._verb}: process {self._pid} {self._state()} for {silent:.0f} s; it is ended and "
                f"started again after {self._stall:.0f} s of that (engine.stall_seconds)"
            )

    def _look_for_life(self) -> None:
        if (
            self._waited - self._signs.last >= _OTHERS_SECONDS
        ):  # at most times the leader itself works, and the others need no look
            self._members = group_members(self._pid)
        self._signs.look(self._members, waited=self._waited)  # where the system does not tell, only the limit holds
        if self._said and self._signs.last == self._waited:
            self._said = False
            self._say(f"engine: {self._verb}: process {self._pid} goes on")

    def _state(self) -> str:
        return stopped_line(self._pid) if is_stopped(self._pid) else "has used no processor time"
