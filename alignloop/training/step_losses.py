"""Objectives over the microbatches of an optimiser step.

Every loss is divided by the counts of the *whole step*, so that gradients do not depend on how the step was cut into
microbatches: the microbatch losses and metrics of a step add up to the step's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignloop.objectives.dpo import NllReduction, dpo_loss
from alignloop.objectives.reward import reward_loss
from alignloop.objectives.sft import sft_loss
from alignloop.packing.batch import RowBatch
from alignloop.packing.groups import PromptGroup

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class StepCounts:
    """What a step's losses are divided by.

    Attributes:
        num_groups: prompt groups of the step.
        num_target_tokens: trained tokens of all completions and prompts.
        num_chosen_tokens: tokens of the best completions.
    """

    num_groups: int
    num_target_tokens: int
    num_chosen_tokens: int


def count_step(groups: Sequence[PromptGroup]) -> StepCounts:
    """Counts of one step, from the groups alone: known before any microbatch is laid out."""
    in_prompts = sum(sum(group.prompt_loss_mask[1:]) for group in groups if group.prompt_loss_mask is not None)
    in_completions = sum(len(c.token_ids) for group in groups for c in group.completions)
    chosen = sum(len(group.completions[group.ranks.index(min(group.ranks))].token_ids) for group in groups)
    return StepCounts(num_groups=len(groups), num_target_tokens=in_prompts + in_completions, num_chosen_tokens=chosen)


class StepLoss(Protocol):
    """One objective."""

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        """Loss and metrics of one microbatch, as shares of the step.

        Args:
            output: [C] rewards or [T] logprobs.
            group_numbers: for each group of the step, as `batch.completion_group` numbers them, its number in the data.
        """


class RewardStep:
    """Ranked Bradley-Terry."""

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        return reward_loss(
            output, group_index=batch.completion_group, ranks=batch.ranks, num_groups=float(counts.num_groups)
        )


class SftStep:
    """Cross-entropy."""

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        return sft_loss(output, num_tokens=float(counts.num_target_tokens))


@dataclass(frozen=True)
class DpoStep:
    """DPO with its NLL term.

    Attributes:
        reference: per group of the data, the reference model's sums of its two completions, in the group's order.
    """

    reference: Sequence[tuple[float, ...]]
    beta: float
    nll_coefficient: float
    nll_reduction: NllReduction
    mask_formatting_tokens: bool

    def __call__(
        self, output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        chosen, rejected = pair_indices(batch)
        reference = self._reference_sums(batch, group_numbers)
        return dpo_loss(
            output,
            completion_index=batch.completion_index,
            formatting_mask=batch.formatting_mask,
            chosen=chosen,
            rejected=rejected,
            ref_chosen_logprobs=reference[chosen],
            ref_rejected_logprobs=reference[rejected],
            beta=self.beta,
            nll_coefficient=self.nll_coefficient,
            nll_reduction=self.nll_reduction,
            mask_formatting_tokens=self.mask_formatting_tokens,
            num_pairs=float(counts.num_groups),
            num_chosen_tokens=float(counts.num_chosen_tokens),
        )

    def _reference_sums(self, batch: RowBatch, group_numbers: Sequence[int]) -> Tensor:
        places = zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True)
        sums = [self.reference[group_numbers[group]][number] for group, number in places]
        return torch.tensor(sums, dtype=torch.float64, device=batch.ranks.device)


def pair_indices(batch: RowBatch) -> tuple[Tensor, Tensor]:
    """Completion indices of (chosen, rejected) of every pair, [N] each. Groups have two completions of unlike rank."""
    # Completions sorted by group, then rank: chosen and rejected alternate.
    keys = batch.completion_group * (int(batch.ranks.max()) + 1) + batch.ranks
    order = keys.argsort()
    return order[0::2], order[1::2]
