"""Round against round on the same questions: what is more than noise."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.report.html import elements
from alignloop.report.html.climb import headline_keys
from alignloop.report.html.elements import MISSING, Cell, Table, count
from alignloop.report.html.facts import RunFacts
from alignloop.report.plots import charts

MOST_ROUNDS = 40


def differences(run: RunFacts) -> str:
    """The benchmarks' paired differences with their 95 % intervals, against the round before and against the base."""
    keys = headline_keys(run.finished)
    shown = run.differences[-2 * MOST_ROUNDS :]
    previous = [entry for entry in shown if entry.against == entry.round - 1]
    base = [entry for entry in shown if entry.against == 0 and entry.round > 1]
    figures = [
        figure
        for key in keys
        for title, entries in ((f"{key}: against the round before", previous), (f"{key}: against the base", base))
        if (figure := _figure(title, entries, key))
    ]
    refused = [
        f"Round {entry.round} is not compared with {_name(entry.against)}: {entry.refused}"
        for entry in shown
        if entry.refused
    ]
    if not figures and not refused:
        return ""
    words = (
        "Differences in points on the same questions, with 95 % intervals paired by question. An interval that holds 0 "
        "is no progress and no regress: it is drawn grey."
    )
    parts = [
        elements.paragraph(words, kind="note"),
        elements.grid(figures),
        *_everything(shown),
        elements.bullets(refused, kind="warn"),
    ]
    return elements.section("Round against round", parts, name="differences")


def last_change(run: RunFacts, key: str, *, number: int, against: int) -> Difference | None:
    """The difference of a figure between two rounds; None where it was not taken."""
    for entry in run.differences:
        if (entry.round, entry.against) == (number, against):
            return next((found for found in entry.differences if found.key == key), None)
    return None


def in_points(found: Difference) -> str:
    """`+3.2 (0.4 to 6.0)`."""
    reach = "" if found.low is None or found.high is None else f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{100 * found.difference:+.1f}{reach}"


def _figure(title: str, entries: Sequence[RoundDifferences], key: str) -> str:
    rows: list[charts.Interval] = []
    cells: list[tuple[str | Cell, ...]] = []
    for entry in entries:
        for found in entry.differences:
            if found.key != key or found.low is None or found.high is None:
                continue
            label = f"{_name(entry.against)} to {entry.round}"
            rows.append(charts.Interval(label, 100 * found.difference, 100 * found.low, 100 * found.high))
            cells.append((label, *_cells(found)))
    if not rows:
        return ""
    heads = ("rounds", "difference", "from", "to", "questions", "verdict")
    spec = charts.intervals(rows, x_title="points")
    return elements.figure(title, spec, numbers=Table(heads, tuple(cells)), name=f"differences {title}")


def _cells(found: Difference) -> tuple[str | Cell, ...]:
    ends = (found.difference, found.low, found.high)
    numbers = [Cell(MISSING) if value is None else Cell(f"{100 * value:+.1f}", value) for value in ends]
    verdict = ("better" if found.difference > 0 else "worse") if found.is_clear else "within noise"
    return (*numbers, count(found.num_pairs), verdict)


def _everything(entries: Sequence[RoundDifferences]) -> list[str]:
    """Every figure of the last round's comparisons, as tables that open."""
    last = max((entry.round for entry in entries), default=0)
    heads = ("figure", "before", "after", "difference", "from", "to", "questions", "verdict")
    found = []
    for entry in entries:
        if entry.round == last and entry.differences:
            rows: list[tuple[str | Cell, ...]] = [
                (d.key, Cell(f"{100 * d.before:.1f}", d.before), Cell(f"{100 * d.after:.1f}", d.after), *_cells(d))
                for d in entry.differences
                if not d.key.endswith("/mean_tokens")
            ]
            table = elements.table(Table(heads, tuple(rows)), name=f"differences-{entry.round}-{entry.against}")
            title = f"Round {entry.round} against {_name(entry.against)}: every figure"
            found.append(elements.details(title, table))
    return found


def _name(number: int) -> str:
    return "base" if number == 0 else str(number)
