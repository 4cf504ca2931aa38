"""What a training run is made of: model, rows, optimiser and losses, each built from the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignloop.config.recipe import DpoConfig, RewardConfig, SftConfig
from alignloop.errors import TrainingError
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.digests import groups_digest, key_of, weights_digest
from alignloop.training.forward import CompletionRewards, TokenLogprobs, check_head
from alignloop.training.models import check_vocabulary, free_memory, load_policy, load_reward_model, pad_token_id_of
from alignloop.training.precision import uses_bfloat16
from alignloop.training.reference import MASK_VERSION, load_cached, reference_sums, store
from alignloop.training.row_runner import RowRunner
from alignloop.training.screening import ObjectiveName
from alignloop.training.step_losses import DpoStep, RewardStep, SftStep, StepLoss

TrainConfig = RewardConfig | SftConfig | DpoConfig


@dataclass(frozen=True)
class TrainJob:
    """The arguments of `train`, after screening."""

    objective: ObjectiveName
    groups: Sequence[PromptGroup]
    eval_groups: Sequence[PromptGroup]
    checkpoint: Path
    reference: Path | None
    out_dir: Path
    config: TrainConfig
    seed: int
    progress: Progress

    @property
    def all_groups(self) -> list[PromptGroup]:
        """Training groups, then held-out ones."""
        return [*self.groups, *self.eval_groups]


def build_module(job: TrainJob, checkpoint: Path, *, device: torch.device) -> nn.Module:
    """The model at `checkpoint` as the objective sees it, on its device."""
    if isinstance(job.config, RewardConfig):
        model = load_reward_model(checkpoint, seed=job.seed)
        module: nn.Module = CompletionRewards(model, isolate=job.config.isolate)
    else:
        model = load_policy(checkpoint)
        module = TokenLogprobs(model)
    check_vocabulary(model, job.all_groups, checkpoint=checkpoint)
    module.to(device)
    if isinstance(module, TokenLogprobs):
        check_head(module)
    return module


def build_runner(job: TrainJob, module: Any, *, device: torch.device) -> RowRunner:
    """Row size, precision, and packed or separate rows, whichever is exact on this model."""
    groups = job.all_groups
    longest = max(group.longest for group in groups)
    return RowRunner(
        mode=choose_layout(module.model.base_model, longest=longest, progress=job.progress),
        row_tokens=job.config.row_tokens or auto_row_tokens(groups),
        rows=job.config.rows_per_microbatch,
        pad_token_id=pad_token_id_of(module.model),
        device=device,
        bfloat16=uses_bfloat16(job.config.dtype, device=device, progress=job.progress),
        progress=job.progress,
    )


def build_optimizer(job: TrainJob, module: Any) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay."""
    if job.config.gradient_checkpointing:
        module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers recomputes activations in training mode alone; dropout is zero by now.
        module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    param_groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in param_groups if group["params"]]
    return torch.optim.AdamW(used, lr=job.config.learning_rate, fused=True)


def build_losses(job: TrainJob, *, device: torch.device) -> tuple[StepLoss, StepLoss]:
    """The objective on the training groups and on the held-out ones; for DPO this runs the reference model."""
    if job.objective == "reward":
        return RewardStep(), RewardStep()
    if job.objective == "sft":
        return SftStep(), SftStep()
    assert isinstance(job.config, DpoConfig)
    sums = _reference_sums(job, job.config, device=device)
    num_train = len(job.groups)
    return _dpo_step(job.config, sums[:num_train]), _dpo_step(job.config, sums[num_train:])


def _dpo_step(config: DpoConfig, sums: Sequence[tuple[float, ...]]) -> DpoStep:
    return DpoStep(
        reference=sums,
        beta=config.beta,
        nll_coefficient=config.nll_coefficient,
        nll_reduction=config.nll_reduction,
        mask_formatting_tokens=config.mask_formatting_tokens,
    )


def _reference_sums(job: TrainJob, config: DpoConfig, *, device: torch.device) -> list[tuple[float, ...]]:
    """Of training and held-out groups, computed once with the reference model, which then leaves memory."""
    if job.reference is None:
        raise TrainingError("DPO needs a reference model: none was given")
    key = key_of(
        reference=weights_digest(job.reference),
        groups=groups_digest(job.all_groups),
        mask_version=MASK_VERSION,
        mask_formatting_tokens=config.mask_formatting_tokens,
        dtype=config.dtype,
    )
    path = job.out_dir / "reference_logprobs.json"
    cached = load_cached(path, key=key)
    if cached is not None:
        return cached
    module = build_module(job, job.reference, device=device)
    assert isinstance(module, TokenLogprobs)
    runner = build_runner(job, module, device=device)
    sums = reference_sums(module, job.all_groups, runner=runner, mask_formatting_tokens=config.mask_formatting_tokens)
    store(path, sums, key=key)
    del module
    free_memory()
    return sums
