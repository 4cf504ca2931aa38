"""What a training is made of, built from its job: model, rows, optimiser, and the reference model's sums (DPO)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignloop.artifacts import write_text
from alignloop.config.training import DpoConfig
from alignloop.errors import ModelError, TrainingError
from alignloop.objectives.dpo import masked_sums
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens, packed_num_tokens
from alignloop.training.adapters import add_adapter, trained_in_words
from alignloop.training.base_weights import check_can_quantize
from alignloop.training.job import REFERENCE_CACHE, TrainJob, groups_digest, key_of, weights_digest
from alignloop.training.memory import free_memory, loading_memory, remedy_of
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
from alignloop.training.objectives import OBJECTIVES
from alignloop.training.processes import Processes, wrapped
from alignloop.training.rows import ForwardPasses, RowRunner, forward_passes

MASK_VERSION = 1
"""Raise when the meaning of the formatting mask or of the sums changes: cached sums of old masks are then not used."""


def build_module(job: TrainJob, checkpoint: Path, *, device: torch.device, trains: bool = True) -> nn.Module:
    """The model at `checkpoint` as the objective sees it, on its device.

    Args:
        trains: False for the reference model, which has no adapter. It is held in the same precision, so that a policy
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
    dtype = held_in(job, device=device)
    with loading_memory(checkpoint, dtype=dtype, device=device, remedy=remedy_of(job)):
        if OBJECTIVES[job.objective].scores:
            model = load_reward_model(checkpoint, seed=job.seed, dtype=dtype, quantize=quantize, device=device)
            module: nn.Module = CompletionRewards(model, isolate=job.isolate)
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


def held_in(job: TrainJob, *, device: torch.device) -> torch.dtype:
    """Weights that train are float32; under an adapter they are frozen and need no more than the forward pass uses.

    On a CPU (and where they are sharded from there, which wants one dtype) they stay float32.
    """
    frozen = job.config.lora is not None and job.config.dtype == "bfloat16" and device.type != "cpu"
    return torch.bfloat16 if frozen else torch.float32


def build_runner(job: TrainJob, module: Any, *, processes: Processes) -> RowRunner:
    """Row size, precision, and packed or separate rows, whichever is exact on this model."""
    longest = max(group.longest for group in job.all_groups)
    backbone = backbone_of(module.model)
    mode = processes.of_first(lambda: choose_layout(backbone, longest=longest, progress=job.progress))
    if mode == "separate" and not job.isolate:
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


def checkpoint_gradients(module: Any) -> None:
    """Compute activations again in the backward pass; to be set before a module is wrapped."""
    module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers recomputes activations in training mode alone; dropout is zero by now.
    module.train()


def build_optimizer(job: TrainJob, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the parameters of the (wrapped) module that train; biases and norms do not decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    param_groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in param_groups if group["params"]]
    return torch.optim.AdamW(used, lr=job.config.learning_rate, fused=True)


# ---- DPO's reference model ------------------------------------------------------------------------------------------


def reference_sums_of(job: TrainJob, config: DpoConfig, *, processes: Processes) -> list[tuple[float, ...]]:
    """Of training and held-out groups, as `reference_sums`; cached in the job's folder.

    Processes share the rows out as those of a step, and every one gets all the sums.

    Raises:
        TrainingError: the job has no reference.
    """
    reference = job.reference
    if reference is None:
        raise TrainingError("DPO needs a reference model: none was given")
    path = job.out_dir / REFERENCE_CACHE
    key = processes.of_first(lambda: _reference_key(job, config, reference))
    cached = processes.of_first(lambda: _cached_sums(path, key=key))
    if cached is not None:
        return cached
    module = build_module(job, reference, device=processes.load_device, trains=False)
    runner = build_runner(job, module, processes=processes)
    sums = reference_sums(
        wrapped(module, processes=processes, bfloat16=runner.bfloat16, trains=False),
        job.all_groups,
        passes=forward_passes(runner, processes=processes),
        mask_formatting_tokens=config.mask_formatting_tokens,
    )
    del module
    free_memory()
    # Zero in every process but the one that had the row.
    total = iter(processes.totals([value for row in sums for value in row]))
    sums = [tuple(next(total) for _ in row) for row in sums]
    if processes.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, "sums": sums}))
    return sums


def reference_sums(
    module: nn.Module, groups: Sequence[PromptGroup], *, passes: ForwardPasses, mask_formatting_tokens: bool
) -> list[tuple[float, ...]]:
    """Per group the model's masked sum of each completion, in the group's order; 0 for those that `passes` leaves out.

    Args:
        module: `TokenLogprobs`, or what wraps it.
    """
    sums: list[list[float]] = [[0.0] * len(group.completions) for group in groups]
    with passes.progress.task("reference logprobs", total=len(groups), unit="pairs") as advance:
        for batch, logprobs, numbers in passes.outputs(module, groups):
            totals = masked_sums(
                logprobs,
                completion_index=batch.completion_index,
                formatting_mask=batch.formatting_mask,
                num_completions=len(batch.ranks),
                mask_formatting_tokens=mask_formatting_tokens,
            ).tolist()
            owners = batch.owners()
            for (group, completion), total in zip(owners, totals, strict=True):
                sums[numbers[group]][completion] = total
            advance(len({group for group, _ in owners}))
    return [tuple(row) for row in sums]


def _cached_sums(path: Path, *, key: str) -> list[tuple[float, ...]] | None:
    """Sums cached under `key`, or None where there are none or of something else."""
    if not path.is_file():
        return None
    cached = json.loads(path.read_text())
    return [tuple(row) for row in cached["sums"]] if cached["key"] == key else None


def _reference_key(job: TrainJob, config: DpoConfig, reference: Path) -> str:
    return key_of(
        reference=weights_digest(reference),
        groups=groups_digest(job.all_groups),
        mask_version=MASK_VERSION,
        mask_formatting_tokens=config.mask_formatting_tokens,
        dtype=config.dtype,
        frozen=None if config.lora is None else config.lora.quantize,
    )
