"""Best of K (The Llama 3 Herd of Models, 4.2.2): the reward model picks one of a prompt's candidates."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np


def check_finite(values: Sequence[float], *, name: str) -> None:
    """Raises ValueError where a value is NaN or infinite: a broken score must not sort anywhere in silence."""
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{index}] is {value}: scores must be finite numbers")


def pick_best(rewards: Sequence[float], *, truncated: Sequence[bool], empty: Sequence[bool]) -> int:
    """Index of the candidate to keep.

    A truncated candidate never wins over a finished one: a reward read in mid-sentence says little, and training
    on it teaches never to stop. Among finished ones (and among truncated ones, where none is finished) one without
    text never wins over one with text: there is nothing in it to train on. Ties go to the first.

    Args:
        rewards: K rewards.
        truncated: K flags: the candidate hit its token limit.
        empty: K flags: the candidate has no text.

    Raises:
        ValueError: no candidate, or a reward that is not finite.
    """
    check_finite(rewards, name="rewards")
    if len(rewards) != len(truncated):
        raise ValueError(f"{len(rewards)} rewards for {len(truncated)} candidates")
    return max(eligible(truncated=truncated, empty=empty), key=rewards.__getitem__)


def pick_random(*, truncated: Sequence[bool], empty: Sequence[bool], seed: int) -> int:
    """Index of a candidate drawn evenly from those `pick_best` picks among: its yardstick.

    Args:
        truncated, empty: as for `pick_best`.
        seed: the prompt's own.
    """
    return random.Random(seed).choice(eligible(truncated=truncated, empty=empty))


def eligible(*, truncated: Sequence[bool], empty: Sequence[bool]) -> list[int]:
    """Indexes of the candidates one may be picked from, in order: the finished ones, or all where none is finished;
    of these the ones with text, or all where none has any.

    Raises:
        ValueError: no candidate.
    """
    if not truncated:
        raise ValueError("no candidate to pick from")
    kinds = list(zip(truncated, empty, strict=True))
    first = min(kinds)  # (False, False) is finished and has text
    return [k for k, kind in enumerate(kinds) if kind == first]


def comparable(*, truncated: Sequence[bool], empty: Sequence[bool]) -> list[int]:
    """Indexes of the candidates that may be compared with each other: finished, with text.

    A truncated one, chosen, would teach to stop in mid-sentence; rejected, little but length.
    """
    return [k for k, kind in enumerate(zip(truncated, empty, strict=True)) if kind == (False, False)]


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
