"""Pruning, step by step (The Llama 3 Herd of Models, 4.2.3). Every drop has a reason; no step is left out in silence.

items --clean--> --topic (labels)--> --quality--> --difficulty--> --near_duplicates--> --semantic_dedup-->
      --decontaminate--> --mix--> kept
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from alignloop.pruning.clean import clean_step
from alignloop.pruning.decontaminate import decontaminate_step
from alignloop.pruning.difficulty import difficulty_step
from alignloop.pruning.items import Item
from alignloop.pruning.mix import mix_step
from alignloop.pruning.near_duplicates import near_duplicates_step
from alignloop.pruning.quality import quality_step
from alignloop.pruning.semantic_dedup import semantic_dedup_step
from alignloop.pruning.step import Step, StepResult, Tools
from alignloop.pruning.topic import topic_step
from alignloop.records import DroppedRow

STEPS: Mapping[str, Step] = {
    "clean": clean_step,
    "topic": topic_step,
    "quality": quality_step,
    "difficulty": difficulty_step,
    "near_duplicates": near_duplicates_step,
    "semantic_dedup": semantic_dedup_step,
    "decontaminate": decontaminate_step,
    "mix": mix_step,
}
WIDTH = 80


@dataclass(frozen=True)
class FunnelLine:
    step: str
    num_in: int
    num_kept: int
    num_dropped: int
    seconds: float
    skipped: str | None = None
    repeated: int = 0


@dataclass(frozen=True)
class Pruning:
    """What is left of the rows, what was dropped why, and how many each step took.

    Attributes:
        kept: in input order; a row that the mix repeats is followed by its copies, each with its own id.
        num_kept: without repeats, so that `in == num_kept + dropped`.
    """

    kept: list[Item]
    num_kept: int
    dropped: list[DroppedRow]
    funnel: tuple[FunnelLine, ...]
    metrics: dict[str, float]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """For a manifest: `in`, `kept`, `dropped`, by rule, and repeats where there are any."""
        by_rule = {f"dropped_by_{line.step}": line.num_dropped for line in self.funnel if line.skipped is None}
        repeated = len(self.kept) - self.num_kept
        total = {"in": self.num_kept + len(self.dropped), "kept": self.num_kept, "dropped": len(self.dropped)}
        return {**total, **by_rule, **({"repeated": repeated} if repeated else {})}


def prune(items: Sequence[Item], tools: Tools) -> Pruning:
    """Put items through all steps.

    Raises:
        DataError: a step lacks what it needs and `tools.lenient` is false, or its data is wrong.
        UserError: a judge's answers cannot be read, or a model cannot be loaded.
    """
    left = list(items)
    dropped: list[DroppedRow] = []
    funnel: list[FunnelLine] = []
    metrics: dict[str, float] = {}
    notes: list[str] = []
    for name, step in STEPS.items():
        started, num_in = time.monotonic(), len(left)
        is_on = getattr(getattr(tools.config, name), "enabled", True)
        off = None if is_on else f"prune.{name}.enabled is false"
        if not left:
            off = "no row is left"
        result = step(left, tools) if off is None else StepResult(left, skipped=off)
        left = result.items
        num_kept = num_in - len(result.dropped)
        assert num_kept == len(left) - result.repeated, f"{name}: rows vanished"
        dropped += result.dropped
        metrics |= {f"{name}_{key}": value for key, value in result.metrics.items()}
        notes += result.notes
        seconds = time.monotonic() - started
        funnel.append(FunnelLine(name, num_in, num_kept, len(result.dropped), seconds, result.skipped, result.repeated))
    num_kept = len(left) - sum(line.repeated for line in funnel)
    return Pruning(left, num_kept, dropped, tuple(funnel), metrics, tuple(notes))


def funnel_lines(funnel: Sequence[FunnelLine], *, num_in: int) -> list[str]:
    """The funnel as a table of text lines."""
    lines = [f"{'':<17}{'kept':>11}{'dropped':>11}", f"{'in':<17}{num_in:>11,}"]
    for line in funnel:
        if line.skipped is not None:
            head = f"{line.step:<17}{'-':>11}{'-':>11}  "
            lines.append(fill(f"{head}skipped: {line.skipped}", WIDTH, subsequent_indent=" " * len(head)))
            continue
        more = f"  {line.repeated:,} repeats added" if line.repeated else ""
        lines.append(f"{line.step:<17}{line.num_kept:>11,}{line.num_dropped:>11,}{more}")
    return lines
