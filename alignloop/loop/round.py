"""One round, in data order (The Llama 3 Herd of Models, section 4, figure 7).

preferences to date --> train_reward --> average --> reward model ------------+
prompts --> sample (K candidates, previous policy) --> score <----------------+
                                                         |
              +------------------------------------------+
              v                                          v
select --> prune --> train_sft --> average --> build_pairs --> train_dpo --> average --> evaluate --> measure
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.loop.house import RoundHouse
from alignloop.stages import (
    average,
    build_pairs,
    collect,
    evaluate,
    measure,
    prune,
    sample,
    score,
    select,
    train_dpo,
    train_reward,
    train_sft,
)


@dataclass(frozen=True)
class RoundStart:
    """What a round begins with; `loop` resolves `start_from` and `sample.policy` to these.

    Attributes:
        policy: checkpoint that samples.
        sft_start: checkpoint SFT starts from.
        reward_start: checkpoint the reward model starts from.
        preferences, heldout, prompts: the run's data, as ingested.
        batches: the preference batches of the rounds before, oldest first.
        scored: the last round's scored candidates; None in the first round.
        before: what its model is measured against: the base, the last round's model, the first reward model.
        outside: what the round is given beside: a file of preferences of its own, people's answers.
    """

    policy: Artifact
    sft_start: Artifact
    reward_start: Artifact
    preferences: Artifact
    heldout: Artifact
    prompts: Artifact
    batches: tuple[Artifact, ...]
    scored: Artifact | None
    before: measure.Before
    outside: collect.FromOutside = field(default_factory=collect.FromOutside)


@dataclass(frozen=True)
class RoundEnd:
    """What a round hands to the next."""

    policy: Artifact
    reward_model: Artifact
    batch: Artifact
    prompts: Artifact
    scored: Artifact
    evaluation: evaluate.Outputs
    measured: measure.Outputs


def run_round(house: RoundHouse, recipe: Recipe, start: RoundStart) -> RoundEnd:
    """Fourteen stages, each published before the next begins."""
    given = collect.inputs(
        recipe.collect_stage,
        start.preferences,
        start.scored,
        outside=start.outside,
        batches=start.batches,
        heldout=start.heldout,
        prompts=start.prompts,
    )
    collected = house.run(collect.STAGE, recipe.collect_stage, given)
    batches = (*start.batches, collected.preferences)
    prompts = collect.prompts_to_sample(collected, start.prompts)

    reward = house.run(
        train_reward.STAGE, recipe.reward, train_reward.Inputs(start.reward_start, batches, start.heldout)
    )
    reward_model = house.run(average.STAGE, recipe.averaging.reward, average.of(reward)).checkpoint

    sampled = house.run(sample.STAGE, recipe.sample_stage, sample.Inputs(start.policy, prompts))
    scored = house.run(
        score.STAGE, recipe.score_stage, score.Inputs(sampled.candidates, reward_model, collected.preferences)
    )
    selected = house.run(select.STAGE, recipe.select, select.Inputs(scored.candidates))
    unpruned = prune.inputs(
        recipe.prune_stage,
        selected=selected.selected,
        preferences=score.rewarded(scored, collected.preferences),
        policy=start.policy,
    )
    pruned = house.run(prune.STAGE, recipe.prune_stage, unpruned)

    sft = house.run(train_sft.STAGE, recipe.sft, train_sft.Inputs(start.sft_start, pruned.rows, start.heldout))
    sft_model = house.run(average.STAGE, recipe.averaging.sft, average.of(sft)).checkpoint

    window = batches[-recipe.pairs.data_window :]
    pairs = house.run(build_pairs.STAGE, recipe.pairs, build_pairs.Inputs(scored.candidates, window))
    dpo = house.run(
        train_dpo.STAGE,
        recipe.dpo_stage,
        train_dpo.Inputs(start=sft_model, reference=sft_model, pairs=pairs.pairs, heldout=start.heldout),
    )
    policy = house.run(average.STAGE, recipe.averaging.dpo, average.of(dpo)).checkpoint

    evaluation = house.run(evaluate.STAGE, recipe.evaluate_stage, evaluate.Inputs(policy))
    unmeasured = measure.inputs(
        recipe.measure_stage, start.before, policy=policy, reward_model=reward_model, heldout=start.heldout
    )
    measured = house.run(measure.STAGE, recipe.measure_stage, unmeasured)
    return RoundEnd(policy, reward_model, collected.preferences, prompts, scored.candidates, evaluation, measured)
