"""One optimiser step: gradients from all its microbatches, over all processes, then the update."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.training.job import TrainJob
from alignloop.training.memory import stepping_memory
from alignloop.training.objectives import StepLoss, count_step
from alignloop.training.processes import Processes, without_sync
from alignloop.training.rows import TRAINING_REMEDY, RowRunner, forward_passes, shared_microbatches

SHOWN_ROWS = 20


@dataclass(frozen=True)
class StepFigures:
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

    def step(self, numbers: Sequence[int], *, learning_rate: float, step: str) -> StepFigures:
        """Train on the groups with these numbers in the data.

        Args:
            step: `step 3 of 80`, for messages.

        Raises:
            TrainingError: loss or gradient is not finite, or memory ran out.
        """
        started = time.monotonic()
        groups = [self.job.groups[number] for number in numbers]
        if self.processes.alone:
            loss, metrics = self.runner.backing_off(
                lambda: self._gradients(numbers, groups, step), remedy=TRAINING_REMEDY
            )
        else:
            loss, metrics = self._gradients(numbers, groups, step)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.job.config.max_grad_norm)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(grad_norm):
            raise _not_finite(self.job, "gradient norm", grad_norm, step, [group.id for group in groups])
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = learning_rate
        with stepping_memory(self.job, self.module, device=self.processes.device, step=step):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(packed_num_tokens(group) for group in groups)
        return StepFigures(loss, metrics, grad_norm, num_tokens / (time.monotonic() - started), num_tokens)

    def _gradients(
        self, numbers: Sequence[int], groups: Sequence[PromptGroup], step: str
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
        # A process that has seen a loss that is not finite stops all of them, with its rows.
        bad = [(value, ids) for value, ids in zip(values, members, strict=True) if not math.isfinite(value)]
        *summed, num_bad = self.processes.totals([*sums.values(), float(len(bad))])
        if num_bad:
            value, ids = next(part[0] for part in self.processes.gathered(bad) if part)
            raise _not_finite(self.job, "loss", value, step, ids)
        loss_of_step, *others = summed
        return loss_of_step, dict(zip(totals, others, strict=True))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and metrics on the held-out groups, as one big step; nothing where there are none."""
        groups = self.job.eval_groups
        if not groups:
            return {}
        counts = count_step(groups)
        parts: list[dict[str, float]] = []
        for batch, output, numbers in forward_passes(self.runner, processes=self.processes).outputs(
            self.module, groups
        ):
            loss, metrics = self.eval_loss(output, batch=batch, counts=counts, group_numbers=numbers)
            parts.append({name: float(value) for name, value in {"loss": loss, **metrics}.items()})
        return _summed(self.processes.gathered(_summed(parts)))


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By name; the parts need not have the same names."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _not_finite(job: TrainJob, what: str, value: float, step: str, ids: Sequence[str]) -> TrainingError:
    rows = ", ".join(ids[:SHOWN_ROWS]) + (", ..." if len(ids) > SHOWN_ROWS else "")
    return TrainingError(
        f"{job.objective}: {what} is {value} at {step}, rows: {rows}. Look at these rows, or lower "
        f"{job.objective}.learning_rate ({job.config.learning_rate:g})"
    )
