"""What trains a round's policy, and RLOO, which may do it in DPO's place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignloop.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section
from alignloop.config.training import OptimizerConfig, Variant

PolicyBy = Literal["dpo", "rloo"]
ClipRange = Annotated[float, Field(gt=0.0, lt=1.0)]


class PolicyConfig(Section):
    """How the policy is trained after SFT."""

    by: PolicyBy = "dpo"
    """`dpo`: on pairs (4.1.4). `rloo`: on completions that it samples as it trains, by their rewards; no pairs are
    built then (arXiv 2402.14740, docs/rloo.md)."""


class RlooConfig(OptimizerConfig):
    """REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740): K completions a prompt from the warm engine, rewards
    by the round's reward model and `score.reward_functions`, a swap of weights after each batch. Not in the paper."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate. TRL's default for RLOO."""
    batch_groups: PositiveInt = 64
    """Prompts per optimiser step at most, each with its K completions."""
    num_candidates: Annotated[int, Field(ge=2)] = 4
    """K: completions a prompt; each one's baseline is the mean reward of the others. The paper of RLOO: 2 and 4."""
    kl_coefficient: NonNegativeFloat = 0.05
    """Taken from a completion's reward for every nat that it is more probable under the policy than under the
    reference. TRL's default (its `beta`); 0: no reference model is loaded."""
    reference: Literal["sft", "base", "previous"] = "sft"
    """What the KL is measured to: the model that the stage starts from, the base, or the last round's policy that
    passed the gate."""
    reward_model: bool = True
    """False: rewards are those of `score.reward_functions` alone."""
    failure_penalty: NonNegativeFloat = 1.0
    """A completion that was cut off at its token limit, has no text or fails a gate of `score.reward_functions` is
    worth the least reward of its prompt's completions, less this. Ours; the best of K passes such ones over, too."""
    num_minibatches: PositiveInt = 1
    """Optimiser steps of a pass over what was sampled together, which is so many times `batch_groups` prompts; TRL's
    `steps_per_generation`."""
    num_iterations: PositiveInt = 1
    """Passes over what was sampled together; TRL has it by the same name."""
    clip: ClipRange = 0.2
    """How far the ratio of a completion's probability to that when it was sampled may move and still count (PPO,
    1707.06347; TRL's `epsilon`). It matters from the second step on what was sampled together."""
    clip_high: PositiveFloat | None = None
    """The same upwards (TRL's `epsilon_high`); None: `clip`."""
    normalize_advantages: bool = False
    """Divide advantages by their standard deviation over what was sampled together; TRL has it by the same name."""
    save_every_steps: PositiveInt = 20
    """Resume points, after the batch that reaches so many steps. What was sampled is kept beside, batch by batch."""
    variants: Annotated[tuple[Variant, ...], Field(max_length=0)] = ()
    """RLOO trains once: it has no variants."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> RlooConfig:
        if self.clip_high is not None and self.clip_high < self.clip:
            raise ValueError(f"clip_high ({self.clip_high}) is under clip ({self.clip}): leave it out, or raise it")
        return self
