"""What scores: one reward model, or the members of an ensemble (docs/reward_ensembles.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import ScoreConfig
from alignloop.errors import ModelError, UserError
from alignloop.progress import Progress
from alignloop.stages import training

if TYPE_CHECKING:
    from alignloop.packing.groups import PromptGroup
    from alignloop.training.model import Dtype

RewardModel = Artifact | tuple[Artifact, ...]
"""A reward model, or the members of an ensemble, one a variant."""
MIN_MEMBERS = 2


def of_training(recipe: Recipe, trained: training.Outputs, *, averaged: Artifact) -> RewardModel:
    """What scores after a training: the average of its checkpoints, or, with `score.ensemble`, the last checkpoint of
    each of its variants."""
    if not recipe.score.has_ensemble:
        return averaged
    # A variant's checkpoints lie in its folder, oldest first.
    return tuple({checkpoint.path.parent: checkpoint for checkpoint in trained.checkpoints}.values())


def members_of(reward_model: RewardModel) -> tuple[Artifact, ...]:
    """One where it is no ensemble."""
    return reward_model if isinstance(reward_model, tuple) else (reward_model,)


def same(one: RewardModel, other: RewardModel) -> bool:
    return [each.digest for each in members_of(one)] == [each.digest for each in members_of(other)]


def check_members(config: ScoreConfig, *, num_models: int) -> None:
    """Raises UserError where an ensemble is asked of one reward model, or several are given and none is asked for."""
    if config.has_ensemble and num_models < MIN_MEMBERS:
        raise UserError(
            f"score.ensemble is {config.ensemble}, and there is one reward model: give its members, or set "
            "score.ensemble: average_weights"
        )
    if not config.has_ensemble and num_models > 1:
        raise UserError(
            f"{num_models} reward models, and score.ensemble is average_weights, which scores with one: set "
            "score.ensemble to mean, mean_minus_spread or least, or average them first"
        )


def rewards_by_member(
    groups: Sequence[PromptGroup],
    reward_model: RewardModel,
    *,
    rows_per_microbatch: int,
    dtype: Dtype,
    progress: Progress,
) -> list[list[tuple[float, ...]]]:
    """The raw rewards of each group's completions by each member; of one model one each.

    Raises:
        ModelError: as `score_groups`, or a member gives anything but finite numbers.
    """
    from alignloop.training.scoring import score_groups

    by_member = []
    for member in members_of(reward_model):
        rewards = score_groups(
            groups,
            reward_model=member.path,
            rows_per_microbatch=rows_per_microbatch,
            dtype=dtype,
            progress=progress,
        )
        for group, own in zip(groups, rewards, strict=True):
            _require_finite(own, where=group.id, by=member)
        by_member.append(rewards)
    return [[*zip(*of_group, strict=True)] for of_group in zip(*by_member, strict=True)]


def _require_finite(rewards: Sequence[float], *, where: str, by: Artifact) -> None:
    for reward in rewards:
        if not math.isfinite(reward):
            raise ModelError(f"{by.path}: gives a completion of {where} the reward {reward}: its training has diverged")
