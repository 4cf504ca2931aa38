"""One training from its first step to its last, in this process or in one of several.

    reference logprobs (DPO) ─► model, wrapped ─► resume point? ─► step ─► checkpoint, evaluation, log ─► step ─► ...

Everything follows from the job: no global random state is read, and on a CPU the same job gives the same bytes,
whether or not it was killed and started again in between.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from alignloop.errors import TrainingError
from alignloop.packing.check import is_out_of_memory
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.data_order import step_batches
from alignloop.training.digests import groups_digest, key_of, weights_digest
from alignloop.training.memory import loading_memory, out_of_memory_elsewhere, remedy_of
from alignloop.training.models import free_memory
from alignloop.training.new_tokens import load_new_tokens
from alignloop.training.processes import Processes
from alignloop.training.resume import ResumePoints
from alignloop.training.schedule import checkpoint_steps, learning_rate
from alignloop.training.setup import (
    TrainJob,
    build_losses,
    build_module,
    build_optimizer,
    build_runner,
    checkpoint_gradients,
    held_in,
)
from alignloop.training.steps import StepResult, Trainee
from alignloop.training.train_log import StepTeller, TrainLog
from alignloop.training.wrapping import model_state, optimizer_state, restore, unwrapped, wrapped

LN_2 = 0.6931471805599453
STEP_0_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
TRAINER_VERSION = 2
"""Raise when the same arguments give other weights: older resume points are then not used."""
MODEL_PREFIX = "model."
"""Of the model's weights in the module that is trained."""


@dataclass(frozen=True)
class RunResult:
    """What a run measured.

    Attributes:
        metrics: `train_*`, `eval_*`, `step_0_dpo_loss`.
        checkpoint_metrics: on the held-out groups, of each kept checkpoint.
    """

    metrics: dict[str, float]
    checkpoint_metrics: tuple[dict[str, float], ...]


class ProcessOutOfMemory(Exception):
    """One of several processes ran out of memory: it cannot go on with half the rows while the others wait.

    Args:
        rows: per microbatch, when it happened.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(f"out of memory with {rows} rows per microbatch")
        self.rows = rows


class TrainingRun:
    """The plan of a training's steps; `run` follows it."""

    def __init__(self, job: TrainJob, *, processes: Processes) -> None:
        self.job, self.config, self.processes = job, job.config, processes
        self.batches = planned_batches(job)
        self.kept_steps = kept_steps(job)
        self.log = TrainLog(job.out_dir / "train_log.jsonl")

    def run(self) -> RunResult:
        """Train to the end.

        Raises:
            TrainingError: see `train`.
            ProcessOutOfMemory: in one of several processes.
        """
        rows = min(self.config.rows_per_microbatch, self.job.max_rows or self.config.rows_per_microbatch)
        try:
            trainee = self._trainee()
            rows = trainee.runner.rows
            return self._train(trainee)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.processes.alone:
                raise out_of_memory_elsewhere(self.job, error, device=self.processes.device) from error
            raise ProcessOutOfMemory(rows) from error

    def _trainee(self) -> Trainee:
        """The model, wrapped over the processes, and what trains it."""
        job, processes = self.job, self.processes
        train_loss, eval_loss = build_losses(job, processes=processes)
        module = build_module(job, job.checkpoint, device=processes.load_device)
        runner = build_runner(job, module, processes=processes)
        if job.config.gradient_checkpointing:
            checkpoint_gradients(module)
        dtype = held_in(job, device=processes.load_device)
        with loading_memory(job.checkpoint, dtype=dtype, device=processes.device, remedy=remedy_of(job)):
            module = wrapped(module, processes=processes, bfloat16=runner.bfloat16)
        optimizer = build_optimizer(job, module)
        return Trainee(job, processes, module, runner, optimizer, train_loss, eval_loss)

    def _train(self, trainee: Trainee) -> RunResult:
        points = ResumePoints(self.job.out_dir / "resume", key=self.processes.of_first(lambda: _resume_key(self.job)))
        first = self._restore(points, trainee)
        with (
            StepTeller(self.job, self.log, first=first, active=self.processes.is_first) as teller,
            self.job.progress.task(f"train {self.job.objective}", total=len(self.batches), unit="steps") as advance,
        ):
            if first:
                advance(first)
            for step in range(first, len(self.batches)):
                result = trainee.step(
                    self.batches[step], learning_rate=self._learning_rate(step), place=self._place(step)
                )
                if step == 0 and self.job.objective == "dpo":
                    self._check_step_0(result)
                held_out = self._keep(step + 1, trainee)
                teller.tell(step + 1, result, learning_rate=self._learning_rate(step), held_out=held_out)
                self._save_point(step + 1, points, trainee)
                advance(1)
        if not self.processes.is_first:
            return RunResult({}, ())
        points.clear()
        return self._result()

    def _place(self, step: int) -> str:
        return f"step {step + 1} of {len(self.batches)}"

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            num_steps=len(self.batches),
            peak=self.config.learning_rate,
            warmup_fraction=self.config.warmup_fraction,
            final_fraction=self.config.final_lr_fraction,
        )

    def _result(self) -> RunResult:
        held_out = self.log.held_out(self.kept_steps)
        metrics = {f"train_{name}": value for name, value in self.log.last_means().items()}
        metrics |= {f"eval_{name}": value for name, value in held_out[-1].items()}
        return RunResult(metrics | self.log.first_step_metrics(), held_out)

    def _check_step_0(self, result: StepResult) -> None:
        """Where policy and reference are the same model, DPO starts at ln 2 or something is silently wrong."""
        dpo_term, reference = result.metrics["dpo_loss"], self.job.reference
        assert reference is not None
        if abs(dpo_term - LN_2) <= STEP_0_TOLERANCE[self.config.dtype]:
            return
        if self.processes.of_first(lambda: weights_digest(reference) == weights_digest(self.job.checkpoint)):
            raise TrainingError(
                f"DPO starts at {dpo_term:.5f}, not at ln 2 = {LN_2:.5f}, although the reference is the model it "
                f"starts from ({reference}): the reference logprobs are wrong. Delete {self.job.out_dir} and "
                "run again; where it comes back, this is a defect of alignloop"
            )

    # ---- what is kept -----------------------------------------------------------------------------------------

    def _keep(self, step: int, trainee: Trainee) -> dict[str, float]:
        """Write the checkpoint after `step` steps, if it is one to keep; its metrics on the held-out groups."""
        if step not in self.kept_steps:
            return {}
        model = unwrapped(trainee.module).model
        whole = None
        if self.processes.sharded:
            state = model_state(trainee.module, trained_only=False)
            whole = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items()}
        if self.processes.is_first:
            path = checkpoint_path(self.job, step)
            save_checkpoint(model, path, companions=self.job.checkpoint, state_dict=whole)
        return trainee.evaluate()

    def _save_point(self, step: int, points: ResumePoints, trainee: Trainee) -> None:
        if step % self.config.save_every_steps or step == len(self.batches):
            return
        model = model_state(trainee.module, trained_only=True)
        optimizer = optimizer_state(trainee.module, trainee.optimizer)
        if self.processes.is_first:
            points.save(step, model=model, optimizer=optimizer, rows=trainee.runner.rows)

    def _restore(self, points: ResumePoints, trainee: Trainee) -> int:
        """Steps already done: 0, or those of the last resume point, whose state is then in place."""
        state = points.load()
        if state is None:
            return 0
        restore(trainee.module, trainee.optimizer, model=state["model"], optimizer_values=state["optimizer"])
        trainee.runner.rows = min(trainee.runner.rows, state["rows"])
        self.job.progress.say(f"  {self.job.objective}: going on after step {state['step']} of {len(self.batches)}")
        return int(state["step"])


def run_here(job: TrainJob, *, processes: Processes) -> RunResult:
    """Run a job, and give back the memory it took."""
    try:
        return TrainingRun(job, processes=processes).run()
    finally:
        free_memory()


def planned_batches(job: TrainJob) -> list[list[int]]:
    """The groups of each step, by number."""
    config = job.config
    return step_batches(
        len(job.groups),
        batch_groups=config.batch_groups,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=job.seed,
    )


def kept_steps(job: TrainJob) -> tuple[int, ...]:
    """Steps after which a checkpoint is kept."""
    num_steps = len(planned_batches(job))
    return checkpoint_steps(num_steps, num_checkpoints=job.config.num_checkpoints, span=job.config.average_span)


def checkpoint_path(job: TrainJob, step: int) -> Path:
    return job.out_dir / "checkpoints" / f"step-{step:06d}"


def _resume_key(job: TrainJob) -> str:
    """How many processes there are is not in it: a point is whole, and any number of them can go on from it."""
    return key_of(
        trainer_version=TRAINER_VERSION,
        objective=job.objective,
        config=json.loads(job.config.model_dump_json()),
        seed=job.seed,
        checkpoint=weights_digest(job.checkpoint),
        new_tokens=[token.id for token in load_new_tokens(job.checkpoint)],
        reference=None if job.reference is None else weights_digest(job.reference),
        groups=groups_digest(job.groups),
    )
