"""One trainer for all objectives.

    groups ─► screen ─► step batches ─► packed rows ─► model ─► objective ─► step ─► checkpoints
                                                                  ▲
                     reference model ─► logprobs, once (DPO) ─────┘

`run_here` is a training in this process or in one of several; `launch.py` starts several, which share out the rows of
each step. Everything follows from the job: no global random state is read, and on a CPU the same job gives the same
bytes, whether or not it was killed and started again in between.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from alignloop.artifacts import digest_of
from alignloop.errors import TrainingError
from alignloop.packing.check import is_out_of_memory
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.progress import Advance
from alignloop.training.accelerate_file import check_processes
from alignloop.training.checkpoints import ResumePoints, save_checkpoint
from alignloop.training.job import (
    OPTIMIZER,
    TRAINER_VERSION,
    Dropped,
    TrainJob,
    TrainResult,
    checkpoint_steps,
    groups_digest,
    key_of,
    learning_rate,
    shuffled,
    weights_digest,
)
from alignloop.training.new_tokens import load_new_tokens
from alignloop.training.objectives import dpo_at_reference, screen
from alignloop.training.processes import (
    Processes,
    carry_optimizer,
    model_state,
    optimizer_state,
    restore,
    this_process,
    unwrapped,
    write_optimizer,
)
from alignloop.training.rows import free_memory, out_of_memory_elsewhere
from alignloop.training.trackers import HELD_OUT, Trackers, TrainLog, open_trackers
from alignloop.training.trainee import Trainee, build_trainee
from alignloop.training.worker import LAUNCH_FOLDER

LN_2 = math.log(2.0)
STEP_0_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
MODEL_PREFIX = "model."
"""Of the model's weights in the module that is trained."""


def train(job: TrainJob) -> TrainResult:
    """Train a job's checkpoint on its groups.

    Raises:
        TrainingError: nothing to train on, a non-finite loss, no memory for one row, DPO not starting where it must.
        ModelError: a checkpoint that cannot be loaded or does not fit the token ids.
        UserError: it cannot be trained on the processes that `training` asks for.
    """
    check_processes(job.training, config=job.config, name=job.objective)
    kept, dropped = _screened(job, job.groups)
    held_out = _screen_held_out(job)
    if not job.isolate:
        kept, held_out = ([_shuffled(group, seed=job.seed) for group in groups] for groups in (kept, held_out))
    job = replace(job, groups=kept, eval_groups=held_out)
    shutil.rmtree(job.out_dir / LAUNCH_FOLDER, ignore_errors=True)  # what a failed start left
    if job.training.num_processes == 1:
        measured = run_here(job, processes=this_process())
    else:
        from alignloop.training.launch import run_launched

        (measured,) = run_launched([job], training=job.training, progress=job.progress)
    batches = job.batches()
    return TrainResult(
        checkpoints=tuple(job.checkpoint_path(step) for step in job.kept_steps()),
        metrics=measured.metrics,
        num_steps=len(batches),
        num_tokens=sum(packed_num_tokens(kept[number]) for batch in batches for number in batch),
        dropped=dropped,
        checkpoint_metrics=measured.checkpoint_metrics,
    )


def _screened(job: TrainJob, groups: Sequence[PromptGroup]) -> tuple[list[PromptGroup], Dropped]:
    return screen(groups, objective=job.objective, max_length=job.config.max_length, isolate=job.isolate)


def _screen_held_out(job: TrainJob) -> list[PromptGroup]:
    if not job.eval_groups:
        return []
    try:
        kept, dropped = _screened(job, job.eval_groups)
    except TrainingError as error:
        job.progress.say(f"  held-out rows: {error}; nothing is measured on them")
        return []
    if dropped:
        num, reason = len(job.eval_groups), dropped[0][1]
        job.progress.say(f"  {len(dropped)} of {num} held-out rows are left out; the first: {reason}")
    return kept


def _shuffled(group: PromptGroup, *, seed: int) -> PromptGroup:
    """Shuffle its completions: where they see each other, their order must not tell their rank."""
    order = shuffled(len(group.completions), key=f"{seed}/completions/{group.id}")
    completions = tuple(group.completions[number] for number in order)
    return replace(group, completions=completions, ranks=tuple(group.ranks[number] for number in order))


# ---- in one process -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainMetrics:
    """`train_*`, `eval_*` and `step_0_dpo_loss`; and the held-out groups' metrics of each kept checkpoint."""

    metrics: dict[str, float]
    checkpoint_metrics: tuple[dict[str, float], ...]


class ProcessOutOfMemory(Exception):
    """One of several processes ran out of memory, with `rows` per microbatch.

    It cannot go on with half the rows while the others wait.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(f"out of memory with {rows} rows per microbatch")
        self.rows = rows


def run_here(job: TrainJob, *, processes: Processes) -> TrainMetrics:
    """Train a job whose groups are screened, then free the memory it took.

    Raises:
        TrainingError: as `train`.
        ProcessOutOfMemory: in one of several processes.
    """
    try:
        return _Run(job, processes=processes, num_steps=len(job.batches())).run()
    finally:
        free_memory()


class TrainRun:
    """What every training in this process does beside its steps: resume points, the log, trackers, checkpoints."""

    def __init__(self, job: TrainJob, *, processes: Processes, num_steps: int) -> None:
        self.job, self.config, self.processes, self.num_steps = job, job.config, processes, num_steps
        self.kept_steps = checkpoint_steps(
            num_steps, num_checkpoints=job.config.num_checkpoints, span=job.config.average_span
        )
        self.log = TrainLog(job.out_dir / "train_log.jsonl")

    def points(self, **more: object) -> ResumePoints:
        """The job's; `more` is what else its weights depend on."""
        key = self.processes.of_first(lambda: _resume_key(self.job, **more))
        return ResumePoints(self.job.out_dir / "resume", key=key)

    def restored(self, points: ResumePoints, trainee: Trainee) -> int:
        """Steps already done: 0, or those of the last resume point, whose state is then in the model. The log has their
        lines."""
        state, first = points.load(), 0
        if state is not None:
            first = int(state["step"])
            restore(trainee.module, trainee.optimizer, model=state["model"], optimizer_values=state["optimizer"])
            trainee.runner.rows = min(trainee.runner.rows, state["rows"])
            self.job.progress.say(f"  {self.job.objective}: going on after step {first} of {self.num_steps}")
        elif self.job.optimizer is not None:
            carry_optimizer(trainee.module, trainee.optimizer, self.job.optimizer)
        if self.processes.is_first:
            self.log.cut_after(first)
        return first

    def save_point(self, step: int, points: ResumePoints, trainee: Trainee) -> None:
        """Not after the last step: it has its checkpoint."""
        if step == self.num_steps:
            return
        model = model_state(trainee.module, trained_only=True)
        optimizer = optimizer_state(trainee.module, trainee.optimizer)
        if self.processes.is_first:
            points.save(step, model=model, optimizer=optimizer, rows=trainee.runner.rows)

    @contextmanager
    def steps(self, first: int) -> Iterator[tuple[Callable[[int, Mapping[str, float]], None], Advance]]:
        """Around the steps after the first `first`: what takes each one's number and its row of the log, before any
        resume point after it, and what is called when it is over."""
        with (
            closing(self._trackers()) as trackers,
            self.job.progress.task(f"train {self.job.objective}", total=self.num_steps, unit="steps") as advance,
        ):

            def note(step: int, row: Mapping[str, float]) -> None:
                if self.processes.is_first:
                    self.log.append(step, row)
                    trackers.log(step, row)

            if first:
                advance(first)
            yield note, advance

    def keep(self, step: int, trainee: Trainee) -> dict[str, float]:
        """Write the checkpoint after `step` steps, if it is one to keep; its metrics on the held-out groups."""
        if step not in self.kept_steps:
            return {}
        whole = None
        if self.processes.sharded:
            state = model_state(trainee.module, trained_only=False)
            whole = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items()}
        if self.processes.is_first:
            path, model = self.job.checkpoint_path(step), unwrapped(trainee.module).model
            save_checkpoint(model, path, companions=self.job.checkpoint, state_dict=whole)
        return {f"{HELD_OUT}{name}": value for name, value in trainee.evaluate().items()}

    def _trackers(self) -> Trackers:
        """The recipe's; none in a process that is not the first."""
        job = self.job
        if not self.processes.is_first:
            return Trackers({}, folder=job.out_dir, say=job.progress.say)
        return open_trackers(
            job.training.trackers,
            out_dir=job.out_dir,
            run_name=job.run_name,
            config=job.config.model_dump(mode="json"),
            say=job.progress.say,
        )


class _Run(TrainRun):
    """On groups that are all known before its first step."""

    def run(self) -> TrainMetrics:
        rows = self.job.rows
        try:
            trainee = build_trainee(self.job, processes=self.processes)
            rows = trainee.runner.rows
            return self._train(trainee)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.processes.alone:
                raise out_of_memory_elsewhere(self.job, error, device=self.processes.device) from error
            raise ProcessOutOfMemory(rows) from error

    def _train(self, trainee: Trainee) -> TrainMetrics:
        points, batches = self.points(), self.job.batches()
        first = self.restored(points, trainee)
        with self.steps(first) as (note, advance):
            for step in range(first, self.num_steps):
                rate = learning_rate(step, num_steps=self.num_steps, config=self.config)
                row = trainee.step(batches[step], learning_rate=rate, step=f"step {step + 1} of {self.num_steps}")
                if step == 0 and "dpo_loss" in row:
                    self._check_step_0(row["dpo_loss"], batches[0])
                note(step + 1, row | self.keep(step + 1, trainee))
                if (step + 1) % self.config.save_every_steps == 0:
                    self.save_point(step + 1, points, trainee)
                advance(1)
        if self.job.keeps_optimizer:
            path = self.job.out_dir / OPTIMIZER
            write_optimizer(trainee.module, trainee.optimizer, path, is_first=self.processes.is_first)
        if not self.processes.is_first:
            return TrainMetrics({}, ())
        points.clear()
        return TrainMetrics(*self.log.metrics(self.kept_steps))

    def _check_step_0(self, dpo_loss: float, numbers: Sequence[int]) -> None:
        """Where policy and reference are the same model, DPO starts at ln 2 (other losses elsewhere) or something is
        silently wrong."""
        reference, groups = self.job.reference, [self.job.groups[number] for number in numbers]
        expected = dpo_at_reference(self.config, groups)
        if reference is None or expected is None:
            return
        if abs(dpo_loss - expected) <= STEP_0_TOLERANCE[self.config.dtype] * max(1.0, expected):
            return
        if self.processes.of_first(lambda: weights_digest(reference) == weights_digest(self.job.checkpoint)):
            name = f"ln 2 = {LN_2:.5f}" if expected == LN_2 else f"{expected:.5f}"
            raise TrainingError(
                f"DPO starts at {dpo_loss:.5f}, not at {name}, although the reference is the model it "
                f"starts from ({reference}): the reference logprobs are wrong. Delete {self.job.out_dir} and "
                "run again; where it comes back, this is a defect of alignloop"
            )


def _resume_key(job: TrainJob, **more: object) -> str:
    """The number of processes is not in it: a point is whole, and any number of them can go on from it."""
    return key_of(
        trainer_version=TRAINER_VERSION,
        objective=job.objective,
        config=json.loads(job.config.model_dump_json()),
        layout=job.training.layout,
        seed=job.seed,
        checkpoint=weights_digest(job.checkpoint),
        new_tokens=[token.id for token in load_new_tokens(job.checkpoint)],
        reference=None if job.reference is None else weights_digest(job.reference),
        groups=groups_digest(job.groups),
        **({} if job.optimizer is None else {"optimizer": digest_of(job.optimizer)}),
        **more,
    )
