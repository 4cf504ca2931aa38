"""Best of K (The Llama 3 Herd of Models, 4.2.2): the reward model picks one of a prompt's candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from alignloop.selection.verdicts import check_finite


def pick_best(rewards: Sequence[float], *, truncated: Sequence[bool]) -> int:
    """Index of the candidate to keep.

    A truncated candidate never wins over a finished one: a reward read in mid-sentence says little, and training
    on it teaches never to stop. Ties go to the first.

    Args:
        rewards: K raw rewards.
        truncated: K flags: the candidate hit its token limit.

    Raises:
        ValueError: no candidate, or a reward that is not finite.
    """
    if not rewards:
        raise ValueError("no candidate to pick from")
    check_finite(rewards, name="rewards")
    order = [(not cut, reward) for reward, cut in zip(rewards, truncated, strict=True)]
    return max(range(len(order)), key=order.__getitem__)


def pick_random(*, truncated: Sequence[bool], seed: int) -> int:
    """Index of a candidate drawn evenly from those `pick_best` picks among: its yardstick.

    Finished candidates, or all where none is finished; so the best is never under the random one.

    Args:
        truncated: K flags.
        seed: the prompt's own.
    """
    if not truncated:
        raise ValueError("no candidate to pick from")
    pool = [k for k, cut in enumerate(truncated) if not cut] or list(range(len(truncated)))
    return random.Random(seed).choice(pool)


def pass_threshold(rewards: Sequence[float], *, quantile: float) -> float:
    """The reward a candidate must reach to pass: a quantile (linear interpolation) of all the round's raw rewards."""
    if not rewards:
        raise ValueError("no reward to take a quantile of")
    check_finite(rewards, name="rewards")
    return float(np.quantile(np.asarray(rewards, dtype=np.float64), quantile))


def pass_rate(rewards: Sequence[float], *, threshold: float) -> float:
    """Share of a prompt's K candidates whose reward reaches `threshold`."""
    if not rewards:
        raise ValueError("no candidate to rate")
    check_finite(rewards, name="rewards")
    return sum(reward >= threshold for reward in rewards) / len(rewards)
