"""One trainer for the three objectives.

    groups ─► screen ─► step batches ─► packed rows ─► model ─► objective ─► step ─► checkpoints
                                                                  ▲
                     reference model ─► logprobs, once (DPO) ─────┘

`run_here` is a training in this process or in one of several; `launch.py` starts several, which share out the rows of
each step. Everything follows from the job: no global random state is read, and on a CPU the same job gives the same
bytes, whether or not it was killed and started again in between.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alignloop.config.training import RewardConfig
from alignloop.errors import TrainingError
from alignloop.packing.check import is_out_of_memory
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.training.accelerate_file import check_processes
from alignloop.training.checkpoints import ResumePoints, save_checkpoint
from alignloop.training.job import (
    TRAINER_VERSION,
    TrainJob,
    TrainResult,
    groups_digest,
    key_of,
    learning_rate,
    screen,
    shuffled_completions,
    weights_digest,
)
from alignloop.training.log import StepTeller, TrainLog
from alignloop.training.model import free_memory
from alignloop.training.new_tokens import load_new_tokens
from alignloop.training.processes import (
    Processes,
    model_state,
    optimizer_state,
    restore,
    this_process,
    unwrapped,
    wrapped,
)
from alignloop.training.rows import loading_memory, out_of_memory_elsewhere, remedy_of
from alignloop.training.setup import (
    build_losses,
    build_module,
    build_optimizer,
    build_runner,
    checkpoint_gradients,
    held_in,
)
from alignloop.training.step import StepResult, Trainee
from alignloop.training.worker import LAUNCH_FOLDER

LN_2 = 0.6931471805599453
STEP_0_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
MODEL_PREFIX = "model."
"""Of the model's weights in the module that is trained."""


def train(job: TrainJob) -> TrainResult:
    """Train a job's checkpoint on its groups.

    Raises:
        TrainingError: nothing to train on, a non-finite loss, no memory for one row, DPO not starting at ln 2.
        ModelError: a checkpoint that cannot be loaded or does not fit the token ids.
        UserError: it cannot be trained on the processes that `training` asks for.
    """
    check_processes(job.training, config=job.config, name=job.objective)
    kept, dropped = screen(job.groups, objective=job.objective, max_length=job.config.max_length)
    held_out = _screen_held_out(job)
    if isinstance(job.config, RewardConfig) and not job.config.isolate:
        kept, held_out = _shuffle(kept, seed=job.seed), _shuffle(held_out, seed=job.seed)
    job = replace(job, groups=kept, eval_groups=held_out)
    shutil.rmtree(job.out_dir / LAUNCH_FOLDER, ignore_errors=True)  # what a failed start left
    if job.training.num_processes == 1:
        result = run_here(job, processes=this_process())
    else:
        from alignloop.training.launch import run_launched

        (result,) = run_launched([job], training=job.training, progress=job.progress)
    batches = job.batches()
    return TrainResult(
        checkpoints=tuple(job.checkpoint_path(step) for step in job.kept_steps()),
        metrics=result.metrics,
        num_steps=len(batches),
        num_tokens=sum(packed_num_tokens(kept[number]) for batch in batches for number in batch),
        dropped=dropped,
        checkpoint_metrics=result.checkpoint_metrics,
    )


def _screen_held_out(job: TrainJob) -> list[PromptGroup]:
    if not job.eval_groups:
        return []
    try:
        kept, dropped = screen(job.eval_groups, objective=job.objective, max_length=job.config.max_length)
    except TrainingError as error:
        job.progress.say(f"  held-out rows: {error}; nothing is measured on them")
        return []
    if dropped:
        num, reason = len(job.eval_groups), dropped[0][1]
        job.progress.say(f"  {len(dropped)} of {num} held-out rows are left out; the first: {reason}")
    return kept


def _shuffle(groups: Sequence[PromptGroup], *, seed: int) -> list[PromptGroup]:
    shuffled = []
    for group in groups:
        order = shuffled_completions(len(group.completions), group_id=group.id, seed=seed)
        completions = tuple(group.completions[number] for number in order)
        shuffled.append(replace(group, completions=completions, ranks=tuple(group.ranks[number] for number in order)))
    return shuffled


# ---- in one process -------------------------------------------------------------------------------------------------


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


def run_here(job: TrainJob, *, processes: Processes) -> RunResult:
    """Train a job whose groups are screened, and give back the memory it took.

    Raises:
        TrainingError: see `train`.
        ProcessOutOfMemory: in one of several processes.
    """
    try:
        return _Run(job, processes=processes).run()
    finally:
        free_memory()


class _Run:
    """The plan of a training's steps; `run` follows it."""

    def __init__(self, job: TrainJob, *, processes: Processes) -> None:
        self.job, self.config, self.processes = job, job.config, processes
        self.batches, self.kept_steps = job.batches(), job.kept_steps()
        self.log = TrainLog(job.out_dir / "train_log.jsonl")

    def run(self) -> RunResult:
        rows = self.job.rows
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
                rate, place = self._learning_rate(step), f"step {step + 1} of {len(self.batches)}"
                result = trainee.step(self.batches[step], learning_rate=rate, place=place)
                if step == 0 and self.job.objective == "dpo":
                    self._check_step_0(result)
                held_out = self._keep(step + 1, trainee)
                teller.tell(step + 1, result, learning_rate=rate, held_out=held_out)
                self._save_point(step + 1, points, trainee)
                advance(1)
        if not self.processes.is_first:
            return RunResult({}, ())
        points.clear()
        return self._result()

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
            path = self.job.checkpoint_path(step)
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
        """Steps already done: 0, or those of the last resume point, whose state is then in the model."""
        state = points.load()
        if state is None:
            return 0
        restore(trainee.module, trainee.optimizer, model=state["model"], optimizer_values=state["optimizer"])
        trainee.runner.rows = min(trainee.runner.rows, state["rows"])
        self.job.progress.say(f"  {self.job.objective}: going on after step {state['step']} of {len(self.batches)}")
        return int(state["step"])


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
