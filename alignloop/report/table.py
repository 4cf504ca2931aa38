"""A run's rounds as tables of plain text, at most 80 columns wide: what became better, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from alignloop.records import RoundRow

MISSING = "-"
WIDTH = 80
ACTIVITIES = {"sample": "sampling", "train": "training", "score": "scoring", "eval": "evaluating"}
"""Heading -> activity with a column of its own; all others are summed."""
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "f1", "bleu")
"""Of a benchmark other than IFEval and MMLU, the first of these it reports is shown."""


@dataclass(frozen=True)
class Column:
    """A column: the group it stands under, two lines of heading, and the cell of a round."""

    group: str
    heading: tuple[str, str]
    cell: Callable[[RoundRow], str]


ROUND = Column("", ("", "round"), lambda row: str(row.round))


def text_tables(rows: Sequence[RoundRow]) -> str:
    """All rounds: quality, other benchmarks where there are any, and the work."""
    others = [render([ROUND, *columns], rows) for columns in _fitting(other_columns(rows), rows)]
    return "\n\n".join([render(quality_columns(rows), rows), *others, render(work_columns(), rows)])


def quality_columns(rows: Sequence[RoundRow]) -> list[Column]:
    """IFEval and MMLU in percent, where they are among the benchmarks, then the reward model."""
    reported = {key for row in rows for key in row.metrics}
    columns = [ROUND]
    if any(key.startswith("ifeval/") for key in reported):
        columns += [
            _percent("IFEval, %", ("prompt", "strict"), "ifeval/prompt_level_strict_acc"),
            _percent("IFEval, %", ("prompt", "loose"), "ifeval/prompt_level_loose_acc"),
            _percent("IFEval, %", ("instr.", "strict"), "ifeval/inst_level_strict_acc"),
            _percent("IFEval, %", ("instr.", "loose"), "ifeval/inst_level_loose_acc"),
            _percent("IFEval, %", ("", "mean"), "ifeval/mean"),
            Column("IFEval, %", ("std.", "error"), lambda row: percent(row.stderr.get("ifeval/mean"))),
        ]
    if any(key.startswith("mmlu/") for key in reported):
        metric = "acc" if "mmlu/acc" in reported else "acc_norm"
        columns.append(_percent("MMLU", ("%", metric), f"mmlu/{metric}"))
    return [
        *columns,
        Column("reward model", ("held-", "out, %"), lambda row: percent(row.reward_model.get("heldout_accuracy"))),
        Column("reward model", ("reward", "random"), lambda row: decimal(row.reward_model.get("mean_reward_random"))),
        Column("reward model", ("best", "of K"), lambda row: decimal(row.reward_model.get("mean_reward_best"))),
    ]


def other_columns(rows: Sequence[RoundRow]) -> list[Column]:
    """One column a benchmark that is neither IFEval nor MMLU."""
    keys: dict[str, str] = {}
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        task, _, metric = key.partition("/")
        if task == "ifeval" or task.startswith("mmlu") or _rank(metric) is None:
            continue
        if task not in keys or (_rank(metric) or 0) < (_rank(keys[task].partition("/")[2]) or 0):
            keys[task] = key
    return [_percent(task, ("%", key.partition("/")[2]), key) for task, key in keys.items()]


def work_columns() -> list[Column]:
    """Rows kept and dropped, seconds by activity."""
    return [
        ROUND,
        _count("rows", ("prefe-", "rences"), "collect_preferences", "collect_annotated"),
        _count("rows", ("candi-", "dates"), "sample_candidates"),
        _count("SFT rows", ("", "kept"), "prune_kept"),
        _count("SFT rows", ("", "drop"), "prune_dropped"),
        _count("DPO pairs", ("", "kept"), "build_pairs_kept"),
        _count("DPO pairs", ("", "drop"), "build_pairs_dropped"),
        *(_seconds(heading, activity) for heading, activity in ACTIVITIES.items()),
        Column("seconds", ("", "other"), lambda row: f"{_other_seconds(row):.0f}"),
        Column("seconds", ("", "all"), lambda row: f"{sum(row.seconds.values()):.0f}"),
    ]


def render(columns: Sequence[Column], rows: Sequence[RoundRow]) -> str:
    """Right-aligned columns under two lines of heading and a line of groups."""
    cells = [[column.cell(row) for row in rows] for column in columns]
    alone = [sum(other.group == column.group for other in columns) == 1 for column in columns]
    widths = [
        max(map(len, [*column.heading, *values, column.group if single else ""]))
        for column, values, single in zip(columns, cells, alone, strict=True)
    ]
    lines = [_group_line(columns, widths)]
    lines += [_line([column.heading[level] for column in columns], widths) for level in (0, 1)]
    lines += [_line(line, widths) for line in zip(*cells, strict=True)]
    return "\n".join(line for line in lines if line.strip())


def markdown_table(rows: Sequence[RoundRow]) -> str:
    """Quality and other benchmarks, for a model card."""
    columns = [*quality_columns(rows), *other_columns(rows)]
    parts = [[part for part in (column.group, *column.heading) if part and part != "%"] for column in columns]
    headings = [" ".join(words).replace("- ", "-").replace(", %", "") for words in parts]
    lines = [f"| {' | '.join(headings)} |", f"|{' ---: |' * len(columns)}"]
    lines += [f"| {' | '.join(column.cell(row) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share in percent with one decimal, without the sign."""
    return MISSING if value is None else f"{100 * value:.1f}"


def decimal(value: float | None) -> str:
    """A reward with two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def _percent(group: str, heading: tuple[str, str], key: str) -> Column:
    return Column(group, heading, lambda row: percent(row.metrics.get(key)))


def _count(group: str, heading: tuple[str, str], *keys: str) -> Column:
    def cell(row: RoundRow) -> str:
        found = [row.rows[key] for key in keys if key in row.rows]
        return str(sum(found)) if found else MISSING

    return Column(group, heading, cell)


def _seconds(heading: str, activity: str) -> Column:
    def cell(row: RoundRow) -> str:
        return f"{row.seconds[activity]:.0f}" if activity in row.seconds else MISSING

    return Column("seconds", ("", heading), cell)


def _other_seconds(row: RoundRow) -> float:
    return sum(seconds for activity, seconds in row.seconds.items() if activity not in ACTIVITIES.values())


def _rank(metric: str) -> int | None:
    name = metric.partition(",")[0]
    return MAIN_METRICS.index(name) if name in MAIN_METRICS else None


def _line(parts: Sequence[str], widths: Sequence[int]) -> str:
    return " ".join(part.rjust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


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
    room = 0
    for column in columns:
        need = max(map(len, [column.group, *column.heading, *(column.cell(row) for row in rows)])) + 1
        if not groups or need > room:
            groups.append([])
            room = WIDTH - len("round")
        groups[-1].append(column)
        room -= need
    return groups
