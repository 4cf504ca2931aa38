"""What a rule of pruning answers, what a step makes of it, and what every step works with.

items, Tools --Step--> StepResult: the items that are left, those that are dropped with their reasons
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignloop.config.pruning import MixConfig, PruneConfig
from alignloop.errors import DataError
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.benchmark_index import BenchmarkText
from alignloop.pruning.items import Item
from alignloop.pruning.models import Embedding, PruneJudge
from alignloop.records import DroppedRow


@dataclass(frozen=True)
class Pruned:
    """A rule's answer: indexes kept (input order), drops (input order), numbers for the manifest."""

    kept: tuple[int, ...]
    dropped: tuple[DroppedRow, ...]
    metrics: dict[str, float]


def drop(row_id: str, rule: str, reason: str, twin: str | None = None, cosine: float | None = None) -> DroppedRow:
    """A row that pruning drops; `twin` is the row it lost to, `cosine` that to the twin if embeddings decided."""
    return DroppedRow(id=row_id, stage="prune", rule=rule, reason=reason, twin=twin, cosine=cosine)


def pruned(
    ids: Sequence[str], drops: Mapping[int, DroppedRow], *, metrics: Mapping[str, float] | None = None
) -> Pruned:
    """The answer for N rows from the drops by index; `in == kept + dropped` holds by construction."""
    kept = tuple(index for index in range(len(ids)) if index not in drops)
    assert len(kept) + len(drops) == len(ids), "a drop names a row that is not there"
    return Pruned(kept, tuple(drops[index] for index in sorted(drops)), dict(metrics or {}))


@dataclass(frozen=True)
class Tools:
    """What the steps work with beside their config.

    Attributes:
        folder: where a step may keep what it can use again (a classifier).
        demonstrations: shares or epochs of the entries of `sft.data`.
        lenient: a step that lacks what it needs is skipped by name, in place of an error.
    """

    config: PruneConfig
    seed: int
    judge: PruneJudge | None = None
    embedding: Embedding | None = None
    benchmarks: Callable[[], Sequence[BenchmarkText]] | None = None
    folder: Path | None = None
    demonstrations: MixConfig = field(default_factory=MixConfig)
    lenient: bool = False
    progress: Progress = field(default_factory=QuietProgress)


@dataclass(frozen=True)
class StepResult:
    """What a step made of the items.

    Attributes:
        items: those that are left, in order, with what was found about them; repeats included.
        skipped: why the step did nothing; None where it ran.
    """

    items: list[Item]
    dropped: tuple[DroppedRow, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None
    notes: tuple[str, ...] = ()
    repeated: int = 0


Step = Callable[[Sequence[Item], Tools], StepResult]


def left(items: Sequence[Item], verdict: Pruned, **metrics: float) -> StepResult:
    """The items that a verdict keeps, with `metrics` added to its own."""
    return StepResult([items[index] for index in verdict.kept], verdict.dropped, {**verdict.metrics, **metrics})


def skipped(items: Sequence[Item], why: str) -> StepResult:
    """All items unchanged: the step is off, or has nothing to go by."""
    return StepResult(list(items), skipped=why)


def lacking(items: Sequence[Item], tools: Tools, *, step: str, why: str) -> StepResult:
    """Skip a step that lacks what it needs if `tools.lenient`, else raise a DataError."""
    if tools.lenient:
        return skipped(items, why)
    raise DataError(f"prune.{step}: {why}")
