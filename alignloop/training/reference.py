"""Logprobs of DPO's reference model: computed once, before the policy is loaded, and cached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from alignloop.objectives.dpo import masked_sums
from alignloop.packing.groups import PromptGroup
from alignloop.training.sharing import Outputs

MASK_VERSION = 1
"""Raise when the meaning of the formatting mask or of the sums changes: cached sums of old masks are then not used."""


def reference_sums(
    module: nn.Module, groups: Sequence[PromptGroup], *, runner: Outputs, mask_formatting_tokens: bool
) -> list[tuple[float, ...]]:
    """Per group the reference model's masked sum of each completion, in the group's order; 0 where `runner` runs not.

    Args:
        module: `TokenLogprobs`, or what wraps it.
    """
    sums: list[list[float]] = [[0.0] * len(group.completions) for group in groups]
    with runner.progress.task("reference logprobs", total=len(groups), unit="pairs") as advance:
        for batch, logprobs, numbers in runner.outputs(module, groups):
            totals = masked_sums(
                logprobs,
                completion_index=batch.completion_index,
                formatting_mask=batch.formatting_mask,
                num_completions=len(batch.ranks),
                mask_formatting_tokens=mask_formatting_tokens,
            ).tolist()
            places = list(zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True))
            for (group, completion), total in zip(places, totals, strict=True):
                sums[numbers[group]][completion] = total
            advance(len({group for group, _ in places}))
    return [tuple(row) for row in sums]


def load_cached(path: Path, *, key: str) -> list[tuple[float, ...]] | None:
    """Sums cached under `key`, or None where there are none or of something else."""
    if not path.is_file():
        return None
    cached = json.loads(path.read_text())
    return [tuple(row) for row in cached["sums"]] if cached["key"] == key else None


def store(path: Path, sums: Sequence[tuple[float, ...]], *, key: str) -> None:
    """Write aside, then rename: a cache is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "sums": sums}))
    partial.replace(path)
