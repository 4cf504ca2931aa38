"""Supervised fine-tuning on the round's pruned rows (section 4.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.base import PositiveInt, Uncounted
from alignloop.config.recipe import Recipe
from alignloop.config.training import Demonstrations, Layout, SftConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import DroppedRow, Message, PreferenceRow, SftRow
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.training import Outputs, train_stage


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    rows: Artifact
    heldout: Artifact | None = None
    """Never trained on: the loss is measured on what people liked best of them. None: it is not."""


class Settings(Uncounted, SftConfig):
    """SFT as its checkpoints depend on it: what only warns is left out."""

    min_steps: PositiveInt | None = Field(None, exclude=True)
    data: tuple[Demonstrations, ...] = Field((), exclude=True)  # which rows train, the inputs say
    data_window: PositiveInt | None = Field(None, exclude=True)
    layout: Layout
    """`training.layout`."""


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.sft), layout=recipe.training.layout)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    return fine_tune(config, inputs.start, list(load_jsonl(inputs.rows.path, SftRow)), inputs.heldout, ctx)


def fine_tune(
    config: SftConfig,
    start: Artifact,
    rows: Sequence[SftRow],
    heldout: Artifact | None,
    ctx: StageContext,
    *,
    left_out: Sequence[DroppedRow] = (),
) -> Outputs:
    """Cross-entropy on target tokens, the prompt masked; `heldout` as in `Inputs`, `left_out` as in `train_stage`."""
    from alignloop.chat.load import load_format
    from alignloop.packing.build import sft_groups

    chat = load_format(start.path)
    measured = [] if heldout is None else [preferred(row) for row in load_jsonl(heldout.path, PreferenceRow)]
    return train_stage(
        "sft",
        config=config,
        groups=sft_groups(rows, chat, train_on=config.train_on),
        eval_groups=sft_groups(measured, chat, train_on=config.train_on),
        start=start,
        ctx=ctx,
        left_out=left_out,
    )


def preferred(row: PreferenceRow) -> SftRow:
    """The dialog with the completion people liked best: edited, else chosen."""
    best = row.ranked[0]
    return SftRow(
        id=row.id,
        messages=[*row.messages, Message(role="assistant", content=best.text)],
        origin="preference",
        source=row.source,
        completion_ids=best.token_ids,
        finish_reason=best.finish_reason,
        meta=row.meta,
    )


STAGE = Stage("train_sft", Inputs, Outputs, settings, run)
