"""Whether a recipe's averaging fits the checkpoints that its training stages will keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alignloop.config import Recipe
from alignloop.config.training import AverageConfig, OptimizerConfig
from alignloop.preflight.findings import PreflightError
from alignloop.records import PreferenceRow
from alignloop.stages.train_reward import of_strengths
from alignloop.training.variants import num_trainings, trainings

StageName = Literal["reward", "sft", "dpo"]
STAGE_NAMES: tuple[StageName, ...] = ("reward", "sft", "dpo")


def check_averaging(recipe: Recipe, *, heldout: Sequence[PreferenceRow]) -> None:
    """Raises a `UserError` with everything about `averaging` that cannot work.

    Args:
        heldout: the run's held-out preferences.
    """
    problems = [problem for name in STAGE_NAMES for problem in _problems(recipe, name, heldout)]
    if problems:
        raise PreflightError(problems)


def num_checkpoints(config: OptimizerConfig) -> int:
    """Checkpoints a training stage keeps, over all its variants; fewer where it has fewer steps."""
    return num_trainings(config) * config.num_checkpoints


def _problems(recipe: Recipe, name: StageName, heldout: Sequence[PreferenceRow]) -> list[str]:
    config: AverageConfig = getattr(recipe.averaging, name)
    stage: OptimizerConfig = getattr(recipe, name)
    kept = num_checkpoints(stage)
    trained = num_trainings(stage)
    kept_in_words = f"{kept} checkpoint{'s' if kept > 1 else ''} ({name}.num_checkpoints {stage.num_checkpoints}"
    kept_in_words += f" x {trained} variants)" if stage.variants else ")"
    problems = []
    if config.choose is not None and config.choose > kept:
        problems.append(f"averaging.{name}.choose: {config.choose} of {kept_in_words} - choose fewer or keep more")
    num_averaged = min(config.choose or kept, kept)
    if config.weights is not None and len(config.weights) != num_averaged:
        of = f"the {num_averaged} chosen" if num_averaged < kept else kept_in_words
        problems.append(f"averaging.{name}.weights: {len(config.weights)} weights for {of} - give one each")
    if config.weights is not None and not sum(config.weights) > 0.0:
        problems.append(f"averaging.{name}.weights: all of them are zero - give at least one a share")
    if num_averaged < kept:
        problems += _unfit_to_choose(recipe, name, config, heldout)
    return problems


def _unfit_to_choose(
    recipe: Recipe, name: StageName, config: AverageConfig, heldout: Sequence[PreferenceRow]
) -> list[str]:
    problems = []
    strengths = {"reward": recipe.reward.strengths, "sft": None, "dpo": recipe.pairs.strengths}[name]
    if not (heldout if strengths is None else of_strengths(heldout, strengths)):
        problems.append(
            f"averaging.{name}.choose: no held-out row to choose by (data.heldout_fraction "
            f"{recipe.data.heldout_fraction:g}) - hold rows out, or average all checkpoints"
        )
    if name == "dpo" and config.metric == "loss":
        losses = {(each.beta, each.nll_coefficient) for each, _ in trainings(recipe.dpo)}
        if len(losses) > 1:
            problems.append(
                "averaging.dpo.metric: losses of other beta or nll_coefficient cannot be compared - use accuracy"
            )
    return problems
