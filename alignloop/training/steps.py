"""One optimiser step: gradients from all its microbatches, over all processes, then the update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.training.memory import stepping_memory
from alignloop.training.processes import Processes, merged_sums
from alignloop.training.row_runner import TRAINING_REMEDY, RowRunner
from alignloop.training.setup import TrainJob
from alignloop.training.sharing import outputs_of, shared_microbatches
from alignloop.training.step_losses import StepLoss, count_step
from alignloop.training.wrapping import without_sync

SHOWN_ROWS = 20
NUM_BAD = "num_bad_microbatches"


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
        metrics = self.processes.sums({**sums, NUM_BAD: float(len(bad))})
        if metrics.pop(NUM_BAD):
            value, ids = next(part[0] for part in self.processes.gathered(bad) if part)
            raise _not_finite(self.job, "loss", value, place, ids)
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
