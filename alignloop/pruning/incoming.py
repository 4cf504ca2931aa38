"""Decontamination where rows come in: preferences, held-out rows, prompts and demonstrations, each once.

What trains does not hold a question of the run's own benchmarks, whichever stage trains on it: reward model, bootstrap,
SFT, DPO. The step of the same name in `prune` looks at what the policy has written since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from alignloop.config.pruning import KeepOutConfig
from alignloop.pruning.benchmarks import benchmark_texts
from alignloop.records import DroppedRow, Message, PreferenceRow, PromptRow, SftRow
from alignloop.selection.benchmark_index import RULE, BenchmarkIndex, BenchmarkText

RowT = TypeVar("RowT", PreferenceRow, PromptRow, SftRow)


def without_benchmarks(
    rows: Sequence[RowT], keep_out: KeepOutConfig | None, *, stage: str
) -> tuple[list[RowT], list[DroppedRow]]:
    """(rows that hold no question of the benchmarks, the others with their reasons), each in input order.

    Args:
        keep_out: the benchmarks; None: every row stays.
        stage: that drops them.

    Raises:
        DataError: the benchmarks' data is wrong, or cannot be had.
    """
    if keep_out is None:
        return list(rows), []
    return apart(rows, benchmark_texts(keep_out.tasks, keep_out.include_path), keep_out, stage=stage)


def apart(
    rows: Sequence[RowT], benchmarks: Sequence[BenchmarkText], keep_out: KeepOutConfig, *, stage: str
) -> tuple[list[RowT], list[DroppedRow]]:
    """The same for questions already loaded."""
    index = BenchmarkIndex(benchmarks, ngram=keep_out.ngram, min_share=keep_out.min_share)
    drops = index.drops([row.id for row in rows], (row_text(row) for row in rows))
    dropped = [
        DroppedRow(id=drop.id, stage=stage, rule=RULE, reason=drop.reason, twin=drop.twin, source=rows[number].source)
        for number, drop in drops.items()
    ]
    return [row for number, row in enumerate(rows) if number not in drops], dropped


def row_text(row: PreferenceRow | PromptRow | SftRow) -> str:
    """All texts of a row that a model may be trained on, or sample for."""
    return held_text(row.messages, *(_completions(row) if isinstance(row, PreferenceRow) else ()))


def held_text(messages: Sequence[Message], *completions: str) -> str:
    """A dialog with completions as one text, in which questions are looked for."""
    return "\n\n".join([*(message.content for message in messages), *completions])


def _completions(row: PreferenceRow) -> Iterator[str]:
    yield from (row.chosen, row.rejected, *([] if row.edited is None else [row.edited]))


ALL_LEFT_OUT = (
    "take other data, name other evaluate.tasks, raise prune.decontaminate.min_share, or set "
    "prune.decontaminate.enabled: false"
)
"""What to do where no row is left."""


def left_out_line(dropped: Sequence[DroppedRow], *, num_in: int, what: str) -> str:
    """One line that says how many rows are left out, and the first of them.

    Args:
        what: plural name of the rows.
    """
    first = dropped[0]
    line = "" if first.source is None or first.source.line is None else f", line {first.source.line}"
    file = "" if first.source is None else f" ({Path(first.source.file).name}{line})"
    be = "holds" if len(dropped) == 1 else "hold"
    return (
        f"decontaminate: {len(dropped):,} of {num_in:,} {what} {be} a question of the run's benchmarks and "
        f"{'is' if len(dropped) == 1 else 'are'} left out; the first: {first.id}{file} {first.reason}"
    )
