"""A benchmark case: two sides that do the same work, read in turns, and the figures made of their readings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

Reading = Mapping[str, Any]
"""What one measurement of a side gives, by name: rates, seconds, memory, and what the check compares."""
Readings = Sequence[Reading]


class BenchError(Exception):
    """A measurement failed, or the two sides did not do the same work; the message says why."""


class SkippedError(Exception):
    """A case that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One number: the median, over the pairs, of ours over the peer's reading; of ours alone where there is no peer.

    Attributes:
        name: its row of the table and its key of the JSON object.
        of: the reading it is made of.
        unit: of the reading.
        bar: None: told, and held to nothing.
        at_least: the bar is a least value, not a greatest.
        peer: False: of our readings alone, though there is a peer.
        inverse: the peer's reading over ours, where less is better (seconds, memory).
    """

    name: str
    of: str
    unit: str = ""
    bar: float | None = None
    at_least: bool = True
    peer: bool = True
    inverse: bool = False

    def value(self, ours: Reading, peer: Reading | None) -> float:
        mine = float(ours[self.of])
        if peer is None:
            return mine
        other = float(peer[self.of])
        top, bottom = (other, mine) if self.inverse else (mine, other)
        return top / bottom if bottom else float("nan")


@dataclass(frozen=True)
class Sides:
    """What a case measures, once it has what it needs.

    Attributes:
        peer: None: the case has no second side.
        check: called with all readings of both sides; gives remarks for the table, or raises BenchError.
    """

    ours: Callable[[], Reading]
    peer: Callable[[], Reading] | None = None
    check: Callable[[Readings, Readings], Sequence[str]] = lambda ours, peer: ()


@dataclass
class Bench:
    """Where and how much a case measures.

    Attributes:
        data: real data, where there is some.
        amount: of the case's work, in its own unit: rows, prompts, groups, questions, swaps, rounds.
        setting: label of the setting that both sides take; None: they try theirs out, or take the first with `quick`.
        environment: the caller's, for what chooses its own threads and settings.
        stack: closed when the case is over.
    """

    work: Path
    data: Path
    threads: int
    pairs: int
    quick: bool
    size: str
    amount: int
    setting: str | None
    environment: Mapping[str, str]
    stack: ExitStack

    def need(self, name: str) -> Path:
        """A file or folder of the real data.

        Raises:
            SkippedError: it is not here.
        """
        path = self.data / name
        if not path.exists():
            raise SkippedError(f"it needs {path}, which is not here")
        return path


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        open: gets everything ready, and warm, before the first reading.
        amounts: size -> amount of work; the first size's figures have plain names.
        quick: amount with `--quick`, which is a check and no result; 0: left out with it unless it is named.
        once: one reading of each side, whatever `--pairs` says.
        needs: a module without which it is skipped.
    """

    name: str
    figures: tuple[Figure, ...]
    open: Callable[[Bench], Sides]
    amounts: Mapping[str, int]
    quick: int
    once: bool = False
    needs: str = "numpy"

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(self.amounts)

    def amount(self, size: str, *, quick: bool) -> int:
        return self.quick or next(iter(self.amounts.values())) if quick else self.amounts[size]


@dataclass(frozen=True)
class Measured:
    """The readings of one case at one size, in the order they were taken."""

    case: Case
    size: str
    smaller: bool
    ours: Readings
    peer: Readings
    remarks: Sequence[str] = field(default=())

    def key(self, figure: Figure) -> str:
        return figure.name if self.size == self.case.sizes[0] else f"{figure.name}_{self.size}"

    def each(self, figure: Figure) -> list[float]:
        others = self.peer if self.peer and figure.peer else [None] * len(self.ours)
        return [figure.value(mine, other) for mine, other in zip(self.ours, others, strict=True)]


def measure(case: Case, bench: Bench, *, smaller: bool) -> Measured:
    """Read both sides `pairs` times; who goes first changes with every pair.

    Raises:
        SkippedError: it cannot be measured here.
        BenchError: a measurement failed, or the two sides did not do the same work.
    """
    if find_spec(case.needs) is None:
        raise SkippedError(f"{case.needs} is not installed (scripts/setup installs it)")
    sides = case.open(bench)
    ours: list[Reading] = []
    peer: list[Reading] = []
    for number in range(1 if case.once else bench.pairs):
        turns = [(ours, sides.ours), (peer, sides.peer)]
        for readings, read in turns if number % 2 == 0 else reversed(turns):
            if read is not None:
                readings.append(read())
    return Measured(case, bench.size, smaller, ours, peer, tuple(sides.check(ours, peer)))


def middle(readings: Readings, name: str) -> float:
    """The median of one reading."""
    return median(float(reading[name]) for reading in readings)
