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
from alignloop.stages.runner import StageRunner


@dataclass(frozen=True)
class RoundStart:
    """What a round begins with; `loop` resolves `start_from` and `sample.policy` to these.

    Attributes:
        policy: checkpoint that samples.
        preferences, heldout, prompts: the run's data, as ingested.
        batches: the preference batches of the rounds before, oldest first.
        scored: the last round's scored candidates; None in the first round.
        before: what its model is measured against: the base, the last round's model, the first reward model.
        files: what people put beside the run for it: a file of preferences of its own, answers.
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
    files: collect.RoundFiles = field(default_factory=collect.RoundFiles)


@dataclass(frozen=True)
class RoundEnd:
    policy: Artifact
    reward_model: Artifact
    batch: Artifact
    prompts: Artifact
    scored: Artifact
    evaluation: evaluate.Outputs
    measured: measure.Outputs


def run_round(stages: StageRunner, start: RoundStart) -> RoundEnd:
    """Fourteen stages, each published before the next begins."""
    recipe = stages.recipe
    to_collect = collect.inputs(
        recipe,
        start.preferences,
        start.scored,
        files=start.files,
        batches=start.batches,
        heldout=start.heldout,
        prompts=start.prompts,
    )
    collected = stages.run(collect.STAGE, to_collect)
    batches = (*start.batches, collected.preferences)
    prompts = collect.prompts_to_sample(collected, start.prompts)

    reward = stages.run(train_reward.STAGE, train_reward.Inputs(start.reward_start, batches, start.heldout))
    reward_model = stages.run(average.REWARD, average.of(reward)).checkpoint

    sampled = stages.run(sample.STAGE, sample.Inputs(start.policy, prompts))
    scored = stages.run(score.STAGE, score.Inputs(sampled.candidates, reward_model, collected.preferences))
    selected = stages.run(select.STAGE, select.Inputs(scored.candidates))
    preferences = score.rewarded(scored, collected.preferences)
    to_prune = prune.inputs(recipe, selected=selected.selected, preferences=preferences, policy=start.policy)
    pruned = stages.run(prune.STAGE, to_prune)

    sft = stages.run(train_sft.STAGE, train_sft.Inputs(start.sft_start, pruned.rows, start.heldout))
    sft_model = stages.run(average.SFT, average.of(sft)).checkpoint

    window = batches[-recipe.pairs.data_window :]
    pairs = stages.run(build_pairs.STAGE, build_pairs.Inputs(scored.candidates, window))
    dpo = stages.run(
        train_dpo.STAGE,
        train_dpo.inputs(recipe, model=sft_model, pairs=pairs.pairs, heldout=start.heldout),
    )
    policy = stages.run(average.DPO, average.of(dpo)).checkpoint

    evaluation = stages.run(evaluate.STAGE, evaluate.Inputs(policy))
    rows = measure.RoundRows(scored.candidates, collected.preferences, pruned.rows, pairs.pairs)
    to_measure = measure.inputs(
        recipe, start.before, policy=policy, reward_model=reward_model, heldout=start.heldout, rows=rows
    )
    measured = stages.run(measure.STAGE, to_measure)
    return RoundEnd(policy, reward_model, collected.preferences, prompts, scored.candidates, evaluation, measured)
