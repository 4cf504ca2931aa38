"""What became better: the benchmarks over the rounds, round against round, type by type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignloop.report.html import elements
from alignloop.report.html.elements import Cell, Table, percent
from alignloop.report.html.facts import RoundFacts, RunFacts
from alignloop.report.html.series import alike, line, metric, present, table_of
from alignloop.report.plots import charts
from alignloop.report.table import MAIN_METRICS

IFEVAL = {
    "prompt strict": "ifeval/prompt_level_strict_acc",
    "prompt loose": "ifeval/prompt_level_loose_acc",
    "instr. strict": "ifeval/inst_level_strict_acc",
    "instr. loose": "ifeval/inst_level_loose_acc",
}
TYPES = "ifeval/type/"
NOT_SCORES = ("stop_rate", "mean_tokens", "truncation_rate")
"""Figures of a benchmark that say nothing of how good it is; shown with the measures."""
MOST_COLUMNS, MOST_NAMES, MOST_READINGS = 12, 60, 3
BARS = "Error bars: 95 % intervals (1.96 standard errors)."


def headline_keys(rounds: Sequence[RoundFacts]) -> list[str]:
    """Of each benchmark the figure that stands for it: `ifeval/mean`, `mmlu/acc`, `gsm8k/exact_match,strict-match`."""
    keys = [key for entry in rounds if entry.row is not None for key in entry.row.metrics]
    tasks = list(dict.fromkeys(key.partition("/")[0] for key in keys))
    groups = {task for task in tasks if any(other.startswith(f"{task}_") for other in tasks)}
    found = []
    for task in tasks:
        if any(task.startswith(f"{group}_") for group in groups):
            continue
        names = list(dict.fromkeys(key.partition("/")[2] for key in keys if key.startswith(f"{task}/")))
        ranked = [name for main in ("mean", "acc", *MAIN_METRICS) for name in names if name.partition(",")[0] == main]
        scores = [name for name in names if name not in NOT_SCORES and "/" not in name]
        if ranked or scores:
            found.append(f"{task}/{(ranked or scores)[0]}")
    return found


def climb(run: RunFacts) -> str:
    """IFEval's mean and four accuracies, MMLU, every other benchmark."""
    figures, notes = [], []
    for key in headline_keys(run.finished):
        rounds, unlike = alike(run, key)
        notes += unlike
        if key == "ifeval/mean":
            figures.append(_scores("IFEval, mean of the four accuracies", rounds, {"mean": key}, name=f"climb-{key}"))
            figures.append(_scores("IFEval, its four accuracies", rounds, IFEVAL, name="climb-ifeval-four"))
        else:
            figures.append(_scores(_benchmark_title(key), rounds, _readings(key, rounds), name=f"climb-{key}"))
    parts = [elements.paragraph(f"In percent; the base is round 0. {BARS}", kind="note"), elements.grid(figures)]
    return elements.section(
        "The climb", [*(parts if figures else []), elements.bullets(notes, kind="warn")], name="climb"
    )


def breakdown(run: RunFacts) -> str:
    """Instruction types of IFEval and tasks of a group: an average that rises can hide one that collapses."""
    figures = []
    keys = list(dict.fromkeys(key for row in run.rows for key in row.metrics))
    types = {key.removeprefix(TYPES): key for key in keys if key.startswith(TYPES)}
    if types:
        figures.append(_heat("IFEval by instruction type (strict, %)", run, types, name="ifeval-types"))
    for headline in headline_keys(run.finished):
        task, _, name = headline.partition("/")
        members = {_subject(key, task): key for key in keys if key.startswith(f"{task}_") and key.endswith(f"/{name}")}
        if members:
            figures.append(
                _heat(f"{_benchmark_title(headline)} by task ({name}, %)", run, members, name=f"{task}-tasks")
            )
    return elements.section("Where it climbs, and where it does not", [elements.grid(figures)], name="breakdown")


def _scores(title: str, rounds: Sequence[RoundFacts], keys: dict[str, str], *, name: str) -> str:
    lines = present([line(label, rounds, metric(key), scale=100.0) for label, key in keys.items()])
    if not lines:
        return ""
    spec = charts.by_round(lines, y_title="%", least=0.0, most=100.0)
    columns = [(label, metric(key)) for label, key in keys.items()]
    return elements.figure(title, spec, numbers=table_of(rounds, columns, as_percent=True), name=name)


def _readings(key: str, rounds: Sequence[RoundFacts]) -> dict[str, str]:
    """A benchmark's figure and others of the same benchmark: `acc_norm`, the macro average, other filters."""
    task, _, main = key.partition("/")
    names = [
        k.partition("/")[2] for entry in rounds if entry.row for k in entry.row.metrics if k.startswith(f"{task}/")
    ]
    others = [name for name in dict.fromkeys(names) if name not in (main, *NOT_SCORES) and "/" not in name]
    # A group's figure and its macro average first: they are over the same answers.
    ordered = sorted(others, key=lambda name: name != f"{main}_macro")
    return {name: f"{task}/{name}" for name in [main, *ordered][:MOST_READINGS]}


def _heat(title: str, run: RunFacts, keys: dict[str, str], *, name: str) -> str:
    rounds = evenly(run.finished, most=MOST_COLUMNS)
    names = list(keys)[:MOST_NAMES]
    short = _short_names(names)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str | Cell, ...]] = []
    for label in names:
        values = [entry.row.metrics.get(keys[label]) if entry.row else None for entry in rounds]
        rows += [
            {"name": short[label], "x": entry.label, "value": 100 * value}
            for entry, value in zip(rounds, values, strict=True)
            if value is not None
        ]
        cells.append((label, *(percent(value) for value in values)))
    spec = charts.heat(rows, names=[short[label] for label in names], columns=[e.label for e in rounds])
    left = [f"{len(keys) - len(names)} more rows"] if len(names) < len(keys) else []
    left += [f"{len(run.finished) - len(rounds)} rounds between"] if len(rounds) < len(run.finished) else []
    numbers = Table(("type", *(e.label for e in rounds)), tuple(cells))
    note = f"Left out here: {', '.join(left)}." if left else ""
    return elements.figure(title, spec, numbers=numbers, note=note, name=name)


def evenly(rounds: Sequence[RoundFacts], *, most: int) -> list[RoundFacts]:
    """At most so many rounds, the first and the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[round(index * (len(rounds) - 1) / (most - 1))] for index in range(most)]


def _benchmark_title(key: str) -> str:
    task = key.partition("/")[0]
    return {"ifeval": "IFEval", "mmlu": "MMLU"}.get(task, task)


def _subject(key: str, task: str) -> str:
    return key.partition("/")[0].removeprefix(f"{task}_")


def _short_names(labels: Sequence[str]) -> dict[str, str]:
    """`detectable_format:title` -> `title`, what a narrow chart has room for, where that names one alone."""
    last = [label.rpartition(":")[2] for label in labels]
    return {label: label if last.count(end) > 1 else end for label, end in zip(labels, last, strict=True)}
