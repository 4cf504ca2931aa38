"""Values over rounds: of one run, or of several beside each other; only what was measured alike is put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignloop.report.html.elements import Cell, Table, number, percent, with_error
from alignloop.report.html.facts import STDERR, RoundFacts, RunFacts
from alignloop.report.html.protocols import task_of, why_different
from alignloop.report.plots.charts import Line, Point

Z = 1.959964
"""Standard errors on each side of a 95 % interval."""
Value = Callable[[RoundFacts], "Measured | None"]


@dataclass(frozen=True)
class Measured:
    """A figure and its standard error, where it has one."""

    value: float
    stderr: float | None = None


def metric(key: str) -> Value:
    """A benchmark's figure."""

    def of(entry: RoundFacts) -> Measured | None:
        if entry.row is None or key not in entry.row.metrics:
            return None
        return _finite(entry.row.metrics[key], entry.row.stderr.get(key))

    return of


def measure(key: str) -> Value:
    """A figure beside the benchmarks: of the stage `measure`, or of the reward model's own stages."""

    def of(entry: RoundFacts) -> Measured | None:
        value = entry.measures.get(key)
        if value is None and entry.row is not None:
            value = entry.row.reward_model.get(key)
        return None if value is None else _finite(value, entry.measures.get(key + STDERR))

    return of


def line(name: str, rounds: Sequence[RoundFacts], value: Value, *, scale: float = 1.0) -> Line | None:
    """The points of the rounds that have the value, with 95 % intervals; None where none has."""
    points = []
    for entry in rounds:
        found = value(entry)
        if found is not None:
            reach = None if found.stderr is None else Z * found.stderr
            points.append(
                Point(
                    entry.number,
                    scale * found.value,
                    None if reach is None else scale * (found.value - reach),
                    None if reach is None else scale * (found.value + reach),
                )
            )
    return Line(name, tuple(points)) if points else None


def present(lines: Sequence[Line | None]) -> list[Line]:
    """Those that have a point."""
    return [found for found in lines if found is not None]


def alike(run: RunFacts, key: str, *, like: RunFacts | None = None) -> tuple[list[RoundFacts], list[str]]:
    """Finished rounds whose benchmark was asked as in the last round of `like`, and a note on each other one.

    Args:
        like: the run that sets the protocol; None: this one.
    """
    reference = next((e.evaluation for e in reversed((like or run).finished) if e.evaluation is not None), None)
    task = task_of(key)
    kept, notes = [], []
    for entry in run.finished:
        different = why_different(reference, entry.evaluation, task)
        if different:
            where = f"{run.name}, round {entry.number}" if like is not None else f"round {entry.number}"
            more = f" and {len(different) - 1} more" if len(different) > 1 else ""
            notes.append(f"{where}: {task} was asked by another protocol ({different[0]}{more}) and is not compared")
        else:
            kept.append(entry)
    return kept, notes


def table_of(
    rounds: Sequence[RoundFacts], columns: Sequence[tuple[str, Value]], *, as_percent: bool, digits: int | None = None
) -> Table:
    """The values behind a chart: a row a round."""
    rows: list[tuple[str | Cell, ...]] = []
    for entry in rounds:
        cells = [_cell(value(entry), as_percent=as_percent, digits=digits) for _, value in columns]
        rows.append((entry.label, *cells))
    return Table(("round", *(name for name, _ in columns)), tuple(rows))


def _cell(found: Measured | None, *, as_percent: bool, digits: int | None) -> Cell:
    if found is None:
        return percent(None)
    if found.stderr is None:
        return percent(found.value) if as_percent else number(found.value, digits=3 if digits is None else digits)
    return with_error(
        found.value,
        found.stderr,
        scale=100.0 if as_percent else 1.0,
        digits=(1 if as_percent else 3) if digits is None else digits,
    )


def _finite(value: float, stderr: float | None) -> Measured | None:
    if not math.isfinite(value):
        return None
    return Measured(value, stderr if stderr is not None and math.isfinite(stderr) else None)
