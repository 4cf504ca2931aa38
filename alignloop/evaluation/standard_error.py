"""Standard errors of benchmark figures, clustered by prompt, and intervals of differences between two of them.

lm-eval bootstraps some figures in a pool of processes and gives none for IFEval's instruction-level accuracies.
Every figure here is a ratio of sums over prompts (or a mean of such ratios), so its standard error is closed
form: with hits h_i out of m_i at prompt i and p = sum(h) / sum(m), the influence of prompt i on p is
u_i = (h_i - p * m_i) / sum(m), and the variance of p is n / (n - 1) * sum(u_i^2). Instructions of one prompt share
one completion, so the prompt, not the instruction, is the unit that was sampled. With m_i = 1 this is the usual
standard error of a mean, sd / sqrt(n), and equals lm-eval's.

Two figures measured on the same prompts are compared prompt by prompt: the influence of prompt i on their difference
is the difference of its influences. What is hard for both models cancels out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959963984540054
"""Standard errors on either side of a figure that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A figure with what each of its n prompts adds to it."""

    value: float
    influence: tuple[float, ...]
    """n numbers that sum to 0, one a prompt."""
    strata: tuple[int, ...] = ()
    """Sizes of the parts of `influence` that were sampled apart, such as a benchmark's subjects; empty: one."""

    @property
    def stderr(self) -> float | None:
        """Standard error; None where a part's single prompt leaves it unknown."""
        sizes = self.strata or (len(self.influence),)
        if min(sizes) < 2:
            return None
        variance, start = 0.0, 0
        for size in sizes:
            part = self.influence[start : start + size]
            variance += size / (size - 1) * math.fsum(u * u for u in part)
            start += size
        return math.sqrt(variance)

    def interval(self, *, num_errors: float = NORMAL_95) -> tuple[float, float] | None:
        """So many standard errors on either side, by default the 95 % confidence interval, by the normal approximation;
        None where the error is unknown."""
        error = self.stderr
        return None if error is None else (self.value - num_errors * error, self.value + num_errors * error)


def ratio(hits: Sequence[float], totals: Sequence[float]) -> Estimate:
    """sum(hits) / sum(totals) over n prompts; every total is above 0."""
    assert min(totals) > 0, "a prompt without instructions says nothing"
    size = math.fsum(totals)
    value = math.fsum(hits) / size
    return Estimate(value, tuple((hit - value * total) / size for hit, total in zip(hits, totals, strict=True)))


def mean(values: Sequence[float]) -> Estimate:
    """The plain mean of one number a prompt."""
    return ratio(values, [1.0] * len(values))


def clustered(
    totals: Sequence[float], *, clusters: Sequence[Hashable], counts: Sequence[float] | None = None
) -> Estimate:
    """sum(totals) / sum(counts), its error that of the clusters: what comes of one prompt is not independent.
    `clusters` has the prompt of each of the n totals, `counts` of how many values (above 0) each is the sum; None:
    one."""
    sums: dict[Hashable, float] = defaultdict(float)
    sizes: dict[Hashable, float] = defaultdict(float)
    for total, cluster, count in zip(totals, clusters, counts or [1.0] * len(totals), strict=True):
        sums[cluster] += total
        sizes[cluster] += count
    return ratio(list(sums.values()), list(sizes.values()))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of figures measured on the *same* n prompts, in the same order: their errors are correlated."""
    share = 1.0 / len(estimates)
    influences = zip(*(estimate.influence for estimate in estimates), strict=True)
    return Estimate(
        share * math.fsum(estimate.value for estimate in estimates), tuple(share * math.fsum(us) for us in influences)
    )


def mean_over(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of figures measured on *other* prompts each, every one of equal weight: a macro average."""
    share = 1.0 / len(estimates)
    return Estimate(
        share * math.fsum(estimate.value for estimate in estimates),
        tuple(share * u for estimate in estimates for u in estimate.influence),
        tuple(len(estimate.influence) for estimate in estimates),
    )


def difference(before: Estimate, after: Estimate) -> Estimate:
    """`after` - `before`, measured on the same prompts in the same order."""
    assert before.strata == after.strata, "figures over other parts do not compare"
    changes = zip(before.influence, after.influence, strict=True)
    return Estimate(after.value - before.value, tuple(new - old for old, new in changes), after.strata)
