"""What a training trains, built from its job, and one optimiser step of it.

A step takes gradients from all its microbatches, over all processes, then the update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignloop.errors import ModelError, TrainingError
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, auto_row_tokens, packed_num_tokens
from alignloop.training.adapters import add_adapter, trained_in_words
from alignloop.training.base_weights import check_can_quantize
from alignloop.training.job import TrainJob
from alignloop.training.model import (
    CompletionRewards,
    Quantize,
    TokenLogprobs,
    backbone_of,
    check_head,
    check_vocabulary,
    load_policy,
    load_reward_model,
    pad_token_id_of,
    uses_bfloat16,
)
from alignloop.training.new_tokens import load_new_tokens
from alignloop.training.objectives import OBJECTIVES, StepLoss, count_step
from alignloop.training.processes import Processes, without_sync, wrapped
from alignloop.training.rows import (
    TRAINING_REMEDY,
    RowRunner,
    forward_passes,
    loading_memory,
    remedy_of,
    shared_microbatches,
    stepping_memory,
)

SHOWN_ROWS = 20


def build_module(job: TrainJob, checkpoint: Path, *, device: torch.device, trains: bool = True) -> nn.Module:
    """The model at `checkpoint` as the objective sees it, on its device.

    `trains` is False for the reference model, which has no adapter. It is held in the same precision, so that a policy
    that starts from it starts as it.

    Raises:
        ModelError: the checkpoint cannot be loaded, does not fit the token ids or into memory, or takes no such
            adapter.
    """
    lora = job.config.lora
    quantize: Quantize = "none" if lora is None else lora.quantize
    if quantize != "none":
        where = f"{job.objective}.lora.quantize"
        check_can_quantize(where)
        if device.type != "cuda":
            raise ModelError(f"{where}: nf4 weights are not sharded over processes: set training.accelerate: ddp")
    dtype = _held_in(job, device=device)
    with loading_memory(checkpoint, dtype=dtype, device=device, remedy=remedy_of(job)):
        if OBJECTIVES[job.objective].scores:
            model = load_reward_model(checkpoint, seed=job.seed, dtype=dtype, quantize=quantize, device=device)
            module: nn.Module = CompletionRewards(model)
        else:
            model = load_policy(checkpoint, dtype=dtype, quantize=quantize, device=device)
            module = TokenLogprobs(model)
        check_vocabulary(model, job.all_groups, checkpoint=checkpoint)
        if lora is not None and trains:
            new = [token.id for token in load_new_tokens(checkpoint)]
            add_adapter(model, lora, seed=job.seed, new_token_ids=new)
            job.progress.say(f"  {job.objective}: {trained_in_words(model)}")
        module.to(device)
        if isinstance(module, TokenLogprobs):
            check_head(module)
    return module


def _held_in(job: TrainJob, *, device: torch.device) -> torch.dtype:
    """Weights that train are float32; under an adapter they are frozen and need no more than the forward pass uses.

    On a CPU (and where they are sharded from there, which needs one dtype) they stay float32.
    """
    frozen = job.config.lora is not None and job.config.dtype == "bfloat16" and device.type != "cpu"
    return torch.bfloat16 if frozen else torch.float32


def build_runner(job: TrainJob, module: Any, *, processes: Processes) -> RowRunner:
    """Row size, precision, and packed rows where they are wanted and exact on this model, else separate ones."""
    longest = max(group.longest if job.isolate else group.num_tokens for group in job.all_groups)
    backbone = backbone_of(module.model)
    mode: LayoutMode = job.training.layout
    if mode == "packed":
        mode = processes.of_first(lambda: choose_layout(backbone, longest=longest, progress=job.progress))
    if mode == "packed" and not job.isolate:
        mode = "joined"
    elif not job.isolate:
        job.progress.say("  reward.isolate: false changes nothing on separate rows: each completion is read alone")
    return RowRunner(
        mode=mode,
        row_tokens=job.config.row_tokens or auto_row_tokens(max(packed_num_tokens(group) for group in job.all_groups)),
        rows=job.rows,
        pad_token_id=pad_token_id_of(module.model),
        device=processes.device,
        bfloat16=uses_bfloat16(job.config.dtype, device=processes.device, progress=job.progress),
        progress=job.progress,
    )


# ---- one step -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trainee:
    """The model while it trains, and what trains it; `module` is as `wrapped` over the processes."""

    job: TrainJob
    processes: Processes
    module: nn.Module
    runner: RowRunner
    optimizer: torch.optim.Optimizer
    train_loss: StepLoss
    eval_loss: StepLoss

    def step(self, numbers: Sequence[int], *, learning_rate: float, step: str) -> dict[str, float]:
        """Train on the groups with these numbers in the data; the step's row of the log, the same in every process.

        The row has the gradient's norm before clipping, tokens of the step's rows as packed, the objective's metrics.
        `step` is `step 3 of 80`, for messages.

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
        return {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": round(num_tokens / (time.monotonic() - started), 1),
            "num_tokens": num_tokens,
            **metrics,
        }

    def _gradients(
        self, numbers: Sequence[int], groups: Sequence[PromptGroup], step: str
    ) -> tuple[float, dict[str, float]]:
        """Gradients of the whole step; its loss and metrics.

        Every loss is divided by the counts of the whole step, so gradients are to be summed over the processes; what
        wraps the module takes their mean instead, so the loss is multiplied by the number of processes.
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


def build_trainee(job: TrainJob, *, processes: Processes) -> Trainee:
    """The model, wrapped over the processes, and what trains it: AdamW, under which biases and norms do not decay."""
    train_loss, eval_loss = OBJECTIVES[job.objective].losses(job, processes)
    module: Any = build_module(job, job.checkpoint, device=processes.load_device)
    runner = build_runner(job, module, processes=processes)
    if job.config.gradient_checkpointing:
        module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers recomputes activations in training mode alone; dropout is zero by now.
        module.train()
    dtype = _held_in(job, device=processes.load_device)
    with loading_memory(job.checkpoint, dtype=dtype, device=processes.device, remedy=remedy_of(job)):
        module = wrapped(module, processes=processes, bfloat16=runner.bfloat16)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    param_groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in param_groups if group["params"]]
    optimizer = torch.optim.AdamW(used, lr=job.config.learning_rate, fused=True)
    return Trainee(job, processes, module, runner, optimizer, train_loss, eval_loss)


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
