"""Whether a reward model is right about preferences it was not trained on, and as often as it says.

A reward model says that `chosen` is better with probability sigmoid(r_chosen - r_rejected) (Bradley-Terry). It sides
with one of the two with a confidence of at least one half, and it is calibrated where it is right in a share c of the
pairs it has a confidence of c in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NUM_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of a range of confidence: [low, high), the last bin's end included.

    Attributes:
        confidence: their mean confidence.
        accuracy: the share of them in which the reward model is right; an undecided pair counts half.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def is_right(margin: float) -> float:
    """1 where the chosen completion has the higher reward, 0 where the rejected one has, one half where neither has.

    Args:
        margin: r_chosen - r_rejected.
    """
    return 0.5 if margin == 0.0 else float(margin > 0.0)


def confidence(margin: float) -> float:
    """Probability, in [0.5, 1], that the reward model gives to the completion it sides with: sigmoid(|margin|)."""
    return 1.0 / (1.0 + math.exp(-abs(margin)))


def pair_loss(margin: float) -> float:
    """-logsigmoid(margin): what the reward model is trained to lower."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def reliability(margins: Sequence[float], *, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """The pairs by confidence, in `num_bins` ranges of equal width from 0.5 to 1; ranges without a pair are left out.

    Args:
        margins: n values of r_chosen - r_rejected.
    """
    width = 0.5 / num_bins
    members: dict[int, list[float]] = {}
    for margin in margins:
        place = min(int((confidence(margin) - 0.5) / width), num_bins - 1)
        members.setdefault(place, []).append(margin)
    return [
        ReliabilityBin(
            low=0.5 + place * width,
            high=0.5 + (place + 1) * width,
            count=len(members[place]),
            confidence=math.fsum(map(confidence, members[place])) / len(members[place]),
            accuracy=math.fsum(map(is_right, members[place])) / len(members[place]),
        )
        for place in sorted(members)
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error: the mean over pairs of |accuracy - confidence| of the pair's bin; 0 is calibrated.

    With few pairs a bin it is above 0 by chance alone.
    """
    num_pairs = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.confidence) for each in bins) / num_pairs
