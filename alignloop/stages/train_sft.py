"""Supervised fine-tuning on the round's pruned rows (section 4.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import SftConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import SftRow
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    rows: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoints: tuple[Artifact, ...]
    log: Artifact


def run(config: SftConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    return fine_tune(config, inputs.start, list(load_jsonl(inputs.rows.path, SftRow)), ctx)


def fine_tune(config: SftConfig, start: Artifact, rows: Sequence[SftRow], ctx: StageContext) -> Outputs:
    """Cross-entropy on target tokens; the prompt is masked."""
    from alignloop.chat.load import load_format
    from alignloop.packing.build import sft_groups
    from alignloop.training.trainer import train

    groups = sft_groups(rows, load_format(start.path), train_on=config.train_on)
    ctx.engine.sleep()
    with ctx.activity("training"):
        result = train(
            "sft",
            groups=groups,
            eval_groups=[],
            checkpoint=start.path,
            reference=None,
            out_dir=ctx.dir,
            config=config,
            seed=ctx.seed,
            progress=ctx.progress,
        )
    dropped = len(result.dropped)
    return Outputs(
        checkpoints=tuple(Artifact.of(path) for path in result.checkpoints),
        log=Artifact.of(ctx.dir / "train_log.jsonl"),
        counts={"in": len(rows), "kept": len(rows) - dropped, "dropped": dropped, "dropped_by_length": dropped},
        metrics=result.metrics,
    )


STAGE = Stage("train_sft", Inputs, Outputs, run)
