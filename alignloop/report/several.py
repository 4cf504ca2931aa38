"""Several runs beside each other: the same figures in the same charts, where they were measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PurePath

from alignloop.report.benchmarks import alike, headline_keys
from alignloop.report.completions import OWN_SCALES, side_by_side
from alignloop.report.content import COUNT, MISSING, PERCENT, Cell, Figure, Page, Section, Table, Unit, present
from alignloop.report.facts import RoundRecord, RunRecord, Value, metric
from alignloop.report.figures import ERROR_BARS, Series, over_rounds
from alignloop.report.measures import GROUPS, first_measured, value_of
from alignloop.report.page import sentences_of, warnings_of
from alignloop.report.render import bytes_left

MOST_SETTINGS = 200
Runs = Mapping[str, RunRecord]
"""By names that tell them apart."""


def several_page(runs: Sequence[RunRecord]) -> Page:
    """The report of two or more runs."""
    named = dict(zip(run_names(runs), runs, strict=True))
    warned = [f"{name}: {line}" for name, run in named.items() for line in (*warnings_of(run), *run.notes)]
    begun = [f"{name}: {line}" for name, run in named.items() if len(run.finished) < 2
             for line in islice(sentences_of(run), 1)]  # fmt: skip
    ends = [(f"{name}, round {run.shown.label}", run.shown) for name, run in named.items() if run.shown is not None]
    title = "The same prompts, run by run"
    page = Page(
        kind="several",
        title=f"{', '.join(named)}: alignloop report",
        heading=" · ".join(named),
        table=_overview(named),
        warnings=(*warned, *begun),
        sections=(_climb(named), _measures(named), _settings(named)),
    )
    answers = side_by_side(ends, budget_bytes=bytes_left(page), title=title, scale=OWN_SCALES)
    return replace(page, sections=(*page.sections, answers))


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names; with as many folders above as tell two runs apart."""
    paths = [PurePath(run.dir.resolve()) for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _overview(runs: Runs) -> Table:
    keys = _headlines(runs)
    rows: list[tuple[str | Cell, ...]] = []
    for name, run in runs.items():
        end = run.shown
        cells = [PERCENT.cell(None if end is None else metric(key)(end)) for key in keys]
        label = MISSING if end is None else end.label
        rows.append((name, COUNT.cell(run.num_done), label, *cells, COUNT.cell(run.seconds)))
    return Table.of(("run", "rounds done", "best round", *(f"{key}, %" for key in keys), "seconds"), rows, name="runs")


def _climb(runs: Runs) -> Section:
    figures, notes = [], []
    for key in _headlines(runs):
        # The first run that has the figure sets the protocol.
        like = next(run for run in runs.values() if any(key in entry.metrics for entry in run.finished))
        found = {name: alike(run, key, like=like) for name, run in runs.items()}
        notes += [note for _, unlike in found.values() for note in unlike]
        figures.append(_overlaid(key, {name: rounds for name, (rounds, _) in found.items()}, metric(key), PERCENT))
    note = f"In percent. {ERROR_BARS} Runs are drawn together where their benchmarks were asked alike."
    return Section("climb", "Climb", "The climb", note=note, figures=present(figures), warnings=tuple(notes))


def _measures(runs: Runs) -> Section:
    figures = []
    rounds = {name: run.finished for name, run in runs.items()}
    everywhere = [entry for found in rounds.values() for entry in found]
    for group in GROUPS:
        for label, keys in group.keys.items():
            key = first_measured(everywhere, keys)
            if key is not None:
                title = group.title if len(group.keys) == 1 else f"{group.title}: {label}"
                figures.append(_overlaid(title, rounds, value_of(key), group.unit))
    note = "Each run's rewards are its own reward model's: their scales differ between runs as between rounds."
    title = "What the benchmarks don't show"
    return Section("measures", "Measures", title, note=note, figures=present(figures))


def _settings(runs: Runs) -> Section:
    """Fields of the recipes in which the runs differ."""
    flat = [_flat(run.recipe) for run in runs.values()]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key != "name"]
    rows = [(key, *(values.get(key, MISSING) for values in flat)) for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return Section("recipe", "Recipe", "What differs", lead="The recipes are the same.")
    table = Table.of(("field", *runs), differing[:MOST_SETTINGS], name="settings")
    left = len(differing) - len(table.rows)
    remark = f"{left} more fields differ." if left else ""
    return Section("recipe", "Recipe", "What differs", tables=(table,), remark=remark)


def _overlaid(title: str, rounds: Mapping[str, Sequence[RoundRecord]], value: Value, unit: Unit) -> Figure | None:
    series = [Series(name, found, value) for name, found in rounds.items()]
    return over_rounds(title, series, unit, name=f"several-{title}")


def _headlines(runs: Runs) -> list[str]:
    return list(dict.fromkeys(key for run in runs.values() for key in headline_keys(run.finished)))


def _flat(values: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): str(values)}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
