"""What the trainer has to know of each objective: which groups it takes, which model it trains, its loss on a step.

Losses are divided by the counts of the *whole step*, so that gradients do not depend on how the step was cut into
microbatches: the microbatch losses and metrics of a step add up to the step's.

Torch-free until something trains: `inspect` asks whether a row would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignloop.config.rloo import RlooConfig
from alignloop.config.training import DpoConfig, ObjectiveName, OptimizerConfig, RewardConfig
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.training.job import Dropped, TrainJob

if TYPE_CHECKING:
    from torch import Tensor

    from alignloop.packing.batch import RowBatch
    from alignloop.training.processes import Processes


@dataclass(frozen=True)
class StepCounts:
    """What a step's losses are divided by.

    Trained tokens of all completions and prompts are `num_target_tokens`, those of the best completions
    `num_chosen_tokens`.
    """

    num_groups: int
    num_completions: int
    num_target_tokens: int
    num_chosen_tokens: int


def count_step(groups: Sequence[PromptGroup]) -> StepCounts:
    """From the groups alone: known before any microbatch is laid out."""
    in_prompts = sum(sum(group.prompt_loss_mask[1:]) for group in groups if group.prompt_loss_mask is not None)
    in_completions = sum(len(c.token_ids) for group in groups for c in group.completions)
    chosen = sum(len(group.completions[group.ranks.index(min(group.ranks))].token_ids) for group in groups)
    return StepCounts(
        num_groups=len(groups),
        num_completions=sum(len(group.completions) for group in groups),
        num_target_tokens=in_prompts + in_completions,
        num_chosen_tokens=chosen,
    )


class StepLoss(Protocol):
    """Loss and metrics of one microbatch, as shares of the step."""

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`output` is [C] rewards or [T] logprobs; `group_numbers` has each group's number in the data, in the
        step's order."""


@dataclass(frozen=True)
class Objective:
    """One objective.

    Attributes:
        unfit: why it cannot train on a group; None where it can.
        losses: of the training groups and of the held-out ones; what the losses need of all groups is computed here.
        scores: a reward model is trained, and the loss is of [C] rewards; otherwise a policy, and the loss is of the
            [T] logprobs of the trained tokens.
    """

    unfit: Callable[[PromptGroup], str | None]
    losses: Callable[[TrainJob, Processes], tuple[StepLoss, StepLoss]]
    scores: bool = False


# ---- the objectives -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardStep:
    """Ranked Bradley-Terry; `margins` holds, per group of the data, those of its completions; None: there are none."""

    margins: Sequence[tuple[float, ...]] | None = None
    center_rewards: float = 0.0

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from alignloop.objectives.reward import reward_loss

        margins = None
        if self.margins is not None:
            of_each = [self.margins[group_numbers[group]][number] for group, number in batch.owners()]
            margins = torch.tensor(of_each, device=output.device)
        return reward_loss(
            output,
            group_index=batch.completion_group,
            ranks=batch.ranks,
            num_groups=float(counts.num_groups),
            margins=margins,
            center_rewards=self.center_rewards,
        )


def _reward_losses(job: TrainJob, processes: Processes) -> tuple[StepLoss, StepLoss]:
    from alignloop.objectives.reward import margins_of

    assert isinstance(job.config, RewardConfig)
    margin, center = job.config.margin, job.config.center_rewards
    if margin == 0.0:
        return RewardStep(center_rewards=center), RewardStep(center_rewards=center)
    train, held_out = (
        [margins_of(group.ranks, strength=group.strength, margin=margin) for group in groups]
        for groups in (job.groups, job.eval_groups)
    )
    return RewardStep(train, center), RewardStep(held_out, center)


def sft_step(
    output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy."""
    from alignloop.objectives.sft import sft_loss

    return sft_loss(output, num_tokens=float(counts.num_target_tokens))


@dataclass(frozen=True)
class DpoStep:
    """DPO with its NLL term.

    `reference` holds, per group of the data, the reference model's sums of its two completions, in the group's order;
    None for a loss without a reference. `margins` holds each group's; None: there are none.
    """

    reference: Sequence[tuple[float, ...]] | None
    config: DpoConfig
    margins: Sequence[float] | None = None

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from alignloop.objectives.dpo import dpo_loss

        # Completions sorted by group, then rank: chosen and rejected alternate.
        order = (batch.completion_group * (int(batch.ranks.max()) + 1) + batch.ranks).argsort()
        chosen, rejected = order[0::2], order[1::2]
        reference = margins = None
        if self.reference is not None:
            sums = [self.reference[group_numbers[group]][number] for group, number in batch.owners()]
            reference = torch.tensor(sums, dtype=torch.float64, device=batch.ranks.device)
        if self.margins is not None:
            of_each = [self.margins[group_numbers[group]] for group, _ in batch.owners()]
            margins = torch.tensor(of_each, dtype=torch.float32, device=batch.ranks.device)[chosen]
        return dpo_loss(
            output,
            completion_index=batch.completion_index,
            formatting_mask=batch.formatting_mask,
            chosen=chosen,
            rejected=rejected,
            ref_chosen_logprobs=None if reference is None else reference[chosen],
            ref_rejected_logprobs=None if reference is None else reference[rejected],
            loss=self.config.loss,
            beta=self.config.beta,
            gamma=self.config.gamma or 0.0,
            label_smoothing=self.config.label_smoothing or 0.0,
            margins=margins,
            nll_coefficient=self.config.nll_coefficient,
            nll_reduction=self.config.nll_reduction,
            mask_formatting_tokens=self.config.mask_formatting_tokens,
            num_pairs=float(counts.num_groups),
            num_chosen_tokens=float(counts.num_chosen_tokens),
        )


def _dpo_losses(job: TrainJob, processes: Processes) -> tuple[StepLoss, StepLoss]:
    from alignloop.training.reference import reference_sums_of

    config, num_train = job.config, len(job.groups)
    assert isinstance(config, DpoConfig)
    sums = reference_sums_of(job, config, processes=processes) if config.has_reference else None
    train, held_out = (None, None) if sums is None else (sums[:num_train], sums[num_train:])
    return (
        DpoStep(train, config, dpo_margins(job.groups, config)),
        DpoStep(held_out, config, dpo_margins(job.eval_groups, config)),
    )


def dpo_margins(groups: Sequence[PromptGroup], config: DpoConfig) -> list[float] | None:
    """Each pair's margin, 0 where nothing is known of it; None where the config has none."""
    if config.margin == "none":
        return None
    scale = config.margin_scale or 0.0
    if config.margin == "reward":
        return [scale * (group.reward_gap or 0.0) for group in groups]
    from alignloop.objectives.reward import margins_of

    # A pair has one margin, the chosen completion's.
    return [max(margins_of(group.ranks, strength=group.strength, margin=scale)) for group in groups]


def dpo_at_reference(config: OptimizerConfig, groups: Sequence[PromptGroup]) -> float | None:
    """The DPO term of a step on these groups where policy and reference are the same model; None without a
    reference."""
    from alignloop.objectives.dpo import loss_at_reference

    assert isinstance(config, DpoConfig)
    return loss_at_reference(config.loss, beta=config.beta, margins=dpo_margins(groups, config))


@dataclass(frozen=True)
class RlooStep:
    """RLOO. Per group of the data, in the group's order: the sums of its completions under the policy that sampled
    them, and their advantages; both change with every batch that is sampled."""

    config: RlooConfig
    old_logprobs: Sequence[tuple[float, ...]] = ()
    advantages: Sequence[tuple[float, ...]] = ()

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from alignloop.objectives.rloo import rloo_loss

        owners = [(group_numbers[group], number) for group, number in batch.owners()]
        old, advantages = (
            torch.tensor([values[group][number] for group, number in owners], dtype=torch.float64)
            for values in (self.old_logprobs, self.advantages)
        )
        return rloo_loss(
            output,
            completion_index=batch.completion_index,
            old_logprobs=old.to(output.device),
            advantages=advantages.float().to(output.device),
            clip=self.config.clip,
            clip_high=self.config.clip_high,
            num_completions=float(counts.num_completions),
        )


def _rloo_losses(job: TrainJob, processes: Processes) -> tuple[StepLoss, StepLoss]:
    assert isinstance(job.config, RlooConfig)
    return RlooStep(job.config), RlooStep(job.config)


def _unfit_for_reward(group: PromptGroup) -> str | None:
    if len(group.completions) < 2:
        return "it has one ranked completion: a reward model learns from two or more"
    if len(set(group.ranks)) < 2:
        return "all its completions have the same rank: there is nothing to compare"
    return None


def _unfit_for_sft(group: PromptGroup) -> str | None:
    bare = [number for number, completion in enumerate(group.completions) if all(completion.formatting_mask)]
    return f"completion {bare[0]} has formatting tokens only: its text comes to no token" if bare else None


def _unfit_for_dpo(group: PromptGroup) -> str | None:
    if (reason := _unfit_for_sft(group)) is not None:
        return reason
    if len(group.completions) != 2 or len(set(group.ranks)) != 2:
        return f"DPO needs one chosen and one rejected completion, found ranks {list(group.ranks)}"
    return None


OBJECTIVES: Mapping[ObjectiveName, Objective] = {
    "reward": Objective(_unfit_for_reward, _reward_losses, scores=True),
    "sft": Objective(_unfit_for_sft, lambda job, processes: (sft_step, sft_step)),
    "dpo": Objective(_unfit_for_dpo, _dpo_losses),
    "rloo": Objective(lambda group: None, _rloo_losses),
}


# ---- which groups train ---------------------------------------------------------------------------------------------


def screen(
    groups: Sequence[PromptGroup], *, objective: ObjectiveName, max_length: int, isolate: bool = True
) -> tuple[list[PromptGroup], Dropped]:
    """Groups that train, and the others with their reasons: `in == kept + dropped`; none is cut. For `isolate` see
    `drop_reason`.

    Raises:
        TrainingError: nothing is left.
    """
    limits: dict[str, Any] = {"objective": objective, "max_length": max_length, "isolate": isolate}
    reasons = [(group, drop_reason(group, **limits)) for group in groups]
    kept = [group for group, reason in reasons if reason is None]
    dropped = tuple((group.id, reason) for group, reason in reasons if reason is not None)
    if kept:
        return kept, dropped
    if not dropped:
        raise TrainingError(f"{objective}: there is no row to train on: the stage was given none")
    row, reason = dropped[0]
    raise TrainingError(
        f"{objective}: no row is left to train on: all {len(dropped)} were dropped. The first, {row}: {reason}"
    )


def drop_reason(group: PromptGroup, *, objective: ObjectiveName, max_length: int, isolate: bool = True) -> str | None:
    """Why the objective cannot train on a group; None where it can. Without `isolate` its completions are one sequence,
    which may have `max_length` tokens."""
    if group.longest > max_length:
        return f"prompt and longest completion have {group.longest} tokens, max_length is {max_length}"
    if not isolate and group.num_tokens > max_length:
        return f"prompt and all completions in one row have {group.num_tokens} tokens, max_length is {max_length}"
    for number, completion in enumerate(group.completions):
        if not completion.token_ids:
            return f"completion {number} has no token to train on"
    return OBJECTIVES[objective].unfit(group)
