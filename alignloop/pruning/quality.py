"""Step 3, quality (4.2.3): a row is good with a reward in the top quarter, or the judge's maximum; either one keeps.

The judge gives general rows three points, code two. Quality times difficulty is what the two steps of deduplication
rank rows by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from alignloop.config.pruning import QualityConfig
from alignloop.pruning.items import Item
from alignloop.pruning.models import PruneJudge, points_prompt, prompt_name
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, lacking, left, pruned, skipped
from alignloop.sampling.best_of_k import check_finite

PEOPLE_FIRST = 2.0
"""Above any product of two numbers in (0, 1]."""
_FENCED = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Rating:
    """Points of a judge, None where its answer cannot be read, and the most it could give."""

    points: int | None
    maximum: int


def top_or_best_rated(
    ids: Sequence[str],
    *,
    rewards: Sequence[float | None],
    ratings: Sequence[Rating | None],
    fraction: float,
    must_be_good: Sequence[bool] | None = None,
) -> Pruned:
    """Keep rows whose reward is in the top fraction or whose rating is the judge's maximum.

    The top fraction is the `ceil(fraction * N)` of highest reward among the N rows with one, ties going to the first;
    a row with neither reward nor rating is kept, for nothing speaks against it, unless it must be good. A rating that
    cannot be read keeps no row; it is None where the judge was not asked. Rewards are raw, of one reward model, never
    normalised per prompt, and None where a row has none.

    Raises:
        ValueError: a reward that is not finite, or a fraction outside [0, 1].
    """
    known = {index: reward for index, reward in enumerate(rewards) if reward is not None}
    top, least = _top(known, fraction=fraction)
    best = {index for index, rating in enumerate(ratings) if rating is not None and rating.points == rating.maximum}
    good = top | best
    drops = {}
    for index, (row_id, reward, rating) in enumerate(zip(ids, rewards, ratings, strict=True)):
        reasons = [] if reward is None else [f"score {reward:.4g} is not in the top {fraction:.0%} (from {least:.4g})"]
        if rating is not None and rating.points is None:
            reasons.append("the judge's answer cannot be read")
        elif rating is not None:
            reasons.append(f"the judge gave {rating.points} of {rating.maximum} points")
        if not reasons and must_be_good is not None and must_be_good[index]:
            reasons.append("it has neither a reward nor a judge's points")
        if reasons and index not in good:
            drops[index] = drop(row_id, "quality", "; ".join(reasons))
    metrics = {"num_top_reward": float(len(top)), "num_best_rated": float(len(best))}
    points = [rating.points for rating in ratings if rating is not None]
    if points:
        metrics["num_unreadable"] = float(points.count(None))
    if top:
        metrics["least_quality_score"] = least
    return pruned(ids, drops, metrics=metrics)


def _top(scores: dict[int, float], *, fraction: float) -> tuple[set[int], float]:
    """Indexes of the top fraction, and the least score among them (infinite where there is none)."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1]")
    check_finite(list(scores.values()), name="quality_scores")
    # 0.07 * 100 is a hair above 7 in floating point, and ceil would keep an eighth row.
    num_kept = math.ceil(round(fraction * len(scores), 9))
    order = sorted(scores, key=lambda index: (-scores[index], index))[:num_kept]
    return set(order), scores[order[-1]] if order else math.inf


def is_code(topic: str | None, *texts: str, code_topics: Collection[str]) -> bool:
    """Whether a row's topic is one of `code_topics` (but for case), or a text has a fenced block."""
    if topic is not None and topic.strip().casefold() in {name.casefold() for name in code_topics}:
        return True
    return any(_FENCED.search(text) for text in texts)


def shares_not_higher(rewards: Iterable[float]) -> dict[float, float]:
    """Reward -> share of the rewards that are not higher, in (0, 1]: raw rewards have no zero to multiply with."""
    ordered = sorted(rewards)
    return {reward: (index + 1) / len(ordered) for index, reward in enumerate(ordered)}


def priorities_of(items: Sequence[Item], *, by_reward: bool) -> list[float]:
    """Quality x difficulty (4.2.3), both in (0, 1]; rows by people come before all.

    A reward counts as the share of rewards that are not higher; where the judge was asked too, its share of the
    maximum counts if it is more. What is unknown counts as 1.
    """
    share = shares_not_higher(item.reward for item in items if item.reward is not None)

    def priority(item: Item) -> float:
        if item.from_people:
            return PEOPLE_FIRST
        scores = [share[item.reward]] if item.reward is not None and by_reward else []
        scores += [item.best_rating] if item.best_rating is not None else []
        return max(scores, default=1.0) * (1.0 if item.priority_difficulty is None else item.priority_difficulty)

    return [priority(item) for item in items]


def quality_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Keep what reward or judge finds good; rows by people pass unless the judge is to see them."""
    config = tools.config.quality
    by_judge = config.by in ("judge", "either")
    rewards = [item.reward if config.by in ("reward", "either") else None for item in items]
    if by_judge and tools.judge is None:
        return lacking(items, tools, step="quality", why=f"by is {config.by}, but there is no `judge` section")
    if config.by == "reward" and all(reward is None for reward in rewards):
        if any(item.from_people for item in items) and not tools.lenient:
            return skipped(items, "no row has a reward: all are people's")
        why = "no row has a reward (a `reward` column): score the rows, or set prune.quality.by to judge"
        return lacking(items, tools, step="quality", why=why)
    rated = list(items)
    ratings: list[Rating | None] = [None] * len(items)
    if by_judge and tools.judge is not None:
        rated, ratings = _rate(items, config, judge=tools.judge)
    verdict = top_or_best_rated(
        [item.id for item in items],
        rewards=rewards,
        ratings=ratings,
        fraction=config.top_fraction,
        must_be_good=[not (tools.lenient or item.from_people) for item in items],
    )
    return left(rated, verdict)


def _rate(items: Sequence[Item], config: QualityConfig, *, judge: PruneJudge) -> tuple[list[Item], list[Rating | None]]:
    """Each item with its points, and its rating: code by one prompt, anything else by another."""
    rated = list(items)
    ratings: list[Rating | None] = [None] * len(items)
    members: dict[str, list[int]] = {config.general_prompt: [], config.code_prompt: []}
    for index, item in enumerate(items):
        if config.judge_human_rows or not item.from_people:
            code = is_code(item.topic, item.last_question, item.completion, code_topics=config.code_topics)
            members[config.code_prompt if code else config.general_prompt].append(index)
    for prompt, indexes in members.items():
        refusal = f"prune.quality: {prompt} gives no points; name a judging prompt of `kind: points`"
        maximum = points_prompt(prompt, refusal=refusal).verdict.maximum
        answers = judge.points(prompt, [items[index] for index in indexes]) if indexes else []
        for index, answer in zip(indexes, answers, strict=True):
            ratings[index] = Rating(answer.points, maximum)
            if answer.points is not None:
                points = {**items[index].judge, prompt_name(prompt): answer.points}
                rated[index] = replace(items[index], judge=points, best_rating=answer.points / maximum)
    return rated, ratings
