"""Best of K (The Llama 3 Herd of Models, 4.2.2): the reward model picks one of a prompt's candidates.

Gates stand above rewards: of two candidates the one that fails fewer is the better, and the reward decides among those
that fail as many. `failed` is that number of each of K candidates; () where there is no gate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np


def check_finite(values: Sequence[float], *, name: str) -> None:
    """Raises ValueError where a value is NaN or infinite: a broken score must not be sorted silently."""
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{index}] is {value}: scores must be finite numbers")


def pick_best(
    rewards: Sequence[float], *, truncated: Sequence[bool], empty: Sequence[bool], failed: Sequence[int] = ()
) -> int:
    """Index of the candidate to keep; `truncated` says that it hit its token limit, `empty` that it has no text.

    A truncated candidate never wins over a finished one: a reward read in mid-sentence says little, and training on it
    teaches never to stop. Among finished ones (and among truncated ones, where none is finished) one without text never
    wins over one with text: there is nothing in it to train on. Among those the fewest failed gates decide, then the
    reward. Ties go to the first.

    Raises:
        ValueError: no candidate, or a reward that is not finite.
    """
    check_finite(rewards, name="rewards")
    if len(rewards) != len(truncated):
        raise ValueError(f"{len(rewards)} rewards for {len(truncated)} candidates")
    return max(eligible(truncated=truncated, empty=empty, failed=failed), key=rewards.__getitem__)


def pick_random(*, truncated: Sequence[bool], empty: Sequence[bool], seed: int, failed: Sequence[int] = ()) -> int:
    """As `pick_best`, drawn evenly with the prompt's own seed: the baseline to compare it with."""
    return random.Random(seed).choice(eligible(truncated=truncated, empty=empty, failed=failed))


def eligible(*, truncated: Sequence[bool], empty: Sequence[bool], failed: Sequence[int] = ()) -> list[int]:
    """Indexes of the candidates that may be picked, in order: the finished ones, or all where none is finished; of
    these the ones with text, or all where none has any; of these the ones that fail the fewest gates.

    Raises:
        ValueError: no candidate.
    """
    if not truncated:
        raise ValueError("no candidate to pick from")
    kinds = list(zip(truncated, empty, failed or [0] * len(truncated), strict=True))
    first = min(kinds)  # (False, False, 0) is finished, has text and passes every gate
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


def pass_rate(rewards: Sequence[float], *, threshold: float, failed: Sequence[int] = ()) -> float:
    """Share of a prompt's K candidates whose reward reaches `threshold`; one that fails a gate does not pass."""
    if not rewards:
        raise ValueError("no candidate to rate")
    check_finite(rewards, name="rewards")
    gates = failed or [0] * len(rewards)
    return sum(reward >= threshold and not fails for reward, fails in zip(rewards, gates, strict=True)) / len(rewards)
