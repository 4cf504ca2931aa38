"""Quality (The Llama 3 Herd of Models, 4.2.3): the top quartile by reward, or the judge's maximum; either one keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignloop.selection.verdicts import Drop, Pruned, check_finite, pruned


@dataclass(frozen=True)
class Rating:
    """Points a judge gave, and the most it could give; `points` is None where its answer cannot be read."""

    points: int | None
    maximum: int


def top_fraction(ids: Sequence[str], *, quality_scores: Sequence[float], fraction: float) -> Pruned:
    """Keep the `ceil(fraction * N)` rows of highest score; ties go to the first.

    Args:
        ids: N row ids.
        quality_scores: N scores on one scale: raw rewards of one reward model, never normalised per prompt.
        fraction: share kept, in [0, 1].

    Raises:
        ValueError: a score that is not finite, or a fraction outside [0, 1].
    """
    top, least = _top(quality_scores, fraction=fraction)
    assert len(ids) == len(quality_scores), "one score per row"
    drops = {
        index: Drop(ids[index], "quality", _under(quality_scores[index], fraction, least))
        for index in range(len(ids))
        if index not in top
    }
    return pruned(ids, drops, metrics={"least_quality_score": least} if top else None)


def top_or_best_rated(
    ids: Sequence[str],
    *,
    rewards: Sequence[float | None],
    ratings: Sequence[Rating | None],
    fraction: float,
    must_be_good: Sequence[bool] | None = None,
) -> Pruned:
    """Keep rows whose reward is in the top fraction or whose rating is the judge's maximum.

    The top fraction is that of the rows with a reward; a row with neither reward nor rating is kept, for nothing
    speaks against it, unless it must be good. A rating that cannot be read keeps no row.

    Args:
        ids: N row ids.
        rewards: N raw rewards of one reward model; None where a row has none.
        ratings: N ratings; None where the judge was not asked.
        fraction: share of rewarded rows kept, in [0, 1].
        must_be_good: N; whether a row without reward and rating is dropped. None: no row is.

    Raises:
        ValueError: a reward that is not finite, or a fraction outside [0, 1].
    """
    assert len(ids) == len(rewards) == len(ratings), "a reward and a rating, or None, per row"
    rewarded = [index for index, reward in enumerate(rewards) if reward is not None]
    places, least = _top([reward for reward in rewards if reward is not None], fraction=fraction)
    top = {rewarded[place] for place in places}
    best = {index for index, rating in enumerate(ratings) if rating is not None and rating.points == rating.maximum}
    passing = top | best
    drops = {}
    for index, (row_id, reward, rating) in enumerate(zip(ids, rewards, ratings, strict=True)):
        reasons = [] if reward is None else [_under(reward, fraction, least)]
        if rating is not None:
            reasons.append(_rated(rating))
        if not reasons and must_be_good is not None and must_be_good[index]:
            reasons.append("it has neither a reward nor a judge's points")
        if reasons and index not in passing:
            drops[index] = Drop(row_id, "quality", "; ".join(reasons))
    metrics = {"num_top_reward": float(len(top)), "num_best_rated": float(len(best))}
    unreadable = sum(rating is not None and rating.points is None for rating in ratings)
    if any(rating is not None for rating in ratings):
        metrics["num_unreadable"] = float(unreadable)
    return pruned(ids, drops, metrics={**metrics, **({"least_quality_score": least} if top else {})})


def places(rewards: Iterable[float]) -> dict[float, float]:
    """Reward -> share of the rewards that are not higher, in (0, 1]: raw rewards have no zero to multiply with."""
    ordered = sorted(rewards)
    return {reward: (index + 1) / len(ordered) for index, reward in enumerate(ordered)}


def _top(scores: Sequence[float], *, fraction: float) -> tuple[set[int], float]:
    """Indexes of the top fraction, and the least score among them (infinite where there is none)."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1]")
    check_finite(scores, name="quality_scores")
    # 0.07 * 100 is a hair above 7 in floating point, and ceil would keep an eighth row.
    num_kept = math.ceil(round(fraction * len(scores), 9))
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return set(order[:num_kept]), scores[order[num_kept - 1]] if num_kept else math.inf


def _under(score: float, fraction: float, least: float) -> str:
    return f"score {score:.4g} is not in the top {fraction:.0%} (from {least:.4g})"


def _rated(rating: Rating) -> str:
    if rating.points is None:
        return "the judge's answer cannot be read"
    return f"the judge gave {rating.points} of {rating.maximum} points"
