"""Direct preference optimisation with masked formatting tokens and an NLL term (section 4.1.4)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.config.training import DpoConfig, Layout, Reference
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, UserError
from alignloop.records import PairRow, PreferenceRow, Strength
from alignloop.run_dir.manifest import optional
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.build_pairs import preference_pair
from alignloop.stages.facts import Facts
from alignloop.stages.train_reward import of_strengths
from alignloop.stages.training import Outputs, train_stage


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    reference: Artifact | None
    """By `dpo.reference`: what DPO starts from, the base, or another earlier model; None for a loss that has none
    (simpo)."""
    pairs: Artifact
    heldout: Artifact | None = None
    """Never trained on: loss and accuracy are measured on their pairs. None: they are not."""
    optimizer: tuple[Artifact, ...] = optional()
    """The state that the last round's ended with (`dpo.carry_optimizer`); empty: a new one."""


class Settings(DpoConfig):
    reference: Reference = Field("sft", exclude=True)  # which model that is, the inputs say
    ema_decay: float = Field(0.9, exclude=True)
    carry_optimizer: bool = Field(False, exclude_if=operator.not_)
    heldout_strengths: tuple[Strength, ...]
    """Held-out pairs of these strengths are measured: those that train."""
    layout: Layout
    """`training.layout`."""


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.dpo), heldout_strengths=recipe.pairs.strengths, layout=recipe.training.layout)


def inputs(
    recipe: Recipe,
    start: Artifact,
    references: Mapping[Reference, Artifact],
    *,
    pairs: Artifact,
    heldout: Artifact,
    optimizer: tuple[Artifact, ...],
) -> Inputs:
    """`references` has a model for each name of `dpo.reference`."""
    config = recipe.dpo
    reference = references[config.reference] if config.has_reference else None
    carried = optimizer if config.carry_optimizer else ()
    return Inputs(start=start, reference=reference, pairs=pairs, heldout=heldout, optimizer=carried)


def last_of_variants(trained: Outputs) -> tuple[Artifact, ...]:
    """The last checkpoint of each variant, in order; none where there is one training alone."""
    last = {checkpoint.path.parent: checkpoint for checkpoint in trained.checkpoints}  # oldest first in each folder
    return tuple(last.values()) if len(last) > 1 else ()


def check(facts: Facts) -> None:
    """Whether any pair can have a strength to take a margin by."""
    recipe = facts.recipe
    others = "on_policy" in recipe.pairs.sources or "annotated" in recipe.pairs.sources
    rows = of_strengths(facts.rows.train, recipe.pairs.strengths)
    if recipe.dpo.margin == "strength" and not others and rows and all(row.strength is None for row in rows):
        facts.findings.problems.append(
            f"dpo.margin: strength: none of the {len(rows)} preferences has a strength (first: {rows[0].source}) - add "
            "the column, or set dpo.margin: none"
        )


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import ranked_groups

    _check_reference(config, inputs)
    pairs = list(load_jsonl(inputs.pairs.path, PairRow))
    _note_margins(config, pairs, say=ctx.progress.say)
    chat = load_format(inputs.start.path)
    heldout = [] if inputs.heldout is None else list(load_jsonl(inputs.heldout.path, PreferenceRow))
    measured = [preference_pair(row) for row in of_strengths(heldout, config.heldout_strengths)]
    return train_stage(
        "dpo",
        config=config,
        groups=ranked_groups(pairs, chat),
        eval_groups=ranked_groups(measured, chat),
        start=inputs.start,
        reference=inputs.reference,
        optimizer=next(iter(inputs.optimizer), None),
        ctx=ctx,
    )


def _check_reference(config: Settings, inputs: Inputs) -> None:
    if config.has_reference and inputs.reference is None:
        raise UserError(
            f"dpo.loss: {config.loss} compares with a reference model, and none is given: name one (reference), or set "
            "dpo.loss: simpo"
        )
    if not config.has_reference and inputs.reference is not None:
        raise UserError(
            f"dpo.loss: {config.loss} has no reference model, but {inputs.reference.path} is given as one: leave it "
            "out, or set another dpo.loss"
        )


def _note_margins(config: Settings, pairs: Sequence[PairRow], *, say: Callable[[str], None]) -> None:
    """Say how many pairs have no margin for want of what it goes by; a DataError where none has one."""
    if config.margin == "none" or not pairs:
        return
    column = "strength" if config.margin == "strength" else "reward_gap"
    without = [pair for pair in pairs if getattr(pair, column) is None]
    if len(without) == len(pairs):
        raise DataError(
            f"dpo.margin: {config.margin}: none of the {len(pairs)} pairs has a {column} (first: row {pairs[0].id}): "
            "name on_policy in pairs.sources, whose pairs have one, or set dpo.margin: none"
        )
    if without:
        say(
            f"  dpo.margin: {config.margin}: {len(without)} of {len(pairs)} pairs have no {column} (first: row "
            f"{without[0].id}), so their margin is 0"
        )


STAGE = Stage("train_dpo", Inputs, Outputs, settings, run)
