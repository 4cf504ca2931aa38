"""One round, in data order (The Llama 3 Herd of Models, section 4, figure 7).

preferences to date --> train_reward --> average --> reward model(s) ---------+
prompts --> sample (K candidates, previous policy) --> score <----------------+
                                                         |
              +------------------------------------------+
              v                                          v
select --> prune --> train_sft --> average --> build_pairs --> train_dpo --> average --> evaluate --> measure
             ^
demonstrations

With `policy.by: rloo` (arXiv 2402.14740) train_rloo takes the place of build_pairs and train_dpo.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.config.training import Reference
from alignloop.stages import (
    average,
    build_pairs,
    collect,
    evaluate,
    measure,
    prune,
    reward_models,
    sample,
    score,
    select,
    train_dpo,
    train_reward,
    train_rloo,
    train_sft,
    training,
)
from alignloop.stages.reward_models import RewardModel
from alignloop.stages.runner import StageRunner


@dataclass(frozen=True)
class RoundStart:
    """What a round begins with; `loop` resolves `start_from` and `sample.policy` to these.

    Attributes:
        policy: checkpoint that samples.
        other_policies: those whose answers are annotated beside the policy's (`collect.policies`).
        base: the base, which never changes.
        previous: the last policy that passed the gate; in round 1 the base.
        average: the moving average of the policies (`dpo.reference: ema`); in round 1 the base.
        reward_start: what a reward model is trained from.
        reward_model: the last round's, which is its average or, with `score.ensemble`, one a variant; None in the first
            round, which trains one.
        preferences, heldout, prompts: the run's data, as ingested.
        batches: the preference batches of the rounds before, oldest first.
        scored: the last round's scored candidates; None in the first round.
        other_candidates: what other models than its policy answered in the last round.
        before: what its model is measured against: the base, the last round's model, the first reward model.
        optimizer: DPO's, of the round whose policy is `previous` (`dpo.carry_optimizer`); empty: a new one.
        demonstrations: what people wrote to fine-tune on (`sft.data`), a file an entry.
        files: what people put beside the run for it: a file of preferences of its own, answers.
    """

    policy: Artifact
    base: Artifact
    previous: Artifact
    average: Artifact
    sft_start: Artifact
    reward_start: Artifact
    reward_model: RewardModel | None
    preferences: Artifact
    heldout: Artifact
    prompts: Artifact
    batches: tuple[Artifact, ...]
    scored: Artifact | None
    before: measure.Before
    optimizer: tuple[Artifact, ...] = ()
    demonstrations: tuple[Artifact, ...] = ()
    other_policies: tuple[Artifact, ...] = ()
    other_candidates: tuple[Artifact, ...] = ()
    files: collect.RoundFiles = field(default_factory=collect.RoundFiles)

    def to_collect(self, recipe: Recipe) -> collect.Inputs:
        return collect.inputs(
            recipe,
            self.preferences,
            self.scored,
            other_candidates=self.other_candidates,
            files=self.files,
            batches=self.batches,
            heldout=self.heldout,
            prompts=self.prompts,
        )

    def references(self, sft_model: Artifact) -> dict[Reference, Artifact]:
        """What the policy's training may be held to, by its name in the recipe."""
        return {"sft": sft_model, "base": self.base, "previous": self.previous, "ema": self.average}


@dataclass(frozen=True)
class RoundEnd:
    """What a round leaves; the next reward model may be trained from `reward_average`, `variants` are the models that
    its policy is the average of, where DPO had several. `evaluation` and `measured` are None in a round that has none
    by its schedule."""

    policy: Artifact
    average: Artifact
    reward_model: RewardModel
    reward_average: Artifact
    batch: Artifact
    prompts: Artifact
    scored: Artifact
    other_candidates: tuple[Artifact, ...]
    variants: tuple[Artifact, ...]
    evaluation: evaluate.Outputs | None
    measured: measure.Outputs | None
    optimizer: tuple[Artifact, ...]


def run_round(stages: StageRunner, start: RoundStart) -> RoundEnd:
    """Fourteen stages, each published before the next begins; in a semi-online round those that are due (`every`)."""
    recipe, number = stages.recipe, stages.number
    collected = stages.run(collect.STAGE, start.to_collect(recipe))
    batches = (*start.batches, collected.preferences)
    prompts = collect.prompts_to_sample(collected, start.prompts)

    reward_model, averaged = _reward_model(stages, start, batches)
    sampled = stages.run(sample.STAGE, sample.Inputs(start.policy, prompts, start.other_policies))
    scored = stages.run(score.STAGE, score.Inputs(sampled.candidates, reward_model, collected.preferences))
    preferences = score.rewarded(scored, collected.preferences)

    sft_model, sft_rows = start.previous, None
    if recipe.sft.is_due(number):
        selected = stages.run(select.STAGE, select.Inputs(scored.candidates))
        to_prune = prune.inputs(
            recipe, start.demonstrations, selected=selected.selected, preferences=preferences, policy=start.policy
        )
        sft_rows = stages.run(prune.STAGE, to_prune).rows
        sft = stages.run(train_sft.STAGE, train_sft.Inputs(start.sft_start, sft_rows, start.heldout))
        sft_model = stages.run(average.SFT, average.of(sft)).checkpoint

    references = start.references(sft_model)
    pairs: Artifact | None = None
    trained: training.Outputs
    if recipe.policy.by == "rloo":
        to_reinforce = train_rloo.inputs(recipe, sft_model, references, reward_model=reward_model, prompts=prompts)
        trained = stages.run(train_rloo.STAGE, to_reinforce)
    else:
        window = batches[-recipe.pairs.data_window :]
        pairs = stages.run(build_pairs.STAGE, build_pairs.inputs(recipe, scored.candidates, window)).pairs
        to_train = train_dpo.inputs(
            recipe, sft_model, references, pairs=pairs, heldout=start.heldout, optimizer=start.optimizer
        )
        trained = stages.run(train_dpo.STAGE, to_train)
    policy = stages.run(average.STAGES[recipe.policy.by], average.of(trained)).checkpoint
    moving = start.average
    if recipe.policy.by == "dpo" and recipe.dpo.reference == "ema":
        moving = stages.run(average.EMA, average.Inputs((start.average, policy))).checkpoint

    evaluation = stages.run_due(evaluate.STAGE, evaluate.Inputs(policy), is_due=recipe.evaluates(number))
    rows = measure.RoundRows(scored.candidates, collected.preferences, sft_rows, pairs)
    to_measure = measure.inputs(
        recipe, start.before, policy=policy, reward_model=reward_model, heldout=start.heldout, rows=rows
    )
    measured = stages.run_due(measure.STAGE, to_measure, is_due=recipe.measures(number))
    return RoundEnd(
        policy=policy,
        average=moving,
        reward_model=reward_model,
        reward_average=averaged,
        batch=collected.preferences,
        prompts=prompts,
        scored=scored.candidates,
        other_candidates=sampled.other_candidates,
        variants=train_dpo.last_of_variants(trained),
        evaluation=evaluation,
        measured=measured,
        optimizer=trained.optimizer,
    )


def _reward_model(
    stages: StageRunner, start: RoundStart, batches: tuple[Artifact, ...]
) -> tuple[RewardModel, Artifact]:
    """What scores, and what the next reward model may be trained from: a new one, or what the round began with."""
    if start.reward_model is not None and not stages.recipe.trains_reward(stages.number):
        return start.reward_model, start.reward_start
    trained = stages.run(train_reward.STAGE, train_reward.Inputs(start.reward_start, batches, start.heldout))
    averaged = stages.run(average.REWARD, average.of(trained)).checkpoint
    return reward_models.of_training(stages.recipe, trained, averaged=averaged), averaged
