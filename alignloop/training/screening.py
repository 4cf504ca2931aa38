"""Which groups an objective can train on. What it cannot is dropped with its reason, never cut and never in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup

ObjectiveName = Literal["reward", "sft", "dpo"]
Dropped = tuple[tuple[str, str], ...]
"""(group id, reason)."""


def screen(
    groups: Sequence[PromptGroup], *, objective: ObjectiveName, max_length: int
) -> tuple[list[PromptGroup], Dropped]:
    """Groups that train, and the others with their reasons: `in == kept + dropped`.

    Raises:
        TrainingError: nothing is left.
    """
    kept: list[PromptGroup] = []
    dropped: list[tuple[str, str]] = []
    for group in groups:
        reason = drop_reason(group, objective=objective, max_length=max_length)
        if reason is None:
            kept.append(group)
        else:
            dropped.append((group.id, reason))
    if not kept:
        raise TrainingError(_nothing_left(objective, dropped))
    return kept, tuple(dropped)


def _nothing_left(objective: str, dropped: Sequence[tuple[str, str]]) -> str:
    if not dropped:
        return f"{objective}: there is no row to train on: the stage was given none"
    row, reason = dropped[0]
    return f"{objective}: no row is left to train on: all {len(dropped)} were dropped. The first, {row}: {reason}"


def drop_reason(group: PromptGroup, *, objective: ObjectiveName, max_length: int) -> str | None:
    """Why the objective cannot train on a group; None where it can."""
    if group.longest > max_length:
        return f"prompt and longest completion have {group.longest} tokens, max_length is {max_length}"
    for number, completion in enumerate(group.completions):
        if not completion.token_ids:
            return f"completion {number} has no token to train on"
        if objective != "reward" and all(completion.formatting_mask):
            return f"completion {number} has formatting tokens only: its text comes to no token"
    if objective == "reward" and len(group.completions) < 2:
        return "it has one ranked completion: a reward model learns from two or more"
    if objective == "reward" and len(set(group.ranks)) < 2:
        return "all its completions have the same rank: there is nothing to compare"
    if objective == "dpo" and (len(group.completions) != 2 or len(set(group.ranks)) != 2):
        return f"DPO needs one chosen and one rejected completion, found ranks {list(group.ranks)}"
    return None
