"""The reward of every candidate: the reward model's raw one, what reward functions add to it, and the gates it fails.

candidates --reward functions, a batch of whole prompts at a time--> extra_rewards --\\--> failed_gates
           --reward model, a prompt with its K candidates in one row--> reward ------+--> total_reward, less
             (or each member of an ensemble, and what it makes of their rewards)          a penalty on length

So are the round's preferences that are not people's: what a judge, a function or the simulated annotator picked, and
what people hardly preferred, becomes an SFT row by the same reward and gates as what was sampled now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.base import NonNegativeFloat
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import Ensemble, RewardFunction, ScoreConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, ModelError, UserError
from alignloop.pruning.items import is_peoples
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Strength, by_prompt
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.candidate_values import function_values
from alignloop.sampling.ensemble import combined, spread
from alignloop.sampling.reward_functions import load, require_columns
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.reward_models import MIN_MEMBERS, RewardModel, check_members, members_of, rewards_by_member
from alignloop.stages.train_sft import preferred

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup

SHIPPED = "alignloop.rewards"
PENALTY_TOKENS = 100
"""Tokens that cost `length_penalty` once."""
_NUM_DECODED = 256
"""Candidates whose ids are compared with their text: another tokenizer shows in the first."""


@dataclass(frozen=True)
class Inputs:
    candidates: Artifact
    reward_model: RewardModel
    """Several: the members of an ensemble."""
    preferences: Artifact | None = None
    """The round's batch, whose rows that are not people's are scored, too; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact
    preferences: tuple[Artifact, ...] = ()
    """The batch, with `chosen_reward` of what is not people's, by this reward model."""


class Settings(ScoreConfig):
    sources: dict[str, str]
    """Digest of the source of each reward function, by `module:function`."""
    strengths: tuple[Strength, ...]
    """Preferences that people chose at these strengths need no reward; those that train the reward model."""
    # In no fingerprint while one model scores.
    ensemble: Ensemble = Field("average_weights", exclude_if=lambda name: name == "average_weights")
    spread_penalty: NonNegativeFloat | None = Field(None, exclude_if=lambda penalty: penalty is None)


def settings(recipe: Recipe) -> Settings:
    """The source of its reward functions counts, too; raises UserError where one cannot be loaded."""
    names = [entry.function for entry in recipe.score.reward_functions]
    sources = {name: load(name).digest for name in names}
    return Settings(**dict(recipe.score), sources=sources, strengths=recipe.reward.strengths)


def check(facts: Facts) -> None:
    recipe, findings = facts.recipe, facts.findings
    with findings.collecting():
        unique(recipe.score.reward_functions)
    if recipe.score.has_ensemble:
        _check_ensemble(recipe, findings)
    for name in {entry.function: None for entry in recipe.score.reward_functions}:
        with findings.collecting():
            check_function(name, facts.rows.prompts)


def _check_ensemble(recipe: Recipe, findings: Findings) -> None:
    ensemble, variants = recipe.score.ensemble, recipe.reward.variants
    if len(variants) < MIN_MEMBERS:
        findings.problems.append(
            f"score.ensemble: {ensemble} is made of two reward.variants or more, and there "
            f"{'is one' if variants else 'are none'}: add some, for example reward.variants: [{{seed: 1}}, "
            "{seed: 2}, {seed: 3}], or set score.ensemble: average_weights"
        )
    elif len({variant.model_dump_json() for variant in variants}) < len(variants):
        findings.notes.append(
            f"score.ensemble: {ensemble}: some of reward.variants are the same training, whose rewards never differ: "
            "give each a seed of its own"
        )
    if ensemble != "mean" and not recipe.reward.center_rewards:
        findings.notes.append(
            f"score.ensemble: {ensemble} sets rewards of several models side by side, and ranking leaves the level of "
            "each open: reward.center_rewards (0.01) pulls them to one (docs/reward_ensembles.md)"
        )


def check_function(name: str, prompts: Sequence[PromptRow]) -> None:
    """Raises UserError where a function finds no prompt with its columns.

    One that ships is tried on the prompts with an answer that says nothing: what it cannot read in a column is found
    before anything is sampled. Others are the user's own, and may take long.
    """
    require_columns(name, [prompt.meta for prompt in prompts])
    if name.startswith(f"{SHIPPED}:"):
        function_values(name, [[_unanswered(prompt)] for prompt in prompts])


def _unanswered(prompt: PromptRow) -> CandidateRow:
    return CandidateRow(
        id=prompt.id,
        prompt_id=prompt.id,
        messages=prompt.messages,
        completion="-",
        completion_ids=[],
        finish_reason="stop",
        round=0,
        policy="",
        meta=prompt.meta,
    )


def rewarded(scored: Outputs, batch: Artifact) -> Artifact:
    """The batch with its rewards, unchanged where nothing of it was scored."""
    return scored.preferences[0] if scored.preferences else batch


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.packing.build import candidate_groups

    check_members(config, num_models=len(members_of(inputs.reward_model)))
    model = members_of(inputs.reward_model)[0].path
    rows = list(load_jsonl(inputs.candidates.path, CandidateRow))
    prompts = grouped(rows, where=str(inputs.candidates.path))
    chat = load_format(model)
    check_tokenizer(rows, chat, where=str(inputs.candidates.path), reward_model=str(model))
    batch = [] if inputs.preferences is None else list(load_jsonl(inputs.preferences.path, PreferenceRow))
    room = longest_sequence(text_config(model))
    targets = _targets(batch, chat, strengths=config.strengths, room=room)
    values: dict[str, dict[str, float]] = {}
    if config.reward_functions:
        # Functions first: what is wrong with them is known before the long part.
        with ctx.activity("reward functions"):
            names = [entry.function for entry in unique(config.reward_functions)]
            asked = [*prompts, *([row] for row, _ in targets)]
            values = {name: function_values(name, asked) for name in names}
            check_gates(prompts, values, config.reward_functions)
    ctx.engine.sleep()
    with ctx.activity("scoring"):
        rewards = rewards_by_member(
            [*candidate_groups(rows, chat), *(group for _, group in targets)],
            inputs.reward_model,
            rows_per_microbatch=config.rows_per_microbatch,
            dtype=config.dtype,
            progress=ctx.progress,
        )
    raw = {row.id: of_row for row, of_row in zip(chain(*prompts), chain(*rewards[: len(prompts)]), strict=True)}
    scored = [row_with_rewards(row, raw[row.id], values, config) for row in rows]
    of_targets = {
        row.id: row_with_rewards(row, of_row, values, config)
        for (row, _), (of_row,) in zip(targets, rewards[len(prompts) :], strict=True)
    }
    with_rewards = (_with_reward(row, of_targets.get(_target_id(row))) for row in batch)
    return Outputs(
        candidates=ctx.write_rows("candidates.jsonl", scored),
        preferences=() if inputs.preferences is None else (ctx.write_rows("preferences.jsonl", with_rewards),),
        counts={} if inputs.preferences is None else {"preferences_scored": len(targets)},
        metrics=_metrics(scored, config.reward_functions) | _mean_total(scored, config) | _mean_spread(scored),
    )


def _targets(
    batch: Sequence[PreferenceRow], chat: ChatFormat, *, strengths: Sequence[Strength], room: int | None
) -> list[tuple[CandidateRow, PromptGroup]]:
    """The best completion of each row of a batch that is not people's, as reward functions see it and in tokens; those
    over `room`, the reward model's longest sequence in tokens (None: unknown), are left out."""
    from alignloop.packing.build import sft_groups

    rows = [row for row in batch if not is_peoples(row, strengths=strengths)]
    groups = sft_groups([preferred(row) for row in rows], chat, train_on="last_assistant")
    return [
        (_as_candidate(row, group), group)
        for row, group in zip(rows, groups, strict=True)
        if room is None or len(group.prompt_ids) + len(group.completions[0].token_ids) <= room
    ]


def _target_id(row: PreferenceRow) -> str:
    return f"preference {row.id}"


def _with_reward(row: PreferenceRow, best: CandidateRow | None) -> PreferenceRow:
    """The preference with what its best completion is worth; None: nothing is known of that."""
    reward, gates = (None, []) if best is None else (best.total_reward, best.failed_gates)
    return row.model_copy(update={"chosen_reward": reward, "chosen_failed_gates": gates})


def _as_candidate(row: PreferenceRow, group: PromptGroup) -> CandidateRow:
    best = row.ranked[0]
    return CandidateRow(
        id=_target_id(row),
        prompt_id=_target_id(row),
        messages=row.messages,
        completion=best.text,
        completion_ids=list(group.completions[0].token_ids),
        finish_reason=best.finish_reason or "stop",
        round=0,
        policy="",
        meta=row.meta,
    )


def grouped(rows: Sequence[CandidateRow], *, where: str) -> list[list[CandidateRow]]:
    """The candidates of each prompt, prompts and candidates in file order.

    Raises:
        DataError: no candidate, two with one id, one without tokens, or two dialogs under one prompt id.
    """
    if not rows:
        raise DataError(f"{where}: holds no candidate to score: run the sample stage first")
    prompts = by_prompt(rows)
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{where}: two candidates have the id {row.id!r}: give each its own")
        if not row.completion_ids:
            raise DataError(f"{where}: candidate {row.id} has no completion_ids: there is no token to score")
        first = prompts[row.prompt_id][0]
        if first.messages != row.messages:
            raise DataError(
                f"{where}: candidates {first.id} and {row.id} have the prompt_id {row.prompt_id!r} but different "
                "messages: give each dialog a prompt_id of its own"
            )
        seen.add(row.id)
    return list(prompts.values())


def check_tokenizer(rows: Sequence[CandidateRow], chat: ChatFormat, *, where: str, reward_model: str) -> None:
    """Raises ModelError where the reward model's tokenizer is not the one the candidates were sampled with."""
    from alignloop.chat.sampled import ids_read_as

    for row in rows[:_NUM_DECODED]:
        if not ids_read_as(row.completion_ids, row.completion, chat):
            raise ModelError(
                f"{where}: candidate {row.id} was sampled with another tokenizer than that of the reward model "
                f"{reward_model}: its ids do not read as its text {row.completion[:60]!r} there. Score with a "
                "reward model trained from the same base"
            )


def unique(functions: Sequence[RewardFunction]) -> Sequence[RewardFunction]:
    """Raises UserError where a function is named twice: its values could be recorded only once."""
    names = [entry.function for entry in functions]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"score.reward_functions: {name} is named {names.count(name)} times: name it once, with the sum of the "
                "weights"
            )
    return functions


def check_gates(
    prompts: Sequence[Sequence[CandidateRow]],
    values: Mapping[str, Mapping[str, float]],
    functions: Sequence[RewardFunction],
) -> None:
    """Raises UserError where a gate knows a value of some candidates of a prompt and not of others: what it says
    nothing about would pass, and be picked before what it has seen to fail."""
    for name in (entry.function for entry in functions if entry.gate is not None):
        for group in prompts:
            unknown = [row for row in group if row.id not in values[name]]
            if unknown and len(unknown) < len(group):
                raise UserError(
                    f"reward function {name} returned None for candidate {unknown[0].id} and numbers for others of its "
                    f"prompt ({len(unknown)} of {len(group)} have none): a gate must know all of a prompt's "
                    "candidates, or none - return a number under the gate for what fails, or give it a weight in place "
                    "of the gate"
                )


def row_with_rewards(
    row: CandidateRow, rewards: Sequence[float], values: dict[str, dict[str, float]], config: ScoreConfig
) -> CandidateRow:
    """The candidate with all that is known of it, from its rewards by each member, or by the one model."""
    by_members: dict[str, Any] = {"member_rewards": [], "reward_spread": None}
    if config.has_ensemble:
        by_members = {"member_rewards": list(rewards), "reward_spread": spread(rewards)}
    reward = combined(rewards, by=config.ensemble, penalty=config.penalty)
    known = row.model_copy(update=by_members)
    return penalised(scored_row(known, reward, values, config.reward_functions), config)


def scored_row(
    row: CandidateRow, reward: float, values: dict[str, dict[str, float]], functions: Sequence[RewardFunction]
) -> CandidateRow:
    """The candidate with its reward, the functions' values, their weighted sum, and the gates it fails.

    Raises:
        UserError: the total is not a finite number.
    """
    extra = {name: found[row.id] for name, found in values.items() if row.id in found}
    known = [entry for entry in functions if entry.function in extra]
    failed = [entry.function for entry in known if entry.gate is not None and extra[entry.function] < entry.gate]
    total = reward + sum(entry.weight * extra[entry.function] for entry in known)
    if not math.isfinite(total):
        raise UserError(
            f"candidate {row.id}: the total reward is {total} (reward {reward:.4g}, values {extra}): lower the weights "
            "under score.reward_functions"
        )
    return row.model_copy(
        update={"reward": reward, "extra_rewards": extra, "total_reward": total, "failed_gates": failed}
    )


def penalised(row: CandidateRow, config: ScoreConfig) -> CandidateRow:
    """The candidate with `length_penalty` off its total reward."""
    if not config.length_penalty or row.total_reward is None:
        return row
    penalty = config.length_penalty * len(row.completion_ids) / PENALTY_TOKENS
    return row.model_copy(update={"total_reward": row.total_reward - penalty})


def _metrics(rows: Sequence[CandidateRow], functions: Sequence[RewardFunction]) -> dict[str, float]:
    rewards = [row.reward for row in rows if row.reward is not None]
    metrics = {"mean_reward": sum(rewards) / len(rewards)}
    if functions:
        totals = [row.total_reward for row in rows if row.total_reward is not None]
        metrics["mean_total_reward"] = sum(totals) / len(totals)
    for entry in functions:
        name = entry.function
        found = [row.extra_rewards[name] for row in rows if name in row.extra_rewards]
        if entry.gate is not None:
            metrics[f"fails/{name}"] = sum(name in row.failed_gates for row in rows) / len(rows)
        metrics[f"applies/{name}"] = len(found) / len(rows)
        if found:
            metrics[f"mean/{name}"] = sum(found) / len(found)
    return metrics


def _mean_total(rows: Sequence[CandidateRow], config: ScoreConfig) -> dict[str, float]:
    totals = [row.total_reward for row in rows if row.total_reward is not None]
    return {"mean_total_reward": sum(totals) / len(totals)} if config.length_penalty else {}


def _mean_spread(rows: Sequence[CandidateRow]) -> dict[str, float]:
    spreads = [row.reward_spread for row in rows if row.reward_spread is not None]
    return {"mean_spread": sum(spreads) / len(spreads)} if spreads else {}


STAGE = Stage("score", Inputs, Outputs, settings, run)
