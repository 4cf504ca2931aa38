"""One trainer for the three objectives.

    groups ─► screen ─► step batches ─► packed rows ─► model ─► objective ─► step ─► checkpoints
                                                                  ▲
                     reference model ─► logprobs, once (DPO) ─────┘

Everything follows from the arguments: no global random state is read, and on a CPU the same arguments give the same
bytes, whether or not the training was killed and started again in between.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignloop.config.recipe import RewardConfig
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.progress import Progress
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.data_order import shuffled_completions, step_batches
from alignloop.training.digests import groups_digest, key_of, weights_digest
from alignloop.training.models import free_memory
from alignloop.training.resume import ResumePoints
from alignloop.training.row_runner import RowRunner
from alignloop.training.schedule import checkpoint_steps, learning_rate
from alignloop.training.screening import Dropped, ObjectiveName, screen
from alignloop.training.setup import (
    TrainConfig,
    TrainJob,
    build_losses,
    build_module,
    build_optimizer,
    build_runner,
)
from alignloop.training.step_losses import StepLoss, count_step
from alignloop.training.train_log import TrainLog

LN_2 = 0.6931471805599453
STEP_0_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
TRAINER_VERSION = 1
"""Raise when the same arguments give other weights: older resume points are then not used."""


@dataclass(frozen=True)
class TrainResult:
    """What a training stage made.

    Attributes:
        checkpoints: complete Hugging Face directories, oldest first, the last step's at the end.
        metrics: `train_*` means over the last steps, `eval_*` on the held-out groups, `step_0_dpo_loss`.
        num_tokens: tokens of packed rows over all steps, padding not counted.
        dropped: (group id, reason) of training groups that were left out.
    """

    checkpoints: tuple[Path, ...]
    metrics: dict[str, float]
    num_steps: int
    num_tokens: int
    dropped: Dropped


def train(
    objective: ObjectiveName,
    *,
    groups: Sequence[PromptGroup],
    eval_groups: Sequence[PromptGroup],
    checkpoint: Path,
    reference: Path | None,
    out_dir: Path,
    config: TrainConfig,
    seed: int,
    progress: Progress,
) -> TrainResult:
    """Train `checkpoint` on prompt groups.

    Args:
        groups: reward: two or more ranked completions each; SFT: one; DPO: chosen and rejected.
        eval_groups: held out, of the same form; may be empty.
        checkpoint: a complete Hugging Face directory. For `reward` a policy or base will do: it gets a new head.
        reference: DPO's frozen model; None for the other two.
        out_dir: gets `checkpoints/step-XXXXXX`, `train_log.jsonl`, and while it runs `resume/`.
        seed: of the data order and of a new reward head.

    Raises:
        TrainingError: nothing to train on, a non-finite loss, no memory for one row, DPO not starting at ln 2.
        ModelError: a checkpoint that cannot be loaded or does not fit the token ids.
    """
    kept, dropped = screen(groups, objective=objective, max_length=config.max_length)
    held_out = _screen_held_out(eval_groups, objective=objective, config=config, progress=progress)
    if objective == "reward" and isinstance(config, RewardConfig) and not config.isolate:
        kept, held_out = _shuffle(kept, seed=seed), _shuffle(held_out, seed=seed)
    job = TrainJob(objective, kept, held_out, checkpoint, reference, out_dir, config, seed, progress)
    stage = _Stage(job)
    try:
        metrics = stage.run()
    finally:
        stage.accelerator.free_memory()
        free_memory()
    return TrainResult(
        checkpoints=tuple(stage.checkpoint_path(step) for step in stage.kept_steps),
        metrics=metrics,
        num_steps=len(stage.batches),
        num_tokens=sum(packed_num_tokens(kept[number]) for batch in stage.batches for number in batch),
        dropped=dropped,
    )


def _screen_held_out(
    groups: Sequence[PromptGroup], *, objective: ObjectiveName, config: TrainConfig, progress: Progress
) -> list[PromptGroup]:
    if not groups:
        return []
    try:
        kept, dropped = screen(groups, objective=objective, max_length=config.max_length)
    except TrainingError as error:
        progress.say(f"  held-out rows: {error}; nothing is measured on them")
        return []
    if dropped:
        progress.say(f"  {len(dropped)} of {len(groups)} held-out rows are left out; the first: {dropped[0][1]}")
    return kept


def _shuffle(groups: Sequence[PromptGroup], *, seed: int) -> list[PromptGroup]:
    shuffled = []
    for group in groups:
        order = shuffled_completions(len(group.completions), group_id=group.id, seed=seed)
        completions = tuple(group.completions[number] for number in order)
        shuffled.append(replace(group, completions=completions, ranks=tuple(group.ranks[number] for number in order)))
    return shuffled


class _Stage:
    """One training run: the plan of its steps, and the model while it trains."""

    def __init__(self, job: TrainJob) -> None:
        from accelerate import Accelerator

        self.job, self.config, self.progress = job, job.config, job.progress
        self.accelerator = Accelerator()
        self.batches = step_batches(
            len(job.groups),
            batch_groups=job.config.batch_groups,
            epochs=job.config.epochs,
            max_steps=job.config.max_steps,
            seed=job.seed,
        )
        self.kept_steps = checkpoint_steps(
            len(self.batches), num_checkpoints=job.config.num_checkpoints, span=job.config.average_span
        )
        self.log = TrainLog(job.out_dir / "train_log.jsonl")
        self.metrics: dict[str, float] = {}

    def checkpoint_path(self, step: int) -> Path:
        return self.job.out_dir / "checkpoints" / f"step-{step:06d}"

    def run(self) -> dict[str, float]:
        """Train to the end; returns the metrics of `TrainResult`."""
        device = self.accelerator.device
        train_loss, eval_loss = build_losses(self.job, device=device)
        module = build_module(self.job, self.job.checkpoint, device=device)
        runner = build_runner(self.job, module, device=device)
        optimizer = build_optimizer(self.job, module)
        module, optimizer = self.accelerator.prepare(module, optimizer)
        points = ResumePoints(self.job.out_dir / "resume", key=_resume_key(self.job))
        first = self._restore(points, module, optimizer, runner)
        self.log.cut_after(first)
        label = f"train {self.job.objective}"
        with self.progress.task(label, total=len(self.batches), unit="steps") as advance:
            if first:
                advance(first)
            for step in range(first, len(self.batches)):
                self._step(step, module, optimizer, runner, train_loss)
                self._save(step + 1, points, module, optimizer, runner)
                advance(1)
        metrics = {f"train_{name}": value for name, value in self.log.last_means().items()}
        metrics |= {f"eval_{name}": value for name, value in self._evaluate(module, runner, eval_loss).items()}
        points.clear()
        return metrics | self.metrics

    # ---- steps ------------------------------------------------------------------------------------------------

    def _step(self, step: int, module: nn.Module, optimizer: Any, runner: RowRunner, step_loss: StepLoss) -> None:
        started = time.monotonic()
        numbers = self.batches[step]
        batch_groups = [self.job.groups[number] for number in numbers]
        rate = learning_rate(
            step,
            num_steps=len(self.batches),
            peak=self.config.learning_rate,
            warmup_fraction=self.config.warmup_fraction,
            final_fraction=self.config.final_lr_fraction,
        )
        loss, metrics = runner.backing_off(
            lambda: self._accumulate(step, numbers, batch_groups, module, optimizer, runner, step_loss)
        )
        grad_norm = float(self.accelerator.clip_grad_norm_(module.parameters(), self.config.max_grad_norm))
        self._check_finite(step, [grad_norm], [batch_groups], what="gradient norm")
        if step == 0 and self.job.objective == "dpo":
            self._check_step_0(metrics["dpo_loss"])
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(packed_num_tokens(group) for group in batch_groups)
        self.log.append(
            step + 1,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=num_tokens / (time.monotonic() - started),
            metrics=metrics,
        )

    def _accumulate(
        self,
        step: int,
        numbers: Sequence[int],
        groups: Sequence[PromptGroup],
        module: nn.Module,
        optimizer: Any,
        runner: RowRunner,
        step_loss: StepLoss,
    ) -> tuple[float, dict[str, float]]:
        """Gradients of one step from all its microbatches; loss and metrics are the step's."""
        optimizer.zero_grad(set_to_none=True)
        counts = count_step(groups)
        losses: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        members: list[list[PromptGroup]] = []
        for batch in runner.microbatches(runner.pack(groups)):
            output = runner.forward(module, batch)
            loss, metrics = step_loss(output, batch=batch, counts=counts, group_numbers=numbers)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
            members.append([groups[group] for group in sorted(set(batch.completion_group.tolist()))])
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
        values = torch.stack(losses).tolist()
        self._check_finite(step, values, members, what="loss")
        return sum(values), {name: float(value) for name, value in totals.items()}

    def _check_finite(
        self, step: int, values: Sequence[float], members: Sequence[Sequence[PromptGroup]], *, what: str
    ) -> None:
        for value, groups in zip(values, members, strict=True):
            if not math.isfinite(value):
                ids = ", ".join(group.id for group in groups[:20]) + (", ..." if len(groups) > 20 else "")
                raise TrainingError(
                    f"{self.job.objective}: {what} is {value} at step {step + 1} of {len(self.batches)}, rows: {ids}. "
                    f"Look at these rows, or lower {self.job.objective}.learning_rate ({self.config.learning_rate:g})"
                )

    def _check_step_0(self, dpo_term: float) -> None:
        """Where policy and reference are the same model, DPO starts at ln 2 or something is silently wrong."""
        self.metrics["step_0_dpo_loss"] = dpo_term
        assert self.job.reference is not None
        same = weights_digest(self.job.reference) == weights_digest(self.job.checkpoint)
        if same and not abs(dpo_term - LN_2) <= STEP_0_TOLERANCE[self.config.dtype]:
            raise TrainingError(
                f"DPO starts at {dpo_term:.5f}, not at ln 2 = {LN_2:.5f}, although the reference is the model it "
                f"starts from ({self.job.reference}): the reference logprobs are wrong. Delete {self.job.out_dir} and "
                "run again; where it comes back, this is a defect of alignloop"
            )

    # ---- what is kept -----------------------------------------------------------------------------------------

    def _save(self, step: int, points: ResumePoints, module: nn.Module, optimizer: Any, runner: RowRunner) -> None:
        if step in self.kept_steps:
            model: Any = self.accelerator.unwrap_model(module)
            save_checkpoint(model.model, self.checkpoint_path(step), companions=self.job.checkpoint)
        if step % self.config.save_every_steps == 0 and step < len(self.batches):
            model = self.accelerator.unwrap_model(module)
            points.save(step, model=model.state_dict(), optimizer=optimizer.state_dict(), rows=runner.rows)

    def _restore(self, points: ResumePoints, module: nn.Module, optimizer: Any, runner: RowRunner) -> int:
        """Steps already done: 0, or those of the last resume point, whose state is then in place."""
        state = points.load()
        if state is None:
            return 0
        self.accelerator.unwrap_model(module).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        runner.rows = min(runner.rows, state["rows"])
        self.metrics |= self.log.first_step_metrics()
        self.progress.say(f"  {self.job.objective}: going on after step {state['step']} of {len(self.batches)}")
        return int(state["step"])

    @torch.no_grad()
    def _evaluate(self, module: nn.Module, runner: RowRunner, step_loss: StepLoss) -> dict[str, float]:
        """Loss and metrics on the held-out groups, as one big step; nothing where there are none."""
        if not self.job.eval_groups:
            return {}
        counts = count_step(self.job.eval_groups)
        totals: dict[str, float] = {}
        for batch, output, numbers in runner.outputs(module, self.job.eval_groups):
            loss, metrics = step_loss(output, batch=batch, counts=counts, group_numbers=numbers)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals


def _resume_key(job: TrainJob) -> str:
    return key_of(
        trainer_version=TRAINER_VERSION,
        objective=job.objective,
        config=json.loads(job.config.model_dump_json()),
        seed=job.seed,
        checkpoint=weights_digest(job.checkpoint),
        reference=None if job.reference is None else weights_digest(job.reference),
        groups=groups_digest(job.groups),
    )
