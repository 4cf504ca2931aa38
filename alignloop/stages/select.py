"""The best of K candidates by reward, with a matched random pick kept for the report, or that pick in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignloop.artifacts import Artifact, derive_seed
from alignloop.chat.reasoning import has_answer
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import Pick, SelectConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError
from alignloop.records import CandidateRow, SelectedRow, by_prompt
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.best_of_k import pass_rate, pass_threshold, pick_best, pick_random

MANY_TRUNCATED = 0.1
"""Share of prompts without a finished candidate above which a line is printed; it is always in the metrics."""


@dataclass(frozen=True)
class Inputs:
    candidates: Artifact
    """Scored."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    selected: Artifact


def settings(recipe: Recipe) -> SelectConfig:
    return recipe.select


def run(config: SelectConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = list(load_jsonl(inputs.candidates.path, CandidateRow))
    if not rows:
        raise DataError(f"{inputs.candidates.path}: holds no candidate to select from: run the sample stage first")
    prompts = by_prompt(rows)
    threshold, rates = pass_rates(prompts, config)
    selected = [
        pick_of(candidates, pick=config.pick, pass_rate=rates[prompt_id], seed=derive_seed(ctx.seed, prompt_id))
        for prompt_id, candidates in prompts.items()
    ]
    cut = sum(row.finish_reason == "length" for row in selected)
    if cut > MANY_TRUNCATED * len(selected):
        ctx.progress.say(
            f"  {cut} of {len(selected)} prompts have no candidate that ends within sample.max_tokens: their best "
            "was cut off"
        )
    gated = sum(bool(row.failed_gates) for row in selected)
    if gated:
        ctx.progress.say(
            f"  {gated} of {len(selected)} prompts have no candidate that passes the gates of score.reward_functions: "
            "they train nothing"
        )
    return Outputs(
        selected=ctx.write_rows("selected.jsonl", selected),
        counts={
            "in": len(rows),
            "kept": len(selected),
            "dropped": len(rows) - len(selected),
            **passed_over(rows),
        },
        metrics={
            "mean_reward_random": sum(row.random_reward for row in selected) / len(selected),
            "mean_reward_best": sum(reward_of(best_of(candidates)) for candidates in prompts.values()) / len(selected),
            "pass_threshold": threshold,
            "only_truncated": cut / len(selected),
            **({"none_passes_gates": gated / len(selected)} if gated else {}),
        },
    )


def passed_over(rows: Sequence[CandidateRow]) -> dict[str, int]:
    """How many candidates a finished one with text wins over, whatever their reward: `truncated`, `empty`."""
    truncated, empty = endings(rows)
    return {"truncated": sum(truncated), "empty": sum(empty)}


def endings(candidates: Sequence[CandidateRow]) -> tuple[list[bool], list[bool]]:
    """Which of the candidates are truncated, and which have no text."""
    return [row.finish_reason == "length" for row in candidates], [not has_answer(row.completion) for row in candidates]


def num_failed(candidates: Sequence[CandidateRow]) -> list[int]:
    """How many gates each of the candidates fails."""
    return [len(row.failed_gates) for row in candidates]


def best_of(candidates: Sequence[CandidateRow]) -> CandidateRow:
    """The best of a prompt's candidates by gates and reward, as `pick_best` knows it."""
    truncated, empty = endings(candidates)
    rewards = [reward_of(row) for row in candidates]
    return candidates[pick_best(rewards, truncated=truncated, empty=empty, failed=num_failed(candidates))]


def pass_rates(
    prompts: Mapping[str, Sequence[CandidateRow]], config: SelectConfig
) -> tuple[float, dict[str, float | None]]:
    """What a candidate must reach to pass, and each prompt's share of candidates that do.

    By reward: a quantile of all rewards, and no gate may be failed. By a function: its value, among the candidates that
    it applies to; None where it applies to none.
    """
    if config.pass_by == "reward":
        threshold = pass_threshold(
            [reward_of(row) for rows in prompts.values() for row in rows], quantile=config.pass_quantile
        )
        return threshold, {
            name: pass_rate([reward_of(row) for row in rows], threshold=threshold, failed=num_failed(rows))
            for name, rows in prompts.items()
        }
    values = {
        name: [row.extra_rewards[config.pass_by] for row in rows if config.pass_by in row.extra_rewards]
        for name, rows in prompts.items()
    }
    return config.pass_value, {
        name: pass_rate(found, threshold=config.pass_value) if found else None for name, found in values.items()
    }


def pick_of(
    candidates: Sequence[CandidateRow], *, pass_rate: float | None, seed: int, pick: Pick = "best"
) -> SelectedRow:
    """A prompt's row, `random` being the pick whose reward is the yardstick of the best's."""
    rewards = [reward_of(row) for row in candidates]
    truncated, empty = endings(candidates)
    random = candidates[pick_random(truncated=truncated, empty=empty, failed=num_failed(candidates), seed=seed)]
    picked = random if pick == "random" else best_of(candidates)
    return SelectedRow(
        id=picked.id,
        prompt_id=picked.prompt_id,
        messages=picked.messages,
        completion=picked.completion,
        completion_ids=picked.completion_ids or None,
        finish_reason=picked.finish_reason,
        reward=reward_of(picked),
        random_reward=reward_of(random),
        rewards=rewards,
        pass_rate=pass_rate,
        round=picked.round,
        policy=picked.policy,
        failed_gates=picked.failed_gates,
        meta=picked.meta,
    )


def reward_of(row: CandidateRow) -> float:
    """The total reward, or the reward model's where a file has no total."""
    reward = row.reward if row.total_reward is None else row.total_reward
    if reward is None:
        raise DataError(f"candidate {row.id} has no reward: run the score stage on the file first")
    if not math.isfinite(reward):
        raise DataError(f"candidate {row.id} has the reward {reward}: finite numbers are wanted; score the file again")
    return reward


STAGE = Stage("select", Inputs, Outputs, settings, run)
