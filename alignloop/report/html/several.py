"""Several runs beside each other: the same figures in the same charts, where they were measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from alignloop.report.html import elements
from alignloop.report.html.climb import BARS, headline_keys
from alignloop.report.html.completions import BUDGET_BYTES, OWN_SCALES, side_by_side
from alignloop.report.html.elements import MISSING, Cell, Table, count, number, percent, with_error
from alignloop.report.html.facts import RoundFacts, RunFacts
from alignloop.report.html.measures import GROUPS
from alignloop.report.html.page import MOST_BYTES, document, said, warnings
from alignloop.report.html.series import Measured, Value, alike, line, measure, metric, present
from alignloop.report.html.text import html
from alignloop.report.html.work import seconds_of
from alignloop.report.plots import charts

_MARGIN_BYTES = 100_000
MOST_SETTINGS = 200


def several_page(runs: Sequence[RunFacts]) -> str:
    """The report of two or more runs."""
    names = run_names(runs)
    top = _top(runs, names)
    sections = [_climb(runs, names), _measures(runs, names), _settings(runs, names)]
    taken = sum(len(part.encode()) for part in (*sections, *top)) + _MARGIN_BYTES
    ends = [(name, end) for name, run in zip(names, runs, strict=True) if (end := _end(run)) is not None]
    labels = [(f"{name}, round {end.label}", end) for name, end in ends]
    answers = side_by_side(
        labels,
        budget_bytes=max(0, min(BUDGET_BYTES, MOST_BYTES - taken)),
        title="The same prompts, run by run",
        scale=OWN_SCALES,
    )
    return document(f"{', '.join(names)}: alignloop report", top, [*sections, answers], kind="several")


def run_names(runs: Sequence[RunFacts]) -> list[str]:
    """Folder names; with as many folders above as tell two runs apart."""
    paths = [PurePath(run.dir.resolve()) for run in runs]
    longest = max(len(path.parts) for path in paths)
    for depth in range(1, longest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _top(runs: Sequence[RunFacts], names: Sequence[str]) -> list[str]:
    keys = list(dict.fromkeys(key for run in runs for key in headline_keys(run.finished)))
    rows: list[tuple[str | Cell, ...]] = []
    for name, run in zip(names, runs, strict=True):
        end = _end(run)
        cells = [_cell(metric(key)(end) if end is not None else None) for key in keys]
        seconds = sum(sum(seconds_of(entry).values()) for entry in run.rounds)
        done = max((row.round for row in run.rows), default=0)
        rows.append((name, Cell(str(done), done), MISSING if end is None else end.label, *cells, count(seconds)))
    heads = ("run", "rounds done", "best round", *(f"{key}, %" for key in keys), "seconds")
    warned = [f"{n}: {line}" for n, run in zip(names, runs, strict=True) for line in (*warnings(run), *run.notes)]
    begun = [
        f"{name}: {sentence}"
        for name, run in zip(names, runs, strict=True)
        if len(run.rows) < 2
        for sentence in said(run)[:1]
    ]
    return [
        f"<header><h1>{html(' · '.join(names))}</h1>",
        elements.table(Table(heads, tuple(rows)), name="runs"),
        elements.bullets([*warned, *begun], kind="flags"),
        "</header>",
    ]


def _climb(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in headline_keys(run.finished)))
    figures, notes = [], []
    for key in keys:
        kept = []
        # The first run that has the figure sets the protocol.
        like = next(run for run in runs if any(key in row.metrics for row in run.rows))
        for run in runs:
            rounds, unlike = alike(run, key, like=like)
            kept.append(rounds)
            notes += unlike
        figures.append(_overlaid(key, names, kept, metric(key), is_share=True))
    words = f"In percent. {BARS} Runs are drawn together where their benchmarks were asked alike."
    parts = [elements.paragraph(words, kind="note"), elements.grid(figures), elements.bullets(notes, kind="warn")]
    return elements.section("The climb", parts if figures else [], name="climb")


def _measures(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    figures = []
    rounds = [run.finished for run in runs]
    for group in GROUPS:
        for label, keys in group.keys.items():
            key = next((k for k in keys for found in rounds for entry in found if _value(k)(entry)), None)
            if key is not None:
                title = group.title if len(group.keys) == 1 else f"{group.title}: {label}"
                figure = _overlaid(
                    title,
                    names,
                    rounds,
                    _value(key),
                    is_share=group.is_share,
                    is_signed=group.is_signed,
                    y_title=group.y_title,
                )
                figures.append(figure)
    words = "Each run's rewards are its own reward model's: their scales differ between runs as between rounds."
    parts = [elements.paragraph(words, kind="note"), elements.grid(figures)]
    return elements.section("What the benchmarks don't show", parts if figures else [], name="measures")


def _overlaid(
    title: str,
    names: Sequence[str],
    rounds: Sequence[Sequence[RoundFacts]],
    value: Value,
    *,
    is_share: bool,
    is_signed: bool = False,
    y_title: str = "%",
) -> str:
    scale, bounded = 100.0 if is_share else 1.0, is_share and not is_signed
    lines = present([line(_short(n), found, value, scale=scale) for n, found in zip(names, rounds, strict=True)])
    if not lines:
        return ""
    numbers = sorted({entry.number for found in rounds for entry in found})
    rows: list[tuple[str | Cell, ...]] = []
    for wanted in numbers:
        entries = [next((e for e in found if e.number == wanted), None) for found in rounds]
        cells = [_cell(None if e is None else value(e), is_share=is_share) for e in entries]
        rows.append(("base" if wanted == 0 else str(wanted), *cells))
    table = Table(("round", *names), tuple(rows))
    spec = charts.by_round(lines, y_title=y_title, least=0.0 if bounded else None, most=100.0 if bounded else None)
    return elements.figure(title, spec, numbers=table, name=f"several-{title}")


def _settings(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    """Fields of the recipes in which the runs differ."""
    flat = [_flat(run.recipe) for run in runs]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key != "name"]
    differing = [key for key in keys if len({values.get(key, MISSING) for values in flat}) > 1]
    rows = tuple((key, *(values.get(key, MISSING) for values in flat)) for key in differing[:MOST_SETTINGS])
    if not rows:
        return elements.section("What differs", [elements.paragraph("The recipes are the same.")], name="recipe")
    left = len(differing) - len(rows)
    parts = [elements.table(Table(("field", *names), rows), name="settings")]
    parts += [elements.paragraph(f"{left} more fields differ.", kind="note")] if left else []
    return elements.section("What differs", parts, name="recipe")


def _flat(values: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): str(values)}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}


def _value(key: str) -> Value:
    return metric(key) if key.startswith("ifeval/") else measure(key)


def _end(run: RunFacts) -> RoundFacts | None:
    """The run's best round, or its last."""
    return run.best or (run.finished[-1] if run.finished else None)


def _cell(found: Measured | None, *, is_share: bool = True) -> Cell:
    if found is None:
        return percent(None)
    if is_share:
        return with_error(found.value, found.stderr)
    return number(found.value) if found.stderr is None else with_error(found.value, found.stderr, scale=1.0, digits=3)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"
