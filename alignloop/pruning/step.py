"""What every step of pruning gets and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignloop.config.pruning import PruneConfig
from alignloop.errors import DataError
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.items import Item
from alignloop.pruning.verdict import Pruned
from alignloop.records import DroppedRow

if TYPE_CHECKING:
    from pathlib import Path

    from alignloop.pruning.benchmark_index import BenchmarkText
    from alignloop.pruning.embedding import Embedding
    from alignloop.pruning.judge import PruneJudge


@dataclass(frozen=True)
class Tools:
    """What the steps work with beside their config.

    Attributes:
        judge: None: there is none, and steps that need one say so.
        embedding: how dialogs are embedded; None: not at all.
        benchmarks: loads the questions of the run's benchmarks; None: there are none.
        folder: where a step may keep what is worth keeping (a classifier); None: nowhere.
        lenient: a step that lacks what it needs is skipped by name, in place of an error.
    """

    config: PruneConfig
    seed: int
    judge: PruneJudge | None = None
    embedding: Embedding | None = None
    benchmarks: Callable[[], Sequence[BenchmarkText]] | None = None
    folder: Path | None = None
    lenient: bool = False
    progress: Progress = field(default_factory=QuietProgress)


@dataclass(frozen=True)
class StepResult:
    """What a step made of the items.

    Attributes:
        items: those that are left, in order, with what was found about them; repeats included.
        skipped: why the step did nothing; None where it ran.
        notes: worth knowing.
    """

    items: list[Item]
    dropped: tuple[DroppedRow, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None
    notes: tuple[str, ...] = ()
    repeated: int = 0


Step = Callable[[Sequence[Item], Tools], StepResult]


def left(items: Sequence[Item], verdict: Pruned, **metrics: float) -> StepResult:
    """The items that a verdict keeps; `metrics` beside the verdict's own."""
    return StepResult([items[index] for index in verdict.kept], verdict.dropped, {**verdict.metrics, **metrics})


def skipped(items: Sequence[Item], why: str) -> StepResult:
    """All items: the step is off, or has nothing to go by."""
    return StepResult(list(items), skipped=why)


def lacking(items: Sequence[Item], tools: Tools, *, step: str, why: str) -> StepResult:
    """The step lacks what it needs: skipped by name, or a DataError where a run's recipe asks for it."""
    if tools.lenient:
        return skipped(items, why)
    raise DataError(f"prune.{step}: {why}")
