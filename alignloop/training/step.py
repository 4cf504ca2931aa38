"""One optimiser step: gradients from all its microbatches, over all processes, then the update.

Every loss is divided by the counts of the *whole step*, so that gradients do not depend on how the step was cut into
microbatches: the microbatch losses and metrics of a step add up to the step's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignloop.config.training import DpoConfig
from alignloop.errors import TrainingError
from alignloop.objectives.dpo import dpo_loss
from alignloop.objectives.reward import reward_loss
from alignloop.objectives.sft import sft_loss
from alignloop.packing.batch import RowBatch
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.training.job import TrainJob
from alignloop.training.processes import Processes, merged_sums, without_sync
from alignloop.training.rows import TRAINING_REMEDY, RowRunner, outputs_of, shared_microbatches, stepping_memory

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class StepCounts:
    """What a step's losses are divided by.

    Attributes:
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


def reward_step(
    output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
) -> tuple[Tensor, Metrics]:
    """Ranked Bradley-Terry."""
    return reward_loss(
        output, group_index=batch.completion_group, ranks=batch.ranks, num_groups=float(counts.num_groups)
    )


def sft_step(
    output: Tensor, *, batch: RowBatch, counts: StepCounts, group_numbers: Sequence[int]
) -> tuple[Tensor, Metrics]:
    """Cross-entropy."""
    return sft_loss(output, num_tokens=float(counts.num_target_tokens))


@dataclass(frozen=True)
class DpoStep:
    """DPO with its NLL term.

    Attributes:
        reference: per group of the data, the reference model's sums of its two completions, in the group's order.
    """

    reference: Sequence[tuple[float, ...]]
    config: DpoConfig

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
            beta=self.config.beta,
            nll_coefficient=self.config.nll_coefficient,
            nll_reduction=self.config.nll_reduction,
            mask_formatting_tokens=self.config.mask_formatting_tokens,
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


SHOWN_ROWS = 20


@dataclass(frozen=True)
class StepResult:
    """What a step showed; the same in every process.

    Attributes:
        metrics: the objective's.
        grad_norm: before clipping.
        num_tokens: of the step's rows, as packed; held-out rows are not among them.
    """

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    tokens_per_second: float
    num_tokens: int


@dataclass(frozen=True)
class Trainee:
    """The model while it trains, and what trains it.

    Attributes:
        module: as `wrapped` over the processes.
    """

    job: TrainJob
    processes: Processes
    module: nn.Module
    runner: RowRunner
    optimizer: torch.optim.Optimizer
    train_loss: StepLoss
    eval_loss: StepLoss

    def step(self, numbers: Sequence[int], *, learning_rate: float, place: str) -> StepResult:
        """Train on the groups with these numbers in the data.

        Args:
            place: `step 3 of 80`, for messages.

        Raises:
            TrainingError: loss or gradient is not finite, or memory ran out.
        """
        started = time.monotonic()
        groups = [self.job.groups[number] for number in numbers]
        if self.processes.alone:
            loss, metrics = self.runner.backing_off(
                lambda: self._gradients(numbers, groups, place), remedy=TRAINING_REMEDY
            )
        else:
            loss, metrics = self._gradients(numbers, groups, place)
        grad_norm = self._clip()
        if not math.isfinite(grad_norm):
            raise _not_finite(self.job, "gradient norm", grad_norm, place, [group.id for group in groups])
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = learning_rate
        with stepping_memory(self.job, self.module, device=self.processes.device, place=place):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(packed_num_tokens(group) for group in groups)
        return StepResult(loss, metrics, grad_norm, num_tokens / (time.monotonic() - started), num_tokens)

    def _gradients(
        self, numbers: Sequence[int], groups: Sequence[PromptGroup], place: str
    ) -> tuple[float, dict[str, float]]:
        """Gradients of the whole step; its loss and metrics.

        Every loss is divided by the counts of the whole step, so gradients are to be summed over the processes; what
        wraps the module takes their mean instead, and is given the loss times the number of processes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        counts = count_step(groups)
        losses: list[Tensor] = []
        members: list[list[str]] = []
        totals: dict[str, Tensor] = {}
        for microbatch in shared_microbatches(self.runner, groups, processes=self.processes):
            batch, share = microbatch.batch, float(microbatch.counts)
            with nullcontext() if microbatch.is_last else without_sync(self.module):
                output = self.runner.forward(self.module, batch)
                loss, metrics = self.train_loss(output, batch=batch, counts=counts, group_numbers=numbers)
                torch.autograd.backward(loss * (share * self.processes.count))
            for name, value in metrics.items():
                totals[name] = totals[name] + value * share if name in totals else value * share
            if microbatch.counts:
                losses.append(loss.detach())
                members.append([groups[group].id for group in sorted(set(batch.completion_group.tolist()))])
        values = torch.stack(losses).tolist() if losses else []
        sums = {"loss": float(sum(values)), **{name: float(value) for name, value in totals.items()}}
        return self._agreed(sums, values, members, place)

    def _agreed(
        self, sums: dict[str, float], values: Sequence[float], members: Sequence[Sequence[str]], place: str
    ) -> tuple[float, dict[str, float]]:
        """Sums over the processes. One that has seen a loss that is not finite stops all of them, with its rows."""
        bad = [(value, ids) for value, ids in zip(values, members, strict=True) if not math.isfinite(value)]
        *totals, num_bad = self.processes.totals([*sums.values(), float(len(bad))])
        if num_bad:
            value, ids = next(part[0] for part in self.processes.gathered(bad) if part)
            raise _not_finite(self.job, "loss", value, place, ids)
        metrics = dict(zip(sums, totals, strict=True))
        return metrics.pop("loss"), metrics

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.job.config.max_grad_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and metrics on the held-out groups, as one big step; nothing where there are none."""
        groups = self.job.eval_groups
        if not groups:
            return {}
        counts = count_step(groups)
        totals: dict[str, float] = {}
        for batch, output, numbers in outputs_of(self.runner, processes=self.processes).outputs(self.module, groups):
            loss, metrics = self.eval_loss(output, batch=batch, counts=counts, group_numbers=numbers)
            totals = merged_sums([totals, {name: float(value) for name, value in {"loss": loss, **metrics}.items()}])
        return merged_sums(self.processes.gathered(totals))


def _not_finite(job: TrainJob, what: str, value: float, place: str, ids: Sequence[str]) -> TrainingError:
    rows = ", ".join(ids[:SHOWN_ROWS]) + (", ..." if len(ids) > SHOWN_ROWS else "")
    return TrainingError(
        f"{job.objective}: {what} is {value} at {place}, rows: {rows}. Look at these rows, or lower "
        f"{job.objective}.learning_rate ({job.config.learning_rate:g})"
    )
