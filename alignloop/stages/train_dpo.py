"""Direct preference optimisation with masked formatting tokens and an NLL term (section 4.1.4)."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.config.training import DpoConfig, Layout, Reference
from alignloop.data.jsonl import load_jsonl
from alignloop.records import PairRow, PreferenceRow, Strength
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.build_pairs import preference_pair
from alignloop.stages.train_reward import of_strengths
from alignloop.stages.training import Outputs, train_stage


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    reference: Artifact
    """By `dpo.reference`: what DPO starts from, the base, or another earlier model."""
    pairs: Artifact
    heldout: Artifact | None = None
    """Never trained on: loss and accuracy are measured on their pairs. None: they are not."""


class Settings(DpoConfig):
    reference: Reference = Field("sft", exclude=True)  # which model that is, the inputs say
    ema_decay: float = Field(0.9, exclude=True)
    heldout_strengths: tuple[Strength, ...]
    """Held-out pairs of these strengths are measured: those that train."""
    layout: Layout
    """`training.layout`."""


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.dpo), heldout_strengths=recipe.pairs.strengths, layout=recipe.training.layout)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import ranked_groups

    chat = load_format(inputs.start.path)
    heldout = [] if inputs.heldout is None else list(load_jsonl(inputs.heldout.path, PreferenceRow))
    measured = [preference_pair(row) for row in of_strengths(heldout, config.heldout_strengths)]
    return train_stage(
        "dpo",
        config=config,
        groups=ranked_groups(load_jsonl(inputs.pairs.path, PairRow), chat),
        eval_groups=ranked_groups(measured, chat),
        start=inputs.start,
        reference=inputs.reference,
        ctx=ctx,
    )


STAGE = Stage("train_dpo", Inputs, Outputs, settings, run)
