"""Step 3: the top quartile by reward, or the judge's maximum."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.config.pruning import QualityConfig
from alignloop.errors import UserError
from alignloop.judging.prompt_file import PointsPrompt, load_prompt
from alignloop.pruning.asking import PruneJudge
from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, lacking, left, skipped
from alignloop.selection.quality import Rating, top_or_best_rated
from alignloop.selection.topics import is_code


def quality_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Keep what reward or judge says is good; people's rows pass unless the judge is to see them."""
    config = tools.config.quality
    if not config.enabled:
        return skipped(items, "prune.quality.enabled is false")
    by_reward, by_judge = config.by in ("reward", "either"), config.by in ("judge", "either")
    rewarded = [item.reward is not None and by_reward for item in items]
    if by_judge and tools.judge is None:
        return lacking(items, tools, step="quality", why=f"by is {config.by}, but there is no `judge` section")
    if config.by == "reward" and not any(rewarded):
        if any(item.from_people for item in items) and not tools.lenient:
            return skipped(items, "no row has a reward: all are people's")
        why = "no row has a reward (a `reward` column): score the rows, or set prune.quality.by to judge"
        return lacking(items, tools, step="quality", why=why)
    rated = list(items)
    ratings: list[Rating | None] = [None] * len(items)
    if by_judge and tools.judge is not None:
        rated, ratings = rate_quality(items, config, judge=tools.judge)
    verdict = top_or_best_rated(
        [item.id for item in items],
        rewards=[item.reward if is_one else None for item, is_one in zip(items, rewarded, strict=True)],
        ratings=ratings,
        fraction=config.top_fraction,
        must_be_good=[not (tools.lenient or item.from_people) for item in items],
    )
    return left(rated, verdict)


def rate_quality(
    items: Sequence[Item], config: QualityConfig, *, judge: PruneJudge
) -> tuple[list[Item], list[Rating | None]]:
    """Each item with its points, and its rating: code by two points, anything else by three."""
    rated = list(items)
    ratings: list[Rating | None] = [None] * len(items)
    asked = [n for n, item in enumerate(items) if config.judge_human_rows or not item.from_people]
    code = [n for n in asked if _is_code(items[n], config)]
    general = sorted(set(asked) - set(code))
    for prompt, members in ((config.general_prompt, general), (config.code_prompt, code)):
        loaded = load_prompt(prompt)
        if not isinstance(loaded, PointsPrompt):
            raise UserError(f"prune.quality: {prompt} gives no points; name a judging prompt of `kind: points`")
        maximum = loaded.verdict.maximum
        given = judge.points(prompt, [items[n] for n in members]) if members else []
        for n, one in zip(members, given, strict=True):
            ratings[n] = Rating(one.points, maximum)
            if one.points is not None:
                points = {**items[n].judge, prompt_name(prompt): one.points}
                rated[n] = items[n].with_(judge=points, best_rating=one.points / maximum)
    return rated, ratings


def _is_code(item: Item, config: QualityConfig) -> bool:
    return is_code(item.topic, item.asked, item.completion, code_topics=config.code_topics)


def prompt_name(prompt: str) -> str:
    """A prompt's name in the rows: that of a file without its path."""
    return prompt.rpartition("/")[2].removesuffix(".yaml")
