"""On-policy pairs for DPO: the best and the worst of a prompt's candidates, where the gap says enough.

K candidates --best_and_worst--> pair, gap --quantiles over the round--> strength; narrow gaps are dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignloop.records import STRENGTHS, Strength
from alignloop.selection.verdicts import Drop, check_finite

_RULE = "pairs"


@dataclass(frozen=True)
class ScoredCandidates:
    """A prompt's K candidates: texts, raw rewards, and whether each hit its token limit."""

    prompt_id: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    truncated: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.rewards) == len(self.truncated), f"{self.prompt_id}: K texts, rewards, flags"


@dataclass(frozen=True)
class OnPolicyPair:
    """A pair by candidate index; `gap` = reward of `chosen` minus reward of `rejected`, above 0."""

    prompt_id: str
    chosen: int
    rejected: int
    gap: float
    strength: Strength


@dataclass(frozen=True)
class PairsResult:
    """Pairs and drops, one or the other per prompt, both in input order."""

    pairs: tuple[OnPolicyPair, ...]
    dropped: tuple[Drop, ...]
    metrics: dict[str, float]


def best_and_worst(candidates: ScoredCandidates, *, allow_truncated_rejected: bool = False) -> tuple[int, int] | str:
    """(best, worst) candidate, or the reason why the prompt has no pair.

    The best is the highest reward among finished candidates. Truncated ones are not rejected either, unless
    allowed: they have low rewards because they break off, and pairs against them teach little but length. Texts
    that are the same but for surrounding whitespace never pair. Ties go to the first.

    Raises:
        ValueError: a reward that is not finite.
    """
    check_finite(candidates.rewards, name=f"{candidates.prompt_id}: rewards")
    rewards = candidates.rewards
    filled = [k for k, text in enumerate(candidates.texts) if text.strip()]
    finished = [k for k in filled if not candidates.truncated[k]]
    if not finished:
        return "no candidate is finished and non-empty"
    best = max(finished, key=lambda k: rewards[k])
    pool = filled if allow_truncated_rejected else finished
    others = [k for k in pool if candidates.texts[k].strip() != candidates.texts[best].strip()]
    if not others:
        return "no second candidate that is finished and differs from the best"
    worst = min(others, key=lambda k: rewards[k])
    if rewards[worst] >= rewards[best]:
        return f"no gap: best and worst have the same reward {rewards[best]:.4g}"
    return best, worst


def build_pairs(
    prompts: Sequence[ScoredCandidates],
    *,
    min_gap_quantile: float,
    max_pairs: int = -1,
    allow_truncated_rejected: bool = False,
) -> PairsResult:
    """One pair a prompt, where its reward gap is wide enough among the round's.

    Strength is the quarter of the round's gaps a pair's gap lies in, before narrow ones are dropped: top quarter
    `significantly_better`, then `better`, `slightly_better`, `marginally_better`.

    Args:
        prompts: N prompts with their candidates.
        min_gap_quantile: gaps under this quantile of all gaps are dropped; 0 keeps all.
        max_pairs: at most this many, widest gap first (ties: first prompt first); -1: all.
        allow_truncated_rejected: see `best_and_worst`.
    """
    drops: dict[int, Drop] = {}
    found: dict[int, tuple[int, int, float]] = {}
    for index, prompt in enumerate(prompts):
        picked = best_and_worst(prompt, allow_truncated_rejected=allow_truncated_rejected)
        if isinstance(picked, str):
            drops[index] = Drop(prompt.prompt_id, _RULE, picked)
        else:
            best, worst = picked
            found[index] = (best, worst, prompt.rewards[best] - prompt.rewards[worst])
    if not found:
        return PairsResult((), tuple(drops.values()), {"num_in": float(len(prompts)), "num_pairs": 0.0})
    gaps = np.array([gap for _, _, gap in found.values()], dtype=np.float64)
    least = float(np.quantile(gaps, min_gap_quantile))
    ranked = sorted(found, key=lambda index: (-found[index][2], index))
    for place, index in enumerate(ranked):
        gap = found[index][2]
        if gap < least:
            drops[index] = Drop(prompts[index].prompt_id, _RULE, f"gap {gap:.4g} is under the least gap {least:.4g}")
        elif 0 <= max_pairs <= place:
            drops[index] = Drop(prompts[index].prompt_id, _RULE, f"gap {gap:.4g} is not among the {max_pairs} widest")
    strengths = _strengths(gaps)
    pairs = tuple(
        OnPolicyPair(prompts[index].prompt_id, *found[index], strength)
        for index, strength in zip(found, strengths, strict=True)
        if index not in drops
    )
    metrics = {"num_in": float(len(prompts)), "num_pairs": float(len(pairs)), "least_gap": least}
    metrics["mean_gap"] = sum(pair.gap for pair in pairs) / len(pairs) if pairs else 0.0
    return PairsResult(pairs, tuple(drops[index] for index in sorted(drops)), metrics)


def _strengths(gaps: np.ndarray) -> list[Strength]:
    """Strength per gap; a gap on a border belongs to the stronger quarter."""
    borders = np.quantile(gaps, (0.75, 0.5, 0.25))
    return [STRENGTHS[int(np.sum(gap < borders))] for gap in gaps]
