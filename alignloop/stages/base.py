"""The base model, made ready: chat template, special tokens, an eos that stops."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Section
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


class Config(Section):
    """What `base` is fingerprinted by."""

    chat_template: str | None


@dataclass(frozen=True)
class Inputs:
    base: str | Artifact
    """A Hugging Face directory, or a hub id."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact
    """`metrics["had_template"]` is 1 where the base brought its own chat template."""


def run(config: Config, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.training.start import prepare_base

    base = str(inputs.base.path) if isinstance(inputs.base, Artifact) else inputs.base
    prepared = prepare_base(base, chat_template=config.chat_template, out_dir=ctx.dir / "checkpoint")
    return Outputs(
        checkpoint=Artifact.of(prepared.path),
        metrics={"had_template": float(prepared.had_template)},
    )


STAGE = Stage("base", Inputs, Outputs, run)
