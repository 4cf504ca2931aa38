"""Before round 1, for a base without chat behaviour: fine-tune on what people chose or edited in the first batch.

What comes of it samples, and nothing else: reward model and SFT start from the base (`start_from`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignloop.artifacts import Artifact
from alignloop.config.base import PositiveInt
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.data.split import round_batch
from alignloop.records import DroppedRow, PreferenceRow
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages import train_sft
from alignloop.stages.train_sft import fine_tune, preferred
from alignloop.stages.training import Outputs


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    preferences: Artifact
    """As ingested: all batches."""
    heldout: Artifact | None = None
    """As for `train_sft`."""


class Settings(train_sft.Settings):
    batches: Literal["split", "files", "all"]
    split_rounds: PositiveInt


def settings(recipe: Recipe) -> Settings:
    # `train_tokens` makes rounds of other data equal; the first policy is the same in all of them.
    sft = {**dict(train_sft.settings(recipe)), "train_tokens": None}
    return Settings(**sft, batches=recipe.data.batches, split_rounds=recipe.data.split_rounds)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    batch, later = first_batch(list(load_jsonl(inputs.preferences.path, PreferenceRow)), config)
    return fine_tune(config, inputs.start, [preferred(row) for row in batch], inputs.heldout, ctx, left_out=later)


def first_batch(rows: Sequence[PreferenceRow], config: Settings) -> tuple[list[PreferenceRow], list[DroppedRow]]:
    """The rows that `collect` takes for the first round, and those of later rounds, which nobody has seen by then."""
    batch = round_batch(rows, round=1, batches=config.batches, split_rounds=config.split_rounds)
    taken = {row.id for row in batch}
    reason = "it is of a later round's batch; the first policy learns from the first alone"
    later = [
        DroppedRow(id=row.id, stage="bootstrap", rule="batch", reason=reason) for row in rows if row.id not in taken
    ]
    return batch, later


STAGE = Stage("bootstrap", Inputs, Outputs, settings, run)
