"""Model averaging over a stage's checkpoints, of all its variants (section 4.1.5); the identity on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from alignloop.artifacts import Artifact, write_text
from alignloop.config.recipe import Recipe
from alignloop.config.training import AverageConfig, ObjectiveName, OptimizerConfig
from alignloop.errors import UserError
from alignloop.records import PreferenceRow
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages import training
from alignloop.stages.facts import Facts
from alignloop.stages.train_reward import of_strengths
from alignloop.training.variants import num_trainings, trainings


@dataclass(frozen=True)
class Inputs:
    checkpoints: tuple[Artifact, ...]
    summary: Artifact | None = None
    """`train_summary.json`, which `choose` goes by. None: the checkpoints are put together by hand."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact
    averaged: Artifact
    """`AverageSummary`: every checkpoint with its weight in the mean."""


def of(trained: training.Outputs) -> Inputs:
    return Inputs(trained.checkpoints, trained.summary)


def run(config: AverageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.training.average import (
        AveragedCheckpoint,
        AverageSummary,
        average_checkpoints,
        entries_of,
        read_summary,
        shares_of,
    )

    summary = None if inputs.summary is None else read_summary(inputs.summary.path)
    entries = entries_of(inputs.checkpoints, summary)
    if [entry.step for entry in entries] == [0]:  # its stage had no row: what the recipe averages was not trained
        config = AverageConfig()
    section = f"averaging.{summary.objective}" if summary else "averaging"
    shares = shares_of([entry.metrics for entry in entries], config=config, section=section)
    used = [(artifact, share) for artifact, share in zip(inputs.checkpoints, shares, strict=True) if share > 0.0]
    with ctx.activity("averaging"):
        path = average_checkpoints(
            [artifact.path for artifact, _ in used],
            out_dir=ctx.dir / "checkpoint",
            weights=None if config.weights is None else [share for _, share in used],
        )
    averaged = AverageSummary(
        checkpoints=tuple(
            AveragedCheckpoint(**dict(entry), weight=share) for entry, share in zip(entries, shares, strict=True)
        )
    )
    write_text(ctx.dir / "averaged.json", averaged.model_dump_json(indent=1) + "\n")
    return Outputs(
        checkpoint=Artifact.of(path),
        averaged=ctx.artifact("averaged.json"),
        counts={"checkpoints": len(inputs.checkpoints), "averaged": len(used)},
    )


def _after(objective: ObjectiveName) -> Stage[AverageConfig, Inputs, Outputs]:
    def settings(recipe: Recipe) -> AverageConfig:
        return cast(AverageConfig, getattr(recipe.averaging, objective))

    return Stage("average", Inputs, Outputs, settings, run)


REWARD, SFT, DPO, RLOO = _after("reward"), _after("sft"), _after("dpo"), _after("rloo")


def _of_policies(recipe: Recipe) -> AverageConfig:
    """The last moving average and the round's policy."""
    return AverageConfig(weights=(recipe.dpo.ema_decay, 1.0 - recipe.dpo.ema_decay))


EMA = Stage("average", Inputs, Outputs, _of_policies, run)
STAGES: Mapping[ObjectiveName, Stage[AverageConfig, Inputs, Outputs]] = {
    "reward": REWARD,
    "sft": SFT,
    "dpo": DPO,
    "rloo": RLOO,
}
"""The averaging stage by its section of `averaging`."""


def stage_for(recipe: Recipe, inputs: Inputs) -> Stage[AverageConfig, Inputs, Outputs]:
    """The one after the stage of the summary; without a summary, the one that the recipe configures.

    Raises:
        UserError: there is no summary, and the recipe configures several.
    """
    if inputs.summary is not None:
        from alignloop.training.average import read_summary

        return STAGES[read_summary(inputs.summary.path).objective]
    configured = [name for name in STAGES if STAGES[name].settings(recipe) != AverageConfig()]
    if len(configured) > 1:
        raise UserError(
            f"average: the recipe configures averaging.{' and averaging.'.join(configured)}: say which with "
            "--input summary=train_summary.json of the stage that trained the checkpoints"
        )
    return STAGES[configured[0] if configured else "reward"]


def check(facts: Facts) -> None:
    """Whether each `averaging` fits the checkpoints that its training stage will keep."""
    for name in facts.recipe.trainings:
        facts.findings.problems += _problems(facts.recipe, name, facts.rows.heldout)


def num_checkpoints(config: OptimizerConfig) -> int:
    """Checkpoints a training stage keeps, over all its variants; fewer where it has fewer steps."""
    return num_trainings(config) * config.num_checkpoints


def _problems(recipe: Recipe, name: ObjectiveName, heldout: Sequence[PreferenceRow]) -> list[str]:
    config: AverageConfig = getattr(recipe.averaging, name)
    stage: OptimizerConfig = getattr(recipe, name)
    kept = num_checkpoints(stage)
    trained = num_trainings(stage)
    kept_in_words = f"{kept} checkpoint{'s' if kept > 1 else ''} ({name}.num_checkpoints {stage.num_checkpoints}"
    kept_in_words += f" x {trained} variants)" if stage.variants else ")"
    problems = []
    if config.choose is not None and config.choose > kept:
        problems.append(
            f"averaging.{name}.choose: {config.choose}, but the stage keeps {kept_in_words} - choose fewer or keep more"
        )
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
    recipe: Recipe, name: ObjectiveName, config: AverageConfig, heldout: Sequence[PreferenceRow]
) -> list[str]:
    if name == "rloo":
        return ["averaging.rloo.choose: RLOO measures nothing on held-out rows to choose by - average all checkpoints"]
    problems = []
    strengths = {"reward": recipe.reward.strengths, "sft": None, "dpo": recipe.pairs.strengths}[name]
    if not (heldout if strengths is None else of_strengths(heldout, strengths)):
        problems.append(
            f"averaging.{name}.choose: no held-out row to choose by (data.heldout_fraction "
            f"{recipe.data.heldout_fraction:g}) - hold rows out, or average all checkpoints"
        )
    if name == "dpo" and config.metric == "loss":
        trained = [each for each, _ in trainings(recipe.dpo)]
        names = ("beta", "gamma", "label_smoothing", "margin_scale", "nll_coefficient")
        if differing := [name for name in names if len({getattr(each, name) for each in trained}) > 1]:
            problems.append(
                f"averaging.dpo.metric: losses of other {' or '.join(differing)} cannot be compared - use accuracy"
            )
    return problems
