"""What the data benchmark measures: its cases with their bars, and how much a measurement does.

Imports nothing heavy: the page reads it before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

THRESHOLD = 0.95
ROWS_PER_CLUSTER = 256
"""As the recipe's defaults."""


@dataclass(frozen=True)
class Key:
    """One number; `bar` None: it is told, and held to nothing.

    Attributes:
        at_least: the bar is a least value, not a greatest.
    """

    name: str
    bar: float | None
    unit: Literal["", "x", " s", " GiB", " rows/s"]
    at_least: bool

    def verdict(self, value: float) -> str:
        assert self.bar is not None, f"{self.name} has no bar"
        reached = value >= self.bar if self.at_least else value <= self.bar
        return "met" if reached else "missed"


KEYS = {
    key.name: key
    for key in (
        Key("dedup_1m_seconds", 180.0, " s", at_least=False),
        Key("dedup_1m_gib", 6.0, " GiB", at_least=False),
        Key("dedup_growth_exponent", 1.1, "", at_least=False),
        Key("dedup_exact_20k", 1.0, "", at_least=True),
        Key("dedup_vs_semhash", 1.0, "x", at_least=True),
        Key("planted_precision", None, "", at_least=True),
        Key("planted_recall", None, "", at_least=True),
        Key("read_rows_per_second", 50_000.0, " rows/s", at_least=True),
        Key("prune_100k_seconds", 60.0, " s", at_least=False),
    )
}
CASES: dict[str, tuple[str, ...]] = {
    "dedup_1m": ("dedup_1m_seconds", "dedup_1m_gib", "dedup_growth_exponent"),
    "dedup_exact_20k": ("dedup_exact_20k",),
    "dedup_vs_semhash": ("dedup_vs_semhash",),
    "planted": ("planted_precision", "planted_recall"),
    "read": ("read_rows_per_second",),
    "prune_100k": ("prune_100k_seconds",),
}
"""Cases, and the keys each gives."""


@dataclass(frozen=True)
class Amount:
    """How much a run of the benchmark does.

    Attributes:
        sizes: rows of the measurements that the growth is fitted to; the last is the large one.
        num_exact: rows compared with the plain double loop.
        num_semhash: rows that both sides deduplicate.
        num_prompts: of the real ones whose completions get planted copies.
        num_read: rows of the file that is read; memory is compared with a tenth of them.
        num_pruned: rows put through all steps.
    """

    pairs: int = 3
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    num_exact: int = 20_000
    num_semhash: int = 100_000
    num_prompts: int = 120
    num_read: int = 1_000_000
    num_pruned: int = 100_000


FULL = Amount()
QUICK = Amount(
    pairs=1,
    sizes=(5_000, 10_000, 20_000),
    num_exact=2_000,
    num_semhash=5_000,
    num_prompts=6,
    num_read=20_000,
    num_pruned=2_000,
)


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        each: the value's parts, in the order they were measured.
        facts: what was measured, in words.
        smaller: what it was measured on, where that is less than its bar speaks of.
        extra: more of the JSON object.
        remarks: lines for the screen and under the table.
        problem: why it is no measurement, where it is none.
    """

    key: Key
    value: float
    facts: str
    each: tuple[float, ...] = ()
    smaller: str | None = None
    extra: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Setting:
    """Where and how a case runs.

    Attributes:
        work: folder for files of its own.
        child: runs a module of this folder in a process of its own, and gives the JSON object it prints.
        shared: real data, where there is some.
    """

    amount: Amount
    threads: int
    work: Path
    shared: Path
    child: Callable[..., dict[str, float]]


class SkippedError(Exception):
    """A case that cannot be measured here; the message says why."""
