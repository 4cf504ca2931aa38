"""The reward of every candidate: raw, never normalised per prompt."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import ScoreConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.records import CandidateRow
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    candidates: Artifact
    reward_model: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact


def run(config: ScoreConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import candidate_groups
    from alignloop.training.scoring import score_groups

    rows = list(load_jsonl(inputs.candidates.path, CandidateRow))
    groups = candidate_groups(rows, load_format(inputs.reward_model.path))
    ctx.engine.sleep()
    with ctx.activity("scoring"):
        rewards = score_groups(
            groups,
            reward_model=inputs.reward_model.path,
            rows_per_microbatch=config.rows_per_microbatch,
            dtype=config.dtype,
            progress=ctx.progress,
        )
    # Groups keep the order of the rows, whose candidates of a prompt are adjacent.
    flat = [reward for group in rewards for reward in group]
    scored = [row.model_copy(update={"reward": reward}) for row, reward in zip(rows, flat, strict=True)]
    dump_jsonl(ctx.dir / "candidates.jsonl", scored)
    return Outputs(
        candidates=Artifact.of(ctx.dir / "candidates.jsonl"),
        metrics={"mean_reward": sum(flat) / len(flat)},
    )


STAGE = Stage("score", Inputs, Outputs, run)
