"""Named figures with their standard errors, and how errors are told where several values come from one prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from alignloop.errors import ModelError
from alignloop.evaluation.standard_error import Estimate, ratio

STDERR = "_stderr"
"""What a figure's standard error is named by: `win_rate/base` and `win_rate/base_stderr`."""


@dataclass
class Figures:
    """Figures by name, in the order they are put in; the standard errors and the details come after them.

    Attributes:
        details: numbers of which there are many (the bins of a curve).
    """

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, estimate: Estimate) -> None:
        """A figure, and its standard error where more than one prompt tells it."""
        self.values[name] = estimate.value
        if estimate.stderr is not None:
            self.errors[name + STDERR] = estimate.stderr

    @property
    def flat(self) -> dict[str, float]:
        """All of them.

        Raises:
            ModelError: one is not a finite number.
        """
        flat = {**self.values, **self.errors, **self.details}
        for name, value in flat.items():
            if not math.isfinite(value):
                raise ModelError(f"measure: {name} is {value}: a model that it is told from has diverged in training")
        return flat


def clustered(
    totals: Sequence[float], *, clusters: Sequence[Hashable], counts: Sequence[float] | None = None
) -> Estimate:
    """sum(totals) / sum(counts), its error that of the clusters: what comes of one prompt is not independent.

    Args:
        totals: n sums; clusters: the prompt of each; counts: of how many values each is the sum, above 0; None: one.
    """
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, float] = {}
    counted = [1.0] * len(totals) if counts is None else counts
    for total, cluster, count in zip(totals, clusters, counted, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + total
        sizes[cluster] = sizes.get(cluster, 0.0) + count
    return ratio(list(sums.values()), list(sizes.values()))
