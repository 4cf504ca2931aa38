"""RLOO's training: on completions that are sampled and rewarded as it goes.

    for each batch of prompts:
        weights so far --> folder --> sample_batch (engine, rewards) --> groups, rewards
        policy, reference --> log-probabilities of the completions --> KL --> advantages
        minibatch after minibatch, pass after pass: loss --> step

One process trains, in the process that asks the engine: none is started for a batch, and models stay loaded. What was
sampled is the caller's to keep: a training that goes on asks for the batches after its resume point again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from alignloop.config.rloo import RlooConfig
from alignloop.objectives.rloo import leave_one_out
from alignloop.packing.check import is_out_of_memory
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import LinesAlone
from alignloop.training.checkpoints import ResumePoints, save_checkpoint
from alignloop.training.job import Batches, TrainJob, TrainResult, learning_rate
from alignloop.training.loop import TrainRun
from alignloop.training.objectives import RlooStep
from alignloop.training.processes import this_process, unwrapped
from alignloop.training.reference import reference_sums
from alignloop.training.rows import free_memory, out_of_memory_elsewhere
from alignloop.training.scoring import split_group
from alignloop.training.trainee import Trainee, build_module, build_trainee

SERVED = "served"
"""In a training's folder: the weights that the engine is given, one folder a batch."""


@dataclass(frozen=True)
class SampledBatch:
    """The K completions of each prompt, in the order asked, and what each is worth, [N][K]; `metrics` of them all, for
    the log."""

    groups: Sequence[PromptGroup]
    rewards: Sequence[Sequence[float]]
    metrics: dict[str, float]


class SampleBatch(Protocol):
    """What samples: gets the batch's number, its prompts' numbers, and the policy's checkpoint, which is written when
    it is asked for: a batch that was sampled before needs none."""

    def __call__(self, number: int, prompts: Sequence[int], policy: Callable[[], Path]) -> SampledBatch: ...


def train_rloo(job: TrainJob, *, batches: Batches, sample_batch: SampleBatch) -> TrainResult:
    """Train a job's checkpoint, which has no groups of its own, on what is sampled for `batches` of prompts.

    Raises:
        TrainingError, ModelError: as `train`; and what `sample_batch` raises.
    """
    run = _RlooRun(job, batches, sample_batch)
    try:
        return run.run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_elsewhere(job, error, device=run.processes.device) from error
    finally:
        shutil.rmtree(job.out_dir / SERVED, ignore_errors=True)
        del run
        free_memory()


class _RlooRun(TrainRun):
    def __init__(self, job: TrainJob, batches: Batches, sample_batch: SampleBatch) -> None:
        super().__init__(job, processes=this_process(), num_steps=sum(map(len, batches)))
        assert isinstance(job.config, RlooConfig)
        self.rloo, self._batches, self._sample_batch = job.config, batches, sample_batch

    def run(self) -> TrainResult:
        points = self.points(batches=[list(map(list, batch)) for batch in self._batches])
        # The model is built on the first batch, also in going on: what it is built on decides last digits.
        sampled = self._sampled(0, lambda: self.job.checkpoint)
        trainee = self._built(sampled)
        first = self.restored(points, trainee)
        done = 0
        with self.steps(first) as (note, advance):
            for number, minibatches in enumerate(self._batches):
                begin, done = done, done + len(minibatches)
                if done <= first:
                    continue
                if number:
                    sampled = self._sampled(number, lambda: self._served(trainee, begin))  # noqa: B023
                self._train_on(trainee, sampled, minibatches, begin, note=note, advance=advance, points=points)
        points.clear()
        metrics, of_checkpoints = self.log.metrics(self.kept_steps)
        return TrainResult(
            checkpoints=tuple(self.job.checkpoint_path(step) for step in self.kept_steps),
            metrics=metrics,
            num_steps=self.num_steps,
            num_tokens=sum(row["num_tokens"] for row in self.log.rows()),
            dropped=(),
            checkpoint_metrics=of_checkpoints,
        )

    def _sampled(self, number: int, policy: Callable[[], Path]) -> SampledBatch:
        prompts = dict.fromkeys(prompt for minibatch in self._batches[number] for prompt in minibatch)
        return self._sample_batch(number, list(prompts), policy)

    def _built(self, sampled: SampledBatch) -> Trainee:
        return build_trainee(
            replace(self.job, groups=sampled.groups, progress=LinesAlone(self.job.progress)), processes=self.processes
        )

    def _served(self, trainee: Trainee, step: int) -> Path:
        """The weights after `step` steps, in a folder of their own: an engine takes a folder it serves for known."""
        folder = self.job.out_dir / SERVED
        path = folder / f"step-{step:06d}"
        save_checkpoint(unwrapped(trainee.module).model, path, companions=self.job.checkpoint)
        for older in folder.iterdir():
            if older != path:
                shutil.rmtree(older)
        if self.processes.device.type != "cpu":
            free_memory()  # what the last steps held the engine may need
        return path

    @cached_property
    def _reference(self) -> nn.Module | None:
        """Stays loaded; None where there is no KL."""
        if self.job.reference is None or not self.rloo.kl_coefficient:
            return None
        job = replace(self.job, progress=LinesAlone(self.job.progress))
        return build_module(job, self.job.reference, device=self.processes.device, trains=False)

    def _train_on(
        self,
        trainee: Trainee,
        sampled: SampledBatch,
        minibatches: Sequence[Sequence[int]],
        begin: int,
        *,
        note: Callable[[int, dict[str, float]], None],
        advance: Callable[[int], None],
        points: ResumePoints,
    ) -> None:
        """The steps after the first `begin`, on one batch."""
        pieces, numbers = self._pieces(trainee, sampled)
        old = _sums(trainee.module, pieces, trainee)
        advantages, metrics = self._advantages(old, sampled, pieces, trainee)
        on_batch = replace(
            trainee,
            job=replace(trainee.job, groups=pieces),
            train_loss=RlooStep(self.rloo, _per_piece(old, pieces), _per_piece(advantages, pieces)),
        )
        order = list(dict.fromkeys(prompt for minibatch in minibatches for prompt in minibatch))
        for step, minibatch in enumerate(minibatches, start=begin):
            rate = learning_rate(step, num_steps=self.num_steps, config=self.config)
            own = [piece for prompt in minibatch for piece in numbers[order.index(prompt)]]
            row = on_batch.step(own, learning_rate=rate, step=f"step {step + 1} of {self.num_steps}")
            note(step + 1, row | metrics | self.keep(step + 1, trainee))
            is_last, every = step + 1 == begin + len(minibatches), self.config.save_every_steps
            if is_last and (step + 1) // every > begin // every:
                self.save_point(step + 1, points, trainee)
            advance(1)

    def _pieces(self, trainee: Trainee, sampled: SampledBatch) -> tuple[list[PromptGroup], list[list[int]]]:
        """The groups, in pieces where one would take more memory than a microbatch; and each group's pieces."""
        runner, rows = trainee.runner, self.job.rows
        runner.row_tokens = self.config.row_tokens or auto_row_tokens(max(group.longest for group in sampled.groups))
        pieces: list[PromptGroup] = []
        numbers: list[list[int]] = []
        for group in sampled.groups:
            own = split_group(group, capacity=rows * runner.row_tokens)
            numbers.append(list(range(len(pieces), len(pieces) + len(own))))
            pieces += own
        return pieces, numbers

    def _advantages(
        self, old: Tensor, sampled: SampledBatch, pieces: Sequence[PromptGroup], trainee: Trainee
    ) -> tuple[Tensor, dict[str, float]]:
        """[N K] of the completions whose sums under the policy are `old`, [N K]; and the batch's metrics."""
        rewards = torch.tensor([list(row) for row in sampled.rewards], dtype=torch.float64)
        kl = None
        if self._reference is not None:
            kl = (old - _sums(self._reference, pieces, trainee)).view(rewards.shape)
        advantages = leave_one_out(
            rewards, kl=kl, kl_coefficient=self.rloo.kl_coefficient, normalize=self.rloo.normalize_advantages
        )
        num_tokens = sum(len(completion.token_ids) for piece in pieces for completion in piece.completions)
        return advantages.flatten(), {
            **sampled.metrics,
            **({} if kl is None else {"kl": float(kl.mean())}),
            "advantage_std": float(advantages.std()),
            # Of what was sampled, the mean of -log pi is an estimate of the policy's entropy.
            "entropy": float(-old.sum()) / num_tokens,
        }


def _sums(module: nn.Module, pieces: Sequence[PromptGroup], trainee: Trainee) -> Tensor:
    """[N K] float64 log-probability of every completion under a model, formatting tokens counted."""
    sums = reference_sums(module, pieces, passes=trainee.runner, mask_formatting_tokens=False)
    return torch.tensor([value for row in sums for value in row], dtype=torch.float64)


def _per_piece(values: Tensor, pieces: Sequence[PromptGroup]) -> list[tuple[float, ...]]:
    of_each = iter(values.tolist())
    return [tuple(next(of_each) for _ in piece.completions) for piece in pieces]
