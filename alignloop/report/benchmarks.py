"""What became better: the benchmarks over the rounds, round against round, type by type.

Only rounds whose benchmarks were asked alike are put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignloop.evaluation.comparing import Difference, RoundDifferences, protocol_changes, protocol_of
from alignloop.evaluation.report import EvalReport, standing_alone
from alignloop.report import charts
from alignloop.report.content import COUNT, PERCENT, Cell, Details, Figure, PageSection, Table
from alignloop.report.facts import RoundRecord, RunRecord, by_round, round_label
from alignloop.report.figures import ERROR_BARS, heat, over_rounds
from alignloop.report.rounds import FOUR, MAIN_METRICS, MISSING, title_of

TYPES = "type/"
"""What begins the metric of an instruction type."""
NOT_SCORES = ("stop_rate", "mean_tokens", "truncation_rate")
"""Figures of a benchmark that say nothing of how good it is; shown with the measures."""
MOST_READINGS, MOST_COMPARED_ROUNDS = 3, 40
PAIRED = (
    "Differences in points on the same questions, with 95 % intervals paired by question. An interval that holds 0 "
    "is no progress and no regress: it is drawn grey."
)


def headline_keys(rounds: Sequence[RoundRecord]) -> list[str]:
    """Of each benchmark the figure that stands for it: `ifeval/mean`, `mmlu/acc`, `gsm8k/exact_match,strict-match`."""
    keys = _metric_names(rounds)
    found = []
    for task in standing_alone(map(_task_of, keys), _groups(rounds)):
        names = _names_of(task, keys)
        ranked = [n for main in ("mean", "acc", *MAIN_METRICS) for n in names if n.partition(",")[0] == main]
        found += [f"{task}/{name}" for name in [*ranked, *_scores(names)][:1]]
    return found


def alike(run: RunRecord, key: str, *, like: RunRecord | None = None) -> tuple[list[RoundRecord], list[str]]:
    """Finished rounds that were asked a benchmark as the last of `like` (of None: this run), and a note on each that
    was asked otherwise."""
    asked = [entry for entry in (like or run).finished if key in entry.metrics]
    reference = next((e.evaluation for e in reversed(asked) if e.evaluation is not None), None)
    task = _task_of(key)
    kept, notes = [], []
    for entry in (entry for entry in run.finished if key in entry.metrics):
        different = _protocol_changes(reference, entry.evaluation, task)
        if not different:
            kept.append(entry)
            continue
        where = f"{run.name}, round {entry.number}" if like is not None else f"round {entry.number}"
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        notes.append(f"{where}: {task} was asked by another protocol ({different[0]}{more}) and is not compared")
    return kept, notes


def climb(run: RunRecord) -> PageSection:
    """IFEval's mean and four accuracies, MMLU, every other benchmark."""
    figures: list[Figure | None] = []
    notes: list[str] = []
    for key in headline_keys(run.finished):
        rounds, unlike = alike(run, key)
        notes += unlike
        task, title = _task_of(key), title_of(_task_of(key))
        if key == f"{task}/mean":
            four = {name: f"{task}/{metric}" for name, metric in FOUR.items()}
            figures.append(_lines(f"{title}, mean of the four accuracies", rounds, {"mean": key}, name=f"climb-{key}"))
            figures.append(_lines(f"{title}, its four accuracies", rounds, four, name=f"climb-{task}-four"))
        else:
            figures.append(_lines(title, rounds, _readings(key, rounds), name=f"climb-{key}"))
    note = f"In percent; the base is round 0. {ERROR_BARS}" if figures else ""
    shown = tuple(filter(None, figures))
    return PageSection("climb", "Climb", "The climb", note=note, figures=shown, warnings=tuple(notes))


def breakdown(run: RunRecord) -> PageSection:
    """Instruction types of IFEval and tasks of a group: an average that rises can hide one that collapses."""
    figures = []
    keys, groups = _metric_names(run.finished), _groups(run.finished)
    for headline in headline_keys(run.finished):
        task, _, name = headline.partition("/")
        asked = [entry for entry in run.finished if headline in entry.metrics]
        types = {each.removeprefix(TYPES): f"{task}/{each}" for each in _names_of(task, keys) if each.startswith(TYPES)}
        if types:
            title = f"{title_of(task)} by instruction type (strict, %)"
            figures.append(heat(title, asked, types, name=f"{task}-types"))
        members = {leaf.removeprefix(f"{task}_"): f"{leaf}/{name}" for leaf in groups.get(task, ())}
        in_group = {label: key for label, key in members.items() if key in keys}
        if in_group:
            title = f"{title_of(task)} by task ({name}, %)"
            figures.append(heat(title, asked, in_group, name=f"{task}-tasks"))
    return PageSection("breakdown", "By type", "Where it climbs, and where it does not", figures=tuple(figures))


def differences(run: RunRecord) -> PageSection:
    """The benchmarks' paired differences with their 95 % intervals, against the round before and against the base."""
    shown = run.differences[-2 * MOST_COMPARED_ROUNDS :]
    against = {
        "the round before": [pair for pair in shown if pair.against == pair.round - 1],
        "the base": [pair for pair in shown if pair.against == 0 and pair.round > 1],
    }
    figures = (
        _intervals(f"{key}: against {other}", pairs, key)
        for key in headline_keys(run.finished)
        for other, pairs in against.items()
    )
    refused = (
        f"Round {pair.round} is not compared with {round_label(pair.against)}: {pair.refused}"
        for pair in shown
        if pair.refused
    )
    last = max((pair.round for pair in shown), default=0)
    return PageSection(
        "differences",
        "Round against round",
        "Round against round",
        note=PAIRED,
        figures=tuple(filter(None, figures)),
        details=tuple(_every_difference(pair) for pair in shown if pair.round == last and pair.differences),
        warnings=tuple(refused),
    )


def _lines(title: str, rounds: Sequence[RoundRecord], keys: Mapping[str, str], *, name: str) -> Figure | None:
    return over_rounds(title, {label: by_round(rounds, key) for label, key in keys.items()}, PERCENT, name=name)


def _readings(key: str, rounds: Sequence[RoundRecord]) -> dict[str, str]:
    """Beside a benchmark's figure others of the same benchmark: `acc_norm`, the macro average, other filters."""
    task, _, main = key.partition("/")
    others = [name for name in _scores(_names_of(task, _metric_names(rounds))) if name != main]
    # A group's figure and its macro average first: they are over the same answers.
    ordered = sorted(others, key=lambda name: name != f"{main}_macro")
    return {name: f"{task}/{name}" for name in [main, *ordered][:MOST_READINGS]}


def _intervals(title: str, pairs: Sequence[RoundDifferences], key: str) -> Figure | None:
    of_key = ((pair, found) for pair in pairs for found in pair.differences if found.key == key)
    return interval_figure(title, [(f"{round_label(pair.against)} to {pair.round}", found) for pair, found in of_key])


def interval_figure(title: str, found: Sequence[tuple[str, Difference]]) -> Figure | None:
    """Differences by what they are called, those with an interval; None where there is none."""
    rows = [
        (charts.Interval(label, 100 * one.difference, 100 * one.low, 100 * one.high), (label, *_cells(one)))
        for label, one in found
        if one.low is not None and one.high is not None
    ]
    if not rows:
        return None
    heads = ("rounds", "difference", "from", "to", "questions", "verdict")
    numbers = Table.of(heads, [cells for _, cells in rows], name=f"differences {title}")
    return Figure(title, charts.intervals([bar for bar, _ in rows], x_title="points"), numbers)


def _every_difference(pair: RoundDifferences) -> Details:
    rows = [
        (found.key, PERCENT.cell(found.before), PERCENT.cell(found.after), *_cells(found))
        for found in pair.differences
        if not found.key.endswith("/mean_tokens")
    ]
    heads = ("figure", "before", "after", "difference", "from", "to", "questions", "verdict")
    table = Table.of(heads, rows, name=f"differences-{pair.round}-{pair.against}")
    return Details(f"Round {pair.round} against {round_label(pair.against)}: every figure", table)


def _cells(found: Difference) -> tuple[str | Cell, ...]:
    ends = (found.difference, found.low, found.high)
    numbers = [Cell(MISSING) if value is None else Cell(f"{100 * value:+.1f}", value) for value in ends]
    return (*numbers, COUNT.cell(found.num_pairs), verdict(found))


def verdict(found: Difference) -> str:
    return ("better" if found.difference > 0 else "worse") if found.is_clear else "within noise"


def _protocol_changes(one: EvalReport | None, other: EvalReport | None, task: str) -> list[str]:
    """In what the protocols of a task differ; empty where they are the same, or one is not known.

    A group's tasks (`mmlu_law` of `mmlu`) count, and what other tasks were asked with does not.
    """
    if one is None or other is None:
        return []
    return protocol_changes(protocol_of(one.protocol, task), protocol_of(other.protocol, task))


def _groups(rounds: Sequence[RoundRecord]) -> dict[str, list[str]]:
    return {name: leaves for entry in rounds for name, leaves in entry.groups.items()}


def _metric_names(rounds: Sequence[RoundRecord]) -> list[str]:
    return list(dict.fromkeys(key for entry in rounds for key in entry.metrics))


def _task_of(key: str) -> str:
    """`ifeval/mean` -> `ifeval`."""
    return key.partition("/")[0]


def _names_of(task: str, keys: Sequence[str]) -> list[str]:
    return [key.removeprefix(f"{task}/") for key in keys if key.startswith(f"{task}/")]


def _scores(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in NOT_SCORES and "/" not in name]
