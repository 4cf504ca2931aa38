"""DPO's reference model: its sums over each completion, computed once, before the first step; then it leaves memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from alignloop.artifacts import write_text
from alignloop.config.training import DpoConfig
from alignloop.errors import TrainingError
from alignloop.objectives.dpo import masked_sums
from alignloop.packing.groups import PromptGroup
from alignloop.training.job import REFERENCE_CACHE, TrainJob, groups_digest, key_of, weights_digest
from alignloop.training.processes import Processes, wrapped
from alignloop.training.rows import ForwardPasses, forward_passes, free_memory
from alignloop.training.trainee import build_module, build_runner

MASK_VERSION = 1
"""Raise when the meaning of the formatting mask or of the sums changes: cached sums of old masks are then not used."""


def reference_sums_of(job: TrainJob, config: DpoConfig, *, processes: Processes) -> list[tuple[float, ...]]:
    """Of training and held-out groups, as `reference_sums`; cached in the job's folder.

    Processes share the rows out as those of a step, and every one gets all the sums.

    Raises:
        TrainingError: the job has no reference.
    """
    reference = job.reference
    if reference is None:
        raise TrainingError(f"DPO (loss: {config.loss}) needs a reference model: none was given")
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
    """Per group the masked sum of each completion, in order; 0 for those that `passes` leaves out."""
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
