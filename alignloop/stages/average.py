"""Model averaging over a stage's checkpoints (section 4.1.5); the identity on one."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    checkpoints: tuple[Artifact, ...]


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact


def run(config: None, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.training.average import average_checkpoints

    with ctx.activity("averaging"):
        path = average_checkpoints([a.path for a in inputs.checkpoints], out_dir=ctx.dir / "checkpoint", weights=None)
    return Outputs(checkpoint=Artifact.of(path), counts={"checkpoints": len(inputs.checkpoints)})


STAGE = Stage("average", Inputs, Outputs, run)
