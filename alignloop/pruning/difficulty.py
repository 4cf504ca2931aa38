"""Step 4: neither what all solve nor what none solves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alignloop.errors import UserError
from alignloop.judging.prompt_file import PointsPrompt, load_prompt
from alignloop.pruning.items import LEAST_DIFFICULTY, Item
from alignloop.pruning.quality import prompt_name
from alignloop.pruning.steps import StepResult, Tools, lacking, left, skipped
from alignloop.selection.difficulty import distinct_intentions, intentions_window, pass_rate_window, points_window


def difficulty_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows outside the window of pass rates, points or intentions."""
    config = tools.config.difficulty
    if not config.enabled:
        return skipped(items, "prune.difficulty.enabled is false")
    return _WAYS[config.by](items, tools)


def _by_pass_rate(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    if all(item.pass_rate is None for item in items):
        why = "no row has a pass rate (a `pass_rate` column): set prune.difficulty.by to judge or intentions"
        return skipped(items, why)
    scored = [item if item.pass_rate is None else item.with_pass_rate(item.pass_rate) for item in items]
    verdict = pass_rate_window(
        [item.id for item in items],
        pass_rates=[item.pass_rate for item in items],
        min_pass_rate=config.min_pass_rate,
        max_pass_rate=config.max_pass_rate,
    )
    return left(scored, verdict)


def _by_points(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    if tools.judge is None:
        return lacking(items, tools, step="difficulty", why="by is judge, but there is no `judge` section")
    prompt = load_prompt(config.prompt)
    if not isinstance(prompt, PointsPrompt):
        raise UserError(f"prune.difficulty.prompt: {config.prompt} gives no points; name one of `kind: points`")
    given = tools.judge.points(config.prompt, items)
    scored = [
        item
        if one.points is None
        else item.with_(
            judge={**item.judge, prompt_name(config.prompt): one.points},
            difficulty_score=float(one.points),
            priority_difficulty=one.points / prompt.verdict.maximum,
        )
        for item, one in zip(items, given, strict=True)
    ]
    points = [one.points for one in given]
    verdict = points_window(
        [item.id for item in items], points=points, min_points=config.min_points, max_points=config.max_points
    )
    return _with_unreadable(left(scored, verdict), points.count(None))


def _by_intentions(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    if tools.judge is None:
        return lacking(items, tools, step="difficulty", why="by is intentions, but there is no `judge` section")
    given = tools.judge.texts(config.intentions_prompt, items)
    tags = [None if one.texts is None else tuple(distinct_intentions(one.texts)) for one in given]
    most = max((len(found) for found in tags if found is not None), default=0) or 1
    scored = [
        item
        if found is None
        else item.with_(
            tags=found, difficulty_score=float(len(found)), priority_difficulty=max(len(found) / most, LEAST_DIFFICULTY)
        )
        for item, found in zip(items, tags, strict=True)
    ]
    verdict = intentions_window(
        [item.id for item in items],
        counts=[None if found is None else len(found) for found in tags],
        min_intentions=config.min_intentions,
        max_intentions=None if config.max_intentions < 0 else config.max_intentions,
    )
    return _with_unreadable(left(scored, verdict), tags.count(None))


def _with_unreadable(result: StepResult, number: int) -> StepResult:
    """Rows whose answer cannot be read stay, and are counted."""
    return StepResult(result.items, result.dropped, {**result.metrics, "num_unreadable": float(number)})


_WAYS: Mapping[str, Callable[[Sequence[Item], Tools], StepResult]] = {
    "pass_rate": _by_pass_rate,
    "judge": _by_points,
    "intentions": _by_intentions,
}
