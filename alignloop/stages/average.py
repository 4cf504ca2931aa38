"""Model averaging over a stage's checkpoints, of all its variants (section 4.1.5); the identity on one."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact, write_text
from alignloop.config.training import AverageConfig
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages import training


@dataclass(frozen=True)
class Inputs:
    checkpoints: tuple[Artifact, ...]
    summary: Artifact | None = None
    """`train_summary.json` of the stage that trained them: what `choose` goes by. None: they are put together by
    hand."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoint: Artifact
    averaged: Artifact
    """`AverageSummary`: every checkpoint with its weight in the mean."""


def of(trained: training.Outputs) -> Inputs:
    """The checkpoints of a training stage."""
    return Inputs(trained.checkpoints, trained.summary)


def run(config: AverageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.training.average import average_checkpoints, shares_of
    from alignloop.training.summary import AveragedCheckpoint, AverageSummary, entries_of, read_summary

    summary = None if inputs.summary is None else read_summary(inputs.summary.path)
    entries = entries_of(inputs.checkpoints, summary)
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
        averaged=Artifact.of(ctx.dir / "averaged.json"),
        counts={"checkpoints": len(inputs.checkpoints), "averaged": len(used)},
    )


STAGE = Stage("average", Inputs, Outputs, run)
