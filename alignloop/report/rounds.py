"""A round's line of `rounds.jsonl`, and a run's rounds as tables of plain text, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from alignloop.artifacts import Artifact
from alignloop.evaluation.comparing import Difference, RoundDifferences, not_clearly_better
from alignloop.evaluation.report import standing_alone
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import Manifest
from alignloop.run_dir.reader import published_stages
from alignloop.terminal import WIDTH

UNCOUNTED = ("average", "base", "evaluate", "evaluate_test", "measure")
"""Stages whose counts are not of rows."""
MISSING = "-"
MOST_ROWS = 40
"""Rounds in a table of text: of more, those that were asked the benchmarks stand for all."""
FOUR = {
    "prompt strict": "prompt_level_strict_acc",
    "prompt loose": "prompt_level_loose_acc",
    "instr. strict": "inst_level_strict_acc",
    "instr. loose": "inst_level_loose_acc",
}
"""IFEval's accuracies: a task that reports them is of its form."""
ACTIVITIES = {"sample": "sampling", "train": "training", "score": "scoring", "eval": "evaluating"}
"""Heading -> activity with a column of its own; all others are summed."""
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "f1", "bleu")
"""Of a benchmark other than IFEval and MMLU, the first of these it reports is shown."""
Groups = Mapping[str, Sequence[str]]
"""Of the benchmarks' protocol: a group's name -> its tasks."""


def round_row(run_dir: Path, number: int, *, policy: Artifact, stderr: dict[str, float]) -> RoundRow:
    """What a round came to, from what its stages published. `policy` is the checkpoint the round ends with (of round 0:
    the base); `stderr` has the benchmarks' standard errors under the metrics' names."""
    manifests = [stage.manifest for stage in published_stages(run_dir, number)]
    trained = _metrics(manifests, "train_reward")
    heldout = {name.replace("eval_", "heldout_"): value for name, value in trained.items() if name.startswith("eval_")}
    return RoundRow(
        round=number,
        policy=policy.path.relative_to(run_dir.resolve()).as_posix(),
        metrics=_metrics(manifests, "evaluate"),
        stderr=stderr,
        reward_model=heldout | _metrics(manifests, "select"),
        rows={
            f"{manifest.stage}_{name}": count
            for manifest in manifests
            if manifest.stage not in UNCOUNTED
            for name, count in manifest.counts.items()
        },
        seconds=_rounded(seconds_by_activity(manifests)),
        measures=_metrics(manifests, "measure"),
    )


def seconds_of(run_dir: Path, number: int) -> dict[str, float]:
    """By activity, of a round's stages so far, as its line has them."""
    return _rounded(seconds_by_activity(stage.manifest for stage in published_stages(run_dir, number)))


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {activity: round(value, 3) for activity, value in seconds.items()}


def seconds_by_activity(manifests: Iterable[Manifest]) -> dict[str, float]:
    """Wall seconds over all of them."""
    total: dict[str, float] = {}
    for manifest in manifests:
        for activity, seconds in manifest.seconds.items():
            total[activity] = total.get(activity, 0.0) + seconds
    return total


def _metrics(manifests: Sequence[Manifest], stage: str) -> dict[str, float]:
    return {name: value for m in manifests if m.stage == stage for name, value in m.metrics.items()}


Value = Callable[[RoundRow], float | None]


class Column(NamedTuple):
    """The group it stands under, two lines of heading, and the number of a round with so many digits."""

    group: str
    heading: tuple[str, str]
    value: Value
    digits: int = 0

    def cell(self, row: RoundRow) -> str:
        value = self.value(row)
        return MISSING if value is None else f"{value:.{self.digits}f}"


ROUND = Column("", ("", "round"), lambda row: row.round)


def groups_of(run_dir: Path) -> dict[str, list[str]]:
    """The benchmarks' groups with their tasks, as the base was asked; none where it was not yet."""
    protocols = [stage.manifest.facts.get("protocol", {}) for stage in published_stages(run_dir, 0)]
    return {name: leaves for protocol in protocols for name, leaves in protocol.get("groups", {}).items()}


def title_of(task: str) -> str:
    """`ifeval_dev` -> `IFEval dev`."""
    if task == "ifeval" or task.startswith("ifeval_"):
        return task.replace("ifeval", "IFEval", 1).replace("_", " ")
    return "MMLU" if task == "mmlu" else task


def in_points(found: Difference) -> str:
    """`+3.2 (0.4 to 6.0)`."""
    reach = "" if found.low is None or found.high is None else f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{100 * found.difference:+.1f}{reach}"


def names_of(tasks: Sequence[str]) -> str:
    """Of tasks as a recipe names them: `ifeval, ifeval_unseen`."""
    return ", ".join(task.partition("=")[0] for task in tasks)


def doubt_of(best: int, metric: str, rows: Sequence[RoundRow], differences: Sequence[RoundDifferences]) -> str | None:
    """That the best round is `not clearly better than round 4: +0.8 (-1.9 to +3.5) points`, of the round before it and
    the last one that were asked, where they passed the gate; None where it is, or no interval tells."""
    asked = [row for row in rows if row.metrics]
    before = max((row.round for row in asked if row.round < best), default=best)
    others = [row.round for row in asked if row.gated is None and row.round in (before, asked[-1].round)]
    found = not_clearly_better(best, [other for other in others if other != best], metric, differences)
    against = [f"{f'round {other}' if other else 'the base'}: {in_points(ahead)} points" for other, ahead in found]
    return f"not clearly better than {', nor than '.join(against)}" if against else None


def text_tables(rows: Sequence[RoundRow], *, groups: Groups) -> str:
    """Rounds: quality, other benchmarks where there are any, and the work; a table is as wide as fits, and of
    `MOST_ROWS` at most."""
    rows, left_out = _few(rows)
    parts = (_quality_columns(rows), _other_columns(rows, groups=groups))
    tables = [[ROUND, *columns] for part in parts for columns in _fitting(part, rows)]
    shown = [_table(columns, rows) for columns in (*tables, _work_columns())]
    return "\n\n".join([*shown, *([f"{left_out:,} rounds between these are left out"] if left_out else [])])


def _few(rows: Sequence[RoundRow]) -> tuple[list[RoundRow], int]:
    """Not more than fit a table, and how many are left out: of many rounds those that were asked the benchmarks, of
    many of those some, evenly, and always the first and the last."""
    if len(rows) <= MOST_ROWS:
        return list(rows), 0
    asked = [row for row in rows[:-1] if row.metrics]
    step = -(-len(asked) // (MOST_ROWS - 1))
    few = [*asked[::step], rows[-1]] if asked else [rows[0], rows[-1]]
    return few, len(rows) - len(few)


def markdown_table(rows: Sequence[RoundRow], *, groups: Groups) -> str:
    """Quality and other benchmarks, for a model card."""
    rows, _ = _few(rows)
    columns = [ROUND, *_quality_columns(rows), *_other_columns(rows, groups=groups)]
    parts = [[part for part in (column.group, *column.heading) if part and part != "%"] for column in columns]
    headings = [" ".join(words).replace("- ", "-").replace(", %", "") for words in parts]
    lines = [f"| {' | '.join(headings)} |", f"|{' ---: |' * len(columns)}"]
    lines += [f"| {' | '.join(column.cell(row) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _quality_columns(rows: Sequence[RoundRow]) -> list[Column]:
    """Benchmarks of IFEval's form and MMLU in percent, where they were asked, then the reward model."""
    reported = {key: None for row in rows for key in row.metrics}
    columns = []
    tasks = _of_ifevals_form(rows)
    for task in tasks:
        columns += _ifeval_columns(task, is_alone=len(tasks) == 1)
    if any(key.startswith("mmlu/") for key in reported):
        metric = "acc" if "mmlu/acc" in reported else "acc_norm"
        columns.append(_metric("MMLU", ("%", metric), f"mmlu/{metric}"))
    group = "reward model"
    return [
        *columns,
        Column(group, ("held-", "out, %"), lambda row: _percent(row.reward_model.get("heldout_accuracy")), 1),
        Column(group, ("reward", "random"), lambda row: row.reward_model.get("mean_reward_random"), 2),
        Column(group, ("best", "of K"), lambda row: row.reward_model.get("mean_reward_best"), 2),
    ]


def _of_ifevals_form(rows: Sequence[RoundRow]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row.metrics)
    return [task for task, _, metric in (key.partition("/") for key in keys) if metric == FOUR["prompt strict"]]


def _ifeval_columns(task: str, *, is_alone: bool) -> list[Column]:
    """All four accuracies, or of several tasks the first, that they stand beside each other; the mean and its error."""
    group, mean = f"{title_of(task)}, %" if is_alone else title_of(task), f"{task}/mean"
    columns = []
    for name, metric in FOUR.items() if is_alone else list(FOUR.items())[:1]:
        first, _, second = name.partition(" ")
        columns.append(_metric(group, (first, second), f"{task}/{metric}"))
    columns.append(_metric(group, ("", "mean"), mean))
    return [
        *columns,
        Column(group, ("std.", "error" if is_alone else "err."), lambda row: _percent(row.stderr.get(mean)), 1),
    ]


def _other_columns(rows: Sequence[RoundRow], *, groups: Groups) -> list[Column]:
    """One column a benchmark that is neither of IFEval's form nor MMLU."""
    main: dict[str, tuple[int, str]] = {}
    keys = dict.fromkeys(key for row in rows for key in row.metrics)
    others = {*standing_alone((key.partition("/")[0] for key in keys), groups)} - {"mmlu", *_of_ifevals_form(rows)}
    for key in keys:
        task, _, metric = key.partition("/")
        name = metric.partition(",")[0]
        if task in others and name in MAIN_METRICS:
            rank = MAIN_METRICS.index(name)
            if task not in main or rank < main[task][0]:
                main[task] = (rank, metric)
    return [_metric(task, ("%", metric), f"{task}/{metric}") for task, (_, metric) in main.items()]


def _work_columns() -> list[Column]:
    return [
        ROUND,
        Column("rows", ("prefe-", "rences"), _rows("collect_preferences", "collect_annotated")),
        Column("rows", ("candi-", "dates"), _rows("sample_candidates")),
        Column("SFT rows", ("", "kept"), _rows("prune_kept")),
        Column("SFT rows", ("", "drop"), _rows("prune_dropped")),
        Column("DPO pairs", ("", "kept"), _rows("build_pairs_kept")),
        Column("DPO pairs", ("", "drop"), _rows("build_pairs_dropped")),
        *(Column("seconds", ("", heading), _seconds(activity)) for heading, activity in ACTIVITIES.items()),
        Column("seconds", ("", "other"), _other_seconds),
        Column("seconds", ("", "all"), lambda row: sum(row.seconds.values())),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _metric(group: str, heading: tuple[str, str], key: str) -> Column:
    return Column(group, heading, lambda row: _percent(row.metrics.get(key)), 1)


def _rows(*keys: str) -> Value:
    return lambda row: sum(row.rows.get(key, 0) for key in keys) if row.rows.keys() & keys else None


def _seconds(activity: str) -> Value:
    return lambda row: row.seconds.get(activity)


def _other_seconds(row: RoundRow) -> float:
    return sum(seconds for activity, seconds in row.seconds.items() if activity not in ACTIVITIES.values())


def _table(columns: Sequence[Column], rows: Sequence[RoundRow]) -> str:
    """Right-aligned columns under two lines of heading and a line of groups."""
    widths = _widths(columns, rows)
    cells = [[column.cell(row) for row in rows] for column in columns]
    texts = [[column.heading[level] for column in columns] for level in (0, 1)] + [
        list(line) for line in zip(*cells, strict=True)
    ]
    lines = [_group_line(columns, widths)]
    lines += [" ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in texts]
    return "\n".join(line for line in lines if line)


def _group_line(columns: Sequence[Column], widths: Sequence[int]) -> str:
    """Each group's name once, over all its columns."""
    parts = []
    for name, members in groupby(zip(columns, widths, strict=True), key=lambda pair: pair[0].group):
        taken = [width for _, width in members]
        span = sum(taken) + len(taken) - 1
        parts.append(" " * span if not name else name.rjust(span) if len(taken) == 1 else f" {name} ".center(span, "-"))
    return " ".join(parts).rstrip()


def _widths(columns: Sequence[Column], rows: Sequence[RoundRow]) -> list[int]:
    """Of each column; the first of a group is wide enough for the group's name over all of them."""
    widths = [max(map(len, [*column.heading, *(column.cell(row) for row in rows)])) for column in columns]
    for name, members in groupby(range(len(columns)), key=lambda index: columns[index].group):
        own = list(members)
        span = sum(widths[index] for index in own) + len(own) - 1
        widths[own[0]] += max(0, len(name if len(own) == 1 else f" {name} ") - span)
    return widths


def _fitting(columns: Sequence[Column], rows: Sequence[RoundRow]) -> list[list[Column]]:
    """Columns by the line: groups stay whole, and each line fits the width beside the round's number."""
    lines: list[list[Column]] = []
    width_left = 0
    for _, members in groupby(zip(columns, _widths(columns, rows), strict=True), key=lambda pair: pair[0].group):
        own, widths = zip(*members, strict=True)
        need = sum(widths) + len(widths)
        if not lines or need > width_left:
            lines.append([])
            width_left = WIDTH - len("round")
        lines[-1] += own
        width_left -= need
    return lines
