"""Standard errors of benchmark figures, clustered by prompt.

lm-eval bootstraps some figures in a pool of processes and gives none for IFEval's instruction-level accuracies.
Every figure here is a ratio of sums over prompts (or a mean of such ratios), so its standard error is closed
form: with hits h_i out of m_i at prompt i and p = sum(h) / sum(m), the influence of prompt i on p is
u_i = (h_i - p * m_i) / sum(m), and the variance of p is n / (n - 1) * sum(u_i^2). Instructions of one prompt share
one completion, so the prompt, not the instruction, is the unit that was sampled. With m_i = 1 this is the usual
standard error of a mean, sd / sqrt(n), and equals lm-eval's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A figure with what each of its n prompts adds to it.

    Attributes:
        value: the figure.
        influence: n numbers that sum to 0, one a prompt.
    """

    value: float
    influence: tuple[float, ...]

    @property
    def stderr(self) -> float | None:
        """Standard error; None where a single prompt leaves it unknown."""
        n = len(self.influence)
        return None if n < 2 else math.sqrt(n / (n - 1) * math.fsum(u * u for u in self.influence))


def ratio(hits: Sequence[float], totals: Sequence[float]) -> Estimate:
    """sum(hits) / sum(totals) over n prompts; every total is above 0."""
    assert min(totals) > 0, "a prompt without instructions says nothing"
    size = math.fsum(totals)
    value = math.fsum(hits) / size
    return Estimate(value, tuple((hit - value * total) / size for hit, total in zip(hits, totals, strict=True)))


def mean(values: Sequence[float]) -> Estimate:
    """The plain mean of one number a prompt."""
    return ratio(values, [1.0] * len(values))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of figures measured on the *same* n prompts, in the same order: their errors are correlated."""
    share = 1.0 / len(estimates)
    influences = zip(*(estimate.influence for estimate in estimates), strict=True)
    return Estimate(
        share * math.fsum(estimate.value for estimate in estimates), tuple(share * math.fsum(us) for us in influences)
    )
