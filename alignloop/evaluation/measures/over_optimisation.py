"""Whether the reward is climbed at the cost of what it stands for: reward rises while a benchmark falls.

The reward of a round's model and that of the model before are given by one reward model, the round's own, to answers
to the same prompts: rewards of two rounds' reward models are on two scales and are never compared here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alignloop.evaluation.comparing import RoundDifferences
from alignloop.evaluation.measures.figures import STDERR
from alignloop.evaluation.standard_error import NORMAL_95
from alignloop.records import RoundRow

HEADLINES = ("mean", "acc", "exact_match")
"""Names of a task's figure that stands for it, the first that it has."""
GAIN = {"previous": "reward/gain_over_previous", "base": "reward/gain_over_base"}


class Difference(Protocol):
    """A benchmark's figure in two rounds, with the 95 % interval of their difference, where it is known."""

    @property
    def key(self) -> str: ...
    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


@dataclass(frozen=True)
class Change:
    """A `Difference` of its own."""

    key: str
    difference: float
    low: float
    high: float


def flags_of(
    rows: Sequence[RoundRow],
    *,
    since_previous: Sequence[Difference] | None = None,
    since_base: Sequence[Difference] | None = None,
    metrics: Sequence[str] | None = None,
) -> list[str]:
    """What is to be said about the last of `rows`: where its model is over-optimised, since the last round or the base.

    Args:
        rows: the rounds so far, in order; the first is the base.
        since_previous, since_base: benchmarks' differences of the last row against the one before and the first,
            paired by question; None: told from the rows, as if the two rounds had answered different questions, which
            makes wider intervals.
        metrics: the figures that count; None: the one that stands for each task. Parts of tasks are many, and one of
            many falls by chance.
    """
    if len(rows) < 2:
        return []
    last, before, base = rows[-1], rows[-2], rows[0]
    names = headline_metrics(last.metrics) if metrics is None else metrics
    flags = []
    compared = [("previous", before, since_previous)]
    if base is not before:
        compared.append(("base", base, since_base))
    for name, earlier, given in compared:
        changes = unpaired_changes(earlier, last) if given is None else given
        gain = last.measures.get(GAIN[name])
        if gain is not None:
            flag = over_optimised(
                gain,
                stderr=last.measures.get(GAIN[name] + STDERR),
                changes=[change for change in changes if change.key in names],
                since=f"round {earlier.round}",
            )
            flags += [] if flag is None else [flag]
    return flags


def flagged(row: RoundRow, earlier: Sequence[RoundRow], *, differences: Sequence[RoundDifferences]) -> RoundRow:
    """The row with its flags.

    Args:
        earlier: the rounds before it, the base first.
        differences: of the run's rounds, paired by question; other rounds' are not looked at.
    """
    own = {entry.against: entry.differences for entry in differences if entry.round == row.round}
    flags = flags_of([*earlier, row], since_previous=own.get(earlier[-1].round), since_base=own.get(earlier[0].round))
    return row.model_copy(update={"flags": flags})


def over_optimised(gain: float, *, stderr: float | None, changes: Sequence[Difference], since: str) -> str | None:
    """The flag, or None: where the reward has risen beyond its error and a benchmark has fallen beyond its own.

    Args:
        gain: mean rise of the reward on the same prompts, by one reward model.
        stderr: of the gain; None, where one prompt alone tells it, raises no flag.
        since: the round that both are compared with, for the text.
    """
    fallen = [(c, c.low, c.high) for c in changes if c.low is not None and c.high is not None and c.high < 0.0]
    if stderr is None or gain - NORMAL_95 * stderr <= 0.0 or not fallen:
        return None
    falls = ", ".join(f"{c.key} fell by {-c.difference:.3f} ({-high:.3f} to {-low:.3f})" for c, low, high in fallen)
    return (
        f"over-optimisation: since {since} the reward rose by {gain:.3g} ({gain - NORMAL_95 * stderr:.3g} to "
        f"{gain + NORMAL_95 * stderr:.3g}) while {falls}"
    )


def unpaired_changes(before: RoundRow, after: RoundRow) -> list[Change]:
    """Of every figure that both rounds report with a standard error, errors taken for independent."""
    changes = []
    for key in sorted(before.stderr.keys() & after.stderr.keys() & before.metrics.keys() & after.metrics.keys()):
        difference = after.metrics[key] - before.metrics[key]
        half = NORMAL_95 * math.hypot(before.stderr[key], after.stderr[key])
        changes.append(Change(key, difference, difference - half, difference + half))
    return changes


def headline_metrics(names: Sequence[str] | dict[str, float]) -> list[str]:
    """Of `task/metric` names the one that stands for each task, tasks of a group (`mmlu_law` of `mmlu`) aside."""
    found: dict[str, set[str]] = {}
    for name in names:
        task, _, metric = name.partition("/")
        found.setdefault(task, set()).add(metric)
    tasks = [task for task in found if not any(task.startswith(f"{other}_") for other in found if other != task)]
    chosen = [(task, next((name for name in HEADLINES if name in found[task]), None)) for task in tasks]
    return [f"{task}/{metric}" for task, metric in chosen if metric is not None]
