"""The round's reward model, on all preferences to date (section 4.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.base import NonNegativeFloat, Uncounted
from alignloop.config.recipe import Recipe
from alignloop.config.training import Layout, RewardConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import DroppedRow, PreferenceRow, Strength
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.training import Outputs, train_stage


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    """A causal model, which gets a fresh scalar head, or a reward model."""
    preferences: tuple[Artifact, ...]
    """One batch a round, oldest first."""
    heldout: Artifact


class Settings(Uncounted, RewardConfig):
    layout: Layout
    """`training.layout`."""
    # In no fingerprint while there is none.
    center_rewards: NonNegativeFloat = Field(0.0, exclude_if=lambda weight: weight == 0.0)


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.reward), layout=recipe.training.layout)


def run(config: RewardConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import ranked_groups

    # A row may stand in several batches (`batches: all`): it trains once.
    rows = list({row.id: row for batch in inputs.preferences for row in load_jsonl(batch.path, PreferenceRow)}.values())
    kept = of_strengths(rows, config.strengths)
    named = f"reward.strengths ({', '.join(config.strengths)})"
    weak = [
        DroppedRow(id=row.id, stage="train_reward", rule="strength", reason=f"{row.strength} is not among {named}")
        for row in rows
        if row.strength is not None and row.strength not in config.strengths
    ]
    heldout = of_strengths(list(load_jsonl(inputs.heldout.path, PreferenceRow)), config.strengths)
    kept, heldout = ([as_ranked(row, config) for row in some] for some in (kept, heldout))
    chat = load_format(inputs.start.path)
    return train_stage(
        "reward",
        config=config,
        groups=ranked_groups(kept, chat),
        eval_groups=ranked_groups(heldout, chat),
        start=inputs.start,
        ctx=ctx,
        left_out=weak,
    )


def as_ranked(row: PreferenceRow, config: RewardConfig) -> PreferenceRow:
    """The row with the completions that are ranked: all of them, or (`use_edited: false`) chosen and rejected."""
    return row if config.use_edited or row.edited is None else row.model_copy(update={"edited": None})


def of_strengths(rows: Sequence[PreferenceRow], strengths: Sequence[Strength]) -> list[PreferenceRow]:
    """Rows of the named strengths; a row whose source says nothing of strength counts as one of them."""
    return [row for row in rows if row.strength is None or row.strength in strengths]


STAGE = Stage("train_reward", Inputs, Outputs, settings, run)
