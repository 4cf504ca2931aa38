"""How often one model's completion is better than another's to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.evaluation.standard_error import Estimate, mean

WIN, TIE, LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True)
class WinRate:
    """Over the prompts that were decided.

    Attributes:
        rate: wins and half of the ties; 0.5 is as good as the other.
        ties: share of ties.
    """

    rate: Estimate
    ties: float


def win_rate(outcomes: Sequence[float]) -> WinRate:
    """Of outcomes that are `WIN`, `TIE` or `LOSS`, one a prompt, at least one."""
    return WinRate(mean(outcomes), sum(outcome == TIE for outcome in outcomes) / len(outcomes))


def by_reward(ours: float, theirs: float) -> float:
    """The outcome by reward; equal rewards are a tie."""
    return TIE if ours == theirs else WIN if ours > theirs else LOSS


def without_asking(ours: str, theirs: str) -> float | None:
    """The outcome that needs no judge: the same text ties, none loses against some; None: a judge must say."""
    ours, theirs = ours.strip(), theirs.strip()
    if ours == theirs:
        return TIE
    return None if ours and theirs else WIN if ours else LOSS
