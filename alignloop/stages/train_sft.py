"""Supervised fine-tuning on the round's pruned rows (section 4.1.3)."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.config.training import SftConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import SftRow
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.bootstrap import heldout_targets
from alignloop.stages.training import Outputs, fine_tune


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    rows: Artifact
    heldout: Artifact | None = None
    """Preferences never trained on: the loss is measured on what people liked best of them. None: it is not."""


def settings(recipe: Recipe) -> SftConfig:
    return recipe.sft


def run(config: SftConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = list(load_jsonl(inputs.rows.path, SftRow))
    return fine_tune(config, inputs.start, rows, heldout_targets(inputs.heldout), ctx)


STAGE = Stage("train_sft", Inputs, Outputs, settings, run)
