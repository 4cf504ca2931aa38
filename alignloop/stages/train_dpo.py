"""Direct preference optimisation with masked formatting tokens and an NLL term (section 4.1.4)."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import DpoConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import PairRow
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    reference: Artifact
    """The SFT model of the same round."""
    pairs: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoints: tuple[Artifact, ...]
    log: Artifact


def run(config: DpoConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import pair_groups
    from alignloop.training.trainer import train

    rows = list(load_jsonl(inputs.pairs.path, PairRow))
    groups = pair_groups(rows, load_format(inputs.start.path))
    ctx.engine.sleep()
    with ctx.activity("training"):
        result = train(
            "dpo",
            groups=groups,
            eval_groups=[],
            checkpoint=inputs.start.path,
            reference=inputs.reference.path,
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


STAGE = Stage("train_dpo", Inputs, Outputs, run)
