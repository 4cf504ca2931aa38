"""A round's line of `rounds.jsonl`, and a run's rounds as tables of plain text, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from alignloop.artifacts import Artifact
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import Manifest
from alignloop.run_dir.reader import published_stages
from alignloop.terminal import WIDTH

UNCOUNTED = ("average", "base", "evaluate", "measure")
"""Stages whose counts are not of rows."""
MISSING = "-"
IFEVAL = {
    "prompt strict": "ifeval/prompt_level_strict_acc",
    "prompt loose": "ifeval/prompt_level_loose_acc",
    "instr. strict": "ifeval/inst_level_strict_acc",
    "instr. loose": "ifeval/inst_level_loose_acc",
}
ACTIVITIES = {"sample": "sampling", "train": "training", "score": "scoring", "eval": "evaluating"}
"""Heading -> activity with a column of its own; all others are summed."""
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "f1", "bleu")
"""Of a benchmark other than IFEval and MMLU, the first of these it reports is shown."""


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
        seconds={activity: round(seconds, 3) for activity, seconds in seconds_by_activity(manifests).items()},
        measures=_metrics(manifests, "measure"),
    )


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


def text_tables(rows: Sequence[RoundRow]) -> str:
    """All rounds: quality, other benchmarks where there are any, and the work."""
    others = [[ROUND, *columns] for columns in _fitting(_other_columns(rows), rows)]
    return "\n\n".join(_table(columns, rows) for columns in (_quality_columns(rows), *others, _work_columns()))


def markdown_table(rows: Sequence[RoundRow]) -> str:
    """Quality and other benchmarks, for a model card."""
    columns = [*_quality_columns(rows), *_other_columns(rows)]
    parts = [[part for part in (column.group, *column.heading) if part and part != "%"] for column in columns]
    headings = [" ".join(words).replace("- ", "-").replace(", %", "") for words in parts]
    lines = [f"| {' | '.join(headings)} |", f"|{' ---: |' * len(columns)}"]
    lines += [f"| {' | '.join(column.cell(row) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _quality_columns(rows: Sequence[RoundRow]) -> list[Column]:
    """IFEval and MMLU in percent, where they are among the benchmarks, then the reward model."""
    reported = {key for row in rows for key in row.metrics}
    columns = [ROUND]
    if any(key.startswith("ifeval/") for key in reported):
        for name, key in IFEVAL.items():
            first, _, second = name.partition(" ")
            columns.append(_metric("IFEval, %", (first, second), key))
        columns.append(_metric("IFEval, %", ("", "mean"), "ifeval/mean"))
        columns.append(Column("IFEval, %", ("std.", "error"), lambda row: _percent(row.stderr.get("ifeval/mean")), 1))
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


def _other_columns(rows: Sequence[RoundRow]) -> list[Column]:
    """One column a benchmark that is neither IFEval nor MMLU."""
    main: dict[str, tuple[int, str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        task, _, metric = key.partition("/")
        name = metric.partition(",")[0]
        if task != "ifeval" and not task.startswith("mmlu") and name in MAIN_METRICS:
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
    cells = [[column.cell(row) for row in rows] for column in columns]
    alone = [sum(other.group == column.group for other in columns) == 1 for column in columns]
    widths = [
        max(map(len, [*column.heading, *values, column.group if single else ""]))
        for column, values, single in zip(columns, cells, alone, strict=True)
    ]
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


def _fitting(columns: Sequence[Column], rows: Sequence[RoundRow]) -> list[list[Column]]:
    """Columns in groups that each fit the width beside the round's number."""
    groups: list[list[Column]] = []
    width_left = 0
    for column in columns:
        need = max(map(len, [column.group, *column.heading, *(column.cell(row) for row in rows)])) + 1
        if not groups or need > width_left:
            groups.append([])
            width_left = WIDTH - len("round")
        groups[-1].append(column)
        width_left -= need
    return groups
