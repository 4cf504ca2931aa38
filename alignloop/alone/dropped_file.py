"""What a verb dropped on the way to its file, with reasons, in a file beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.alone.out_file import beside
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.records import DroppedRow, RejectedRow


@dataclass(frozen=True)
class Dropped:
    """What was dropped.

    Attributes:
        file: rows of `dropped`, which is empty where nothing was: then there is no file.
    """

    file: Path
    rows: tuple[DroppedRow, ...]

    def lines(self) -> list[str]:
        """How many, by rule, with the first reason of each; none where nothing was dropped."""
        if not self.rows:
            return []
        reasons = {row.rule: row.reason for row in reversed(self.rows)}
        counts = Counter(row.rule for row in self.rows)
        return [
            f"{len(self.rows):,} dropped  {self.file}",
            *(f"  {count:,} {rule}, such as: {reasons[rule]}" for rule, count in counts.items()),
        ]


def unreadable(rejected: Iterable[RejectedRow]) -> list[DroppedRow]:
    """Rows of an input file that could not be read."""
    return [
        DroppedRow(
            id=f"{Path(bad.file).name}:{bad.line}",
            stage="read",
            rule="unreadable",
            reason=f"field {bad.field}: {bad.reason}" if bad.field else bad.reason,
        )
        for bad in rejected
    ]


def put_dropped(out: Path, rows: Sequence[DroppedRow]) -> None:
    """Write what was dropped on the way to `out`; no file where nothing was."""
    file = beside(out, "dropped.jsonl")
    if rows:
        dump_jsonl(file, rows)
    else:
        file.unlink(missing_ok=True)


def read_dropped(out: Path) -> Dropped:
    """What was dropped on the way to `out`."""
    file = beside(out, "dropped.jsonl")
    return Dropped(file, tuple(load_jsonl(file, DroppedRow)) if file.is_file() else ())
