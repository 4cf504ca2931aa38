"""Step 4, difficulty (4.2.3): by the pass rate of the K candidates, a judge's points, or the number of intentions.

What all candidates solve teaches little, what none solves may be noise: rows outside a window are dropped. Intentions
are counted after InsTag (Lu et al. 2023): the more of them, the more complex the prompt.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from alignloop.pruning.items import LEAST_DIFFICULTY, Item
from alignloop.pruning.models import points_prompt, prompt_name
from alignloop.pruning.step import Pruned, Step, StepResult, Tools, drop, lacking, left, pruned, skipped
from alignloop.sampling.best_of_k import check_finite


def difficulty_window(
    ids: Sequence[str],
    *,
    values: Sequence[float | None],
    low: float,
    high: float | None,
    name: str,
    easy_is_high: bool = False,
) -> Pruned:
    """Keep rows whose value lies in [low, high]; rows without one are kept.

    `values` are pass rates in [0, 1], points for difficulty, or numbers of intentions, None where unknown; `name` says
    which, for reasons and metrics: `pass_rate`, `points`, `intentions`. Without `high` there is no upper limit.

    Raises:
        ValueError: a value that is not finite, or an empty window.
    """
    high = math.inf if high is None else high
    if low > high:
        raise ValueError(f"min_{name} {low} is above max_{name} {high}: nothing would be kept")
    known = [value for value in values if value is not None]
    check_finite(known, name=name if name.endswith("s") else f"{name}s")
    drops = {}
    for index, (row_id, value) in enumerate(zip(ids, values, strict=True)):
        if value is None or low <= value <= high:
            continue
        under = value < low
        why = "too easy" if under != easy_is_high else "too hard"
        limit = f"under {low:.3g}" if under else f"over {high:.3g}"
        drops[index] = drop(row_id, "difficulty", f"{name.replace('_', ' ')} {value:.3g} is {limit} ({why})")
    return pruned(ids, drops, metrics={f"mean_{name}": sum(known) / len(known)} if known else None)


def distinct_intentions(intentions: Iterable[str]) -> list[str]:
    """The intentions that differ in more than case, spaces and punctuation, as first named."""
    found: dict[str, str] = {}
    for text in intentions:
        key = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
        if key:
            found.setdefault(key, text.strip())
    return list(found.values())


def difficulty_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows outside the window of pass rates, points or intentions."""
    config = tools.config.difficulty
    if config.by != "pass_rate" and tools.judge is None:
        return lacking(items, tools, step="difficulty", why=f"by is {config.by}, but there is no `judge` section")
    return _WAYS[config.by](items, tools)


def _by_pass_rate(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    rates = [item.pass_rate for item in items]
    if all(rate is None for rate in rates):
        why = "no row has a pass rate (a `pass_rate` column): set prune.difficulty.by to judge or intentions"
        return skipped(items, why)
    verdict = difficulty_window(
        [item.id for item in items],
        values=rates,
        low=config.min_pass_rate,
        high=config.max_pass_rate,
        name="pass_rate",
        easy_is_high=True,
    )
    return left([item if item.pass_rate is None else item.with_pass_rate(item.pass_rate) for item in items], verdict)


def _by_points(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    refusal = f"prune.difficulty.prompt: {config.prompt} gives no points; name one of `kind: points`"
    maximum = points_prompt(config.prompt, refusal=refusal).verdict.maximum
    assert tools.judge is not None, "the step has looked"
    points = [answer.points for answer in tools.judge.points(config.prompt, items)]
    scored = list(items)
    for index, (item, found) in enumerate(zip(items, points, strict=True)):
        if found is not None:
            judge = {**item.judge, prompt_name(config.prompt): found}
            scored[index] = replace(
                item, judge=judge, difficulty_score=float(found), priority_difficulty=found / maximum
            )
    ids = [item.id for item in items]
    verdict = difficulty_window(ids, values=points, low=config.min_points, high=config.max_points, name="points")
    return left(scored, verdict, num_unreadable=float(points.count(None)))


def _by_intentions(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.difficulty
    assert tools.judge is not None, "the step has looked"
    answers = [answer.texts for answer in tools.judge.texts(config.intentions_prompt, items)]
    tags = [None if texts is None else tuple(distinct_intentions(texts)) for texts in answers]
    counts = [None if found is None else len(found) for found in tags]
    most = max((count for count in counts if count is not None), default=0) or 1
    scored = list(items)
    for index, (found, count) in enumerate(zip(tags, counts, strict=True)):
        if count is not None:
            priority = max(count / most, LEAST_DIFFICULTY)
            scored[index] = replace(
                items[index], tags=found, difficulty_score=float(count), priority_difficulty=priority
            )
    high = None if config.max_intentions < 0 else config.max_intentions
    ids = [item.id for item in items]
    verdict = difficulty_window(ids, values=counts, low=config.min_intentions, high=high, name="intentions")
    return left(scored, verdict, num_unreadable=float(counts.count(None)))


_WAYS: Mapping[str, Step] = {"pass_rate": _by_pass_rate, "judge": _by_points, "intentions": _by_intentions}
