"""The best of K candidates by reward, with a matched random pick kept for the report."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact, derive_seed
from alignloop.config.recipe import SelectConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import DataError
from alignloop.records import CandidateRow, SelectedRow
from alignloop.selection.best_of_k import pass_rate, pass_threshold, pick_best, pick_random
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    candidates: Artifact
    """Scored."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    selected: Artifact


def run(config: SelectConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = list(load_jsonl(inputs.candidates.path, CandidateRow))
    threshold = pass_threshold([reward_of(row) for row in rows], quantile=config.pass_quantile)
    selected = [
        best_of(candidates, threshold=threshold, seed=derive_seed(ctx.seed, prompt_id))
        for prompt_id, candidates in by_prompt(rows).items()
    ]
    dump_jsonl(ctx.dir / "selected.jsonl", selected)
    return Outputs(
        selected=Artifact.of(ctx.dir / "selected.jsonl"),
        counts={"in": len(rows), "kept": len(selected), "dropped": len(rows) - len(selected)},
        metrics={
            "mean_reward_random": sum(row.random_reward for row in selected) / len(selected),
            "mean_reward_best": sum(row.reward for row in selected) / len(selected),
            "pass_threshold": threshold,
        },
    )


def best_of(candidates: list[CandidateRow], *, threshold: float, seed: int) -> SelectedRow:
    """The row of one prompt."""
    rewards = [reward_of(row) for row in candidates]
    truncated = [row.finish_reason == "length" for row in candidates]
    best = candidates[pick_best(rewards, truncated=truncated)]
    return SelectedRow(
        id=best.id,
        prompt_id=best.prompt_id,
        messages=best.messages,
        completion=best.completion,
        finish_reason=best.finish_reason,
        reward=reward_of(best),
        random_reward=rewards[pick_random(truncated=truncated, seed=seed)],
        rewards=rewards,
        pass_rate=pass_rate(rewards, threshold=threshold),
        round=best.round,
        policy=best.policy,
        meta=best.meta,
    )


def by_prompt(rows: list[CandidateRow]) -> dict[str, list[CandidateRow]]:
    """Candidates of each prompt, in file order."""
    grouped: dict[str, list[CandidateRow]] = {}
    for row in rows:
        grouped.setdefault(row.prompt_id, []).append(row)
    return grouped


def reward_of(row: CandidateRow) -> float:
    """The reward of a scored candidate."""
    if row.reward is None:
        raise DataError(f"candidate {row.id} has no reward: run the score stage on the file first")
    return row.reward


STAGE = Stage("select", Inputs, Outputs, run)
