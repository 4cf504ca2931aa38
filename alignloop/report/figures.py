"""Figures of rounds: values in, a chart and the table of its numbers out; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignloop.report.content import COUNT, PERCENT, Figure, Table, Unit
from alignloop.report.facts import RoundRecord, Value, evenly, round_label
from alignloop.report.plots import charts
from alignloop.sampling.reward_statistics import bin_edges, bin_shares

Z = 1.959964
"""Standard errors on each side of a 95 % interval."""
ERROR_BARS = "Error bars: 95 % intervals (1.96 standard errors)."
MOST_COLUMNS, MOST_NAMES, NUM_BINS = 12, 60, 24
MOST_LABEL_CHARACTERS = 22


@dataclass(frozen=True)
class Series:
    """A figure over rounds: of one run, or of one of several.

    Attributes:
        is_drawn: it stands in the chart, and not in the table alone.
    """

    label: str
    rounds: Sequence[RoundRecord]
    value: Value
    is_drawn: bool = True

    def line(self, unit: Unit) -> charts.Line | None:
        """Its points with their 95 % intervals."""
        points = []
        for entry in self.rounds:
            found = self.value(entry)
            if found is not None:
                reach = None if found.stderr is None else Z * found.stderr
                ends = () if reach is None else (found.value - reach, found.value + reach)
                points.append(charts.Point(entry.number, *(unit.scale * y for y in (found.value, *ends))))
        label = (
            self.label if len(self.label) <= MOST_LABEL_CHARACTERS else f"…{self.label[1 - MOST_LABEL_CHARACTERS :]}"
        )
        return charts.Line(label, tuple(points)) if points else None


def over_rounds(title: str, series: Sequence[Series], unit: Unit, *, name: str, note: str = "") -> Figure | None:
    """Lines over the rounds, and a row a round that any of them has."""
    lines = [line for one in series if one.is_drawn and (line := one.line(unit)) is not None]
    if not lines:
        return None
    by_number = [{entry.number: one.value(entry) for entry in one.rounds} for one in series]
    numbers = sorted({number for values in by_number for number in values})
    rows = [(round_label(n), *(unit.cell(values.get(n)) for values in by_number)) for n in numbers]
    chart = charts.by_round(lines, y_title=unit.axis, least=unit.least, most=unit.most)
    return Figure(title, chart, Table.of(("round", *(one.label for one in series)), rows, name=name), note)


def stacked(
    title: str,
    rounds: Mapping[str, Mapping[str, float]],
    *,
    order: Sequence[str],
    y_title: str,
    name: str,
    with_totals: bool = False,
) -> Figure | None:
    """A bar a round, made of parts.

    Args:
        rounds: value by part, by the round's label.
        order: the parts from below.
        with_totals: the table has a last row and a last column of sums.
    """
    bars = [{"x": x, "part": part, "value": parts.get(part, 0)} for x, parts in rounds.items() for part in order]
    if not any(bar["value"] for bar in bars):
        return None
    rows = [(label, *(COUNT.cell(parts.get(part)) for part in order)) for label, parts in rounds.items()]
    heads = ("round", *order)
    if with_totals:
        totals = {part: sum(parts.get(part, 0) for parts in rounds.values()) for part in order}
        rows.append(("all", *map(COUNT.cell, totals.values())))
        sums = [sum(parts.values()) for parts in (*rounds.values(), totals)]
        heads, rows = (*heads, "all"), [(*row, COUNT.cell(total)) for row, total in zip(rows, sums, strict=True)]
    return Figure(title, charts.stacked(bars, order=order, y_title=y_title), Table.of(heads, rows, name=name))


def heat(title: str, rounds: Sequence[RoundRecord], keys: Mapping[str, str], *, name: str) -> Figure:
    """Shares in a grid, a row a name and a column a round.

    Args:
        keys: metric by name.
    """
    columns, names = evenly(rounds, most=MOST_COLUMNS), list(keys)[:MOST_NAMES]
    heads, short = [entry.label for entry in columns], _short_names(names)
    values = {label: [entry.metrics.get(keys[label]) for entry in columns] for label in names}
    cells = [
        {"name": short[label], "x": x, "value": PERCENT.scale * value}
        for label, of_name in values.items()
        for x, value in zip(heads, of_name, strict=True)
        if value is not None
    ]
    rows = [(label, *map(PERCENT.cell, of_name)) for label, of_name in values.items()]
    left = [f"{len(keys) - len(names)} more rows"] if len(names) < len(keys) else []
    left += [f"{len(rounds) - len(columns)} rounds between"] if len(columns) < len(rounds) else []
    chart = charts.heat(cells, names=list(short.values()), columns=heads)
    note = f"Left out here: {', '.join(left)}." if left else ""
    return Figure(title, chart, Table.of(("type", *heads), rows, name=name), note)


def histogram(title: str, samples: Mapping[str, Sequence[float]], *, name: str) -> Figure:
    """How rewards lie.

    Args:
        samples: rewards by name, at least one each.
    """
    edges = bin_edges([value for values in samples.values() for value in values], num_bins=NUM_BINS)
    shares = {label: bin_shares(values, edges) for label, values in samples.items()}
    means = {label: math.fsum(values) / len(values) for label, values in samples.items()}
    outlines = [charts.Outline(label, tuple(found), means[label]) for label, found in shares.items()]
    rows = [
        (f"{low:g} to {high:g}", *map(PERCENT.cell, of_bin))
        for low, high, *of_bin in zip(edges, edges[1:], *shares.values(), strict=False)
    ]
    heads = ("reward", *(f"{label}, % (mean {mean:.2f})" for label, mean in means.items()))
    chart = charts.outlines(edges, outlines, x_title="reward", y_title="% of prompts")
    return Figure(title, chart, Table.of(heads, rows, name=name))


def _short_names(labels: Sequence[str]) -> dict[str, str]:
    """`detectable_format:title` -> `title`, what a narrow chart has room for, where that names one alone."""
    last = [label.rpartition(":")[2] for label in labels]
    return {label: label if last.count(end) > 1 else end for label, end in zip(labels, last, strict=True)}
