"""Figures of rounds: values in, a chart and the table of its numbers out; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from alignloop.report import charts
from alignloop.report.content import COUNT, PERCENT, Figure, FigureUnit, Table
from alignloop.report.facts import ByRound, RoundRecord, evenly, round_label
from alignloop.sampling.reward_statistics import bin_edges, bin_shares

Z = 1.959964
"""Standard errors on each side of a 95 % interval."""
ERROR_BARS = "Error bars: 95 % intervals (1.96 standard errors)."
MOST_COLUMNS, MOST_NAMES, NUM_BINS = 12, 60, 24
MOST_LABEL_CHARACTERS = 22


def over_rounds(
    title: str,
    series: Mapping[str, ByRound],
    unit: FigureUnit,
    *,
    name: str,
    note: str = "",
    not_drawn: Collection[str] = (),
) -> Figure | None:
    """Lines over the rounds with 95 % intervals, and a row a round. `series` maps a name to figures by round, of one
    run or of several; those `not_drawn` stand in the table alone."""
    short = _short_names(series, lambda label: f"…{label[1 - MOST_LABEL_CHARACTERS :]}")
    drawn = {}
    for label, by_round in series.items():
        points = _points(by_round, unit) if label not in not_drawn else []
        if points:
            drawn[label if len(label) <= MOST_LABEL_CHARACTERS else short[label]] = points
    if not drawn:
        return None
    numbers = sorted({number for by_round in series.values() for number in by_round})
    rows = [(round_label(n), *(unit.cell(by_round.get(n)) for by_round in series.values())) for n in numbers]
    chart = charts.lines(drawn, y_title=unit.axis, least=unit.least, most=unit.most)
    return Figure(title, chart, Table.of(("round", *series), rows, name=name), note)


def stacked(
    title: str,
    rounds: Mapping[str, Mapping[str, float]],
    *,
    order: Sequence[str],
    y_title: str,
    name: str,
    with_totals: bool = False,
) -> Figure | None:
    """A bar a round, made of parts: `rounds` has value by part, by the round's label; `order` the parts from below.
    With totals the table has a last row and a last column of sums."""
    if not any(value for parts in rounds.values() for value in parts.values()):
        return None
    rows = [(label, *(COUNT.cell(parts.get(part)) for part in order)) for label, parts in rounds.items()]
    heads = ("round", *order)
    if with_totals:
        totals = {part: sum(parts.get(part, 0) for parts in rounds.values()) for part in order}
        rows.append(("all", *map(COUNT.cell, totals.values())))
        sums = [sum(parts.values()) for parts in (*rounds.values(), totals)]
        heads, rows = (*heads, "all"), [(*row, COUNT.cell(total)) for row, total in zip(rows, sums, strict=True)]
    return Figure(title, charts.stacked(rounds, order=order, y_title=y_title), Table.of(heads, rows, name=name))


def heat(title: str, rounds: Sequence[RoundRecord], keys: Mapping[str, str], *, name: str) -> Figure:
    """Shares in a grid, a row a name and a column a round; `keys` has the metric by name."""
    columns, names = evenly(rounds, most=MOST_COLUMNS), list(keys)[:MOST_NAMES]
    heads = [entry.label for entry in columns]
    # `detectable_format:title` -> `title`, what fits into a narrow chart.
    short = _short_names(names, lambda label: label.rpartition(":")[2])
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
    """Distributions of rewards by name, at least one reward each."""
    edges = bin_edges([value for values in samples.values() for value in values], num_bins=NUM_BINS)
    shares = {label: bin_shares(values, edges) for label, values in samples.items()}
    means = {label: math.fsum(values) / len(values) for label, values in samples.items()}
    rows = [
        (f"{low:g} to {high:g}", *map(PERCENT.cell, of_bin))
        for low, high, *of_bin in zip(edges, edges[1:], *shares.values(), strict=False)
    ]
    heads = ("reward", *(f"{label}, % (mean {mean:.2f})" for label, mean in means.items()))
    chart = charts.outlines(edges, shares, means, x_title="reward", y_title="% of prompts")
    return Figure(title, chart, Table.of(heads, rows, name=name))


def _points(by_round: ByRound, unit: FigureUnit) -> list[charts.Point]:
    points = []
    for number, found in by_round.items():
        if found is not None:
            reach = None if found.stderr is None else Z * found.stderr
            ends = () if reach is None else (found.value - reach, found.value + reach)
            points.append(charts.Point(number, *(unit.scale * y for y in (found.value, *ends))))
    return points


def _short_names(labels: Collection[str], shorten: Callable[[str], str]) -> dict[str, str]:
    """Each label's short form, where that names it alone."""
    short = [shorten(label) for label in labels]
    return {label: label if short.count(end) > 1 else end for label, end in zip(labels, short, strict=True)}
