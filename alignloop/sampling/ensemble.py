"""What becomes of the rewards that several reward models give one completion. Pure. M members.

Reward models that agree on the data they learnt from disagree where a policy goes beyond it: a completion that only
some of them like is more likely liked for an error (Coste et al., arXiv 2310.02743; Eisenstein et al., 2312.09244).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from alignloop.config.sampling import Ensemble


def combined(rewards: Sequence[float], *, by: Ensemble, penalty: float) -> float:
    """The reward of a completion by M members: their mean, the mean less `penalty` times their spread, or the least.

    Of one reward all are that reward. `average_weights` combines weights, not rewards: there is one model.
    """
    if len(rewards) == 1:
        return rewards[0]
    if by == "least":
        return min(rewards)
    if by == "mean_minus_spread":
        return fmean(rewards) - penalty * spread(rewards)
    assert by == "mean", f"{by} combines no rewards"
    return fmean(rewards)


def spread(rewards: Sequence[float]) -> float:
    """Standard deviation over the M members, their squared deviations divided by M."""
    return pstdev(rewards)


def spread_of_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """How little M members agree on how much better one completion is than another of the prompt: the standard
    deviation of their reward gaps. What a member gives to every completion of a prompt drops out of it."""
    return spread([a - b for a, b in zip(one, other, strict=True)])
