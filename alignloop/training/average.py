"""Model averaging: the weighted mean of several checkpoints' weights (The Llama 3 Herd of Models, section 4.1.5).

What can be averaged, and what was, is recorded in small JSON files that a person can read too.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignloop.artifacts import Artifact
from alignloop.config.training import AverageConfig, ObjectiveName
from alignloop.errors import DataError, ModelError, UserError
from alignloop.training.checkpoints import written_aside


class _Summary(BaseModel):
    # A held-out loss may be infinite or NaN: JSON's null would lose which.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class TrainedCheckpoint(_Summary):
    """One checkpoint that a training stage kept."""

    file: str
    """Folder, relative to the stage's."""
    digest: str
    step: int | None = None
    """Optimiser steps trained, of its own training; None where it is not known."""
    variant: int | None = None
    """Counted from 1; None where the stage is trained once, as it is."""
    changed: dict[str, Any] = {}
    """What the variant changes in the stage's config."""
    metrics: dict[str, float] = {}
    """On held-out rows; empty where there are none."""


class TrainSummary(_Summary):
    """`train_summary.json`: the stage's checkpoints, oldest first, one variant after another."""

    summary_version: int = 1
    objective: ObjectiveName
    checkpoints: tuple[TrainedCheckpoint, ...]


class AveragedCheckpoint(TrainedCheckpoint):
    """A checkpoint that could be averaged, with its share in the mean."""

    weight: float
    """Weights of all sum to one; 0: left out."""


class AverageSummary(_Summary):
    """`averaged.json`: which checkpoints a mean is made of."""

    summary_version: int = 1
    checkpoints: tuple[AveragedCheckpoint, ...]


def read_summary(path: Path) -> TrainSummary:
    """Raises DataError where the file is no summary of a training stage."""
    try:
        return TrainSummary.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"{path}: not a summary of a training stage ({error}); name its train_summary.json") from error


def entries_of(checkpoints: Sequence[Artifact], summary: TrainSummary | None) -> list[TrainedCheckpoint]:
    """The summary's entry of each checkpoint, known by its digest; without a summary, its path alone."""
    if summary is None:
        return [TrainedCheckpoint(file=str(a.path), digest=a.digest) for a in checkpoints]
    known = list(summary.checkpoints)
    entries = []
    for artifact in checkpoints:
        entry = next((entry for entry in known if entry.digest == artifact.digest), None)
        if entry is None:
            raise DataError(
                f"{artifact.path}: the summary does not name this checkpoint; it is of "
                f"{', '.join(entry.file for entry in summary.checkpoints)}"
            )
        # Two variants may end in the same bytes: each entry is taken once.
        known.remove(entry)
        entries.append(entry)
    return entries


# ---- which ones -----------------------------------------------------------------------------------------------------


def shares_of(
    metrics: Sequence[Mapping[str, float]], *, config: AverageConfig, section: str = "averaging"
) -> tuple[float, ...]:
    """The share of each checkpoint in the mean: they sum to one, and what is not chosen has 0.

    Args:
        metrics: of each checkpoint on held-out rows, in order.
        section: the recipe's, for messages.

    Raises:
        UserError: not one weight for each that is averaged, or nothing to choose by.
    """
    chosen: Sequence[int] = range(len(metrics))
    if config.choose is not None and config.choose < len(metrics):
        chosen = best_checkpoints(metrics, choose=config.choose, metric=config.metric, section=section)
    if config.weights is not None and len(config.weights) != len(chosen):
        raise UserError(
            f"{section}.weights: {len(config.weights)} weights for {len(chosen)} checkpoints to average: give one "
            "each, or leave weights out (a stage of few steps keeps fewer than num_checkpoints)"
        )
    try:
        shares = dict(zip(chosen, normalised_weights(config.weights, count=len(chosen)), strict=True))
    except ValueError as error:
        raise UserError(f"{section}: {error}") from error
    return tuple(shares.get(number, 0.0) for number in range(len(metrics)))


def best_checkpoints(
    metrics: Sequence[Mapping[str, float]], *, choose: int, metric: str, section: str = "averaging"
) -> Sequence[int]:
    """Indices of the best: lowest loss or highest accuracy on held-out rows, the later one of equals; in order."""
    if any(metric not in each for each in metrics):
        raise UserError(
            f"{section}.choose: the checkpoints have no {metric} on held-out rows to choose by - hold rows out "
            "(data.heldout_fraction above 0), give the stage's train_summary.json where it is run alone, or leave "
            "choose out"
        )
    sign = 1.0 if metric == "loss" else -1.0
    values = [math.inf if math.isnan(each[metric]) else sign * each[metric] for each in metrics]
    return sorted(sorted(range(len(metrics)), key=lambda number: (values[number], -number))[:choose])


def normalised_weights(weights: Sequence[float] | None, *, count: int) -> tuple[float, ...]:
    """Weights that sum to one; None: uniform. A ValueError where there is nothing to average."""
    if count < 1:
        raise ValueError("nothing to average: no checkpoint given")
    if weights is None:
        return (1.0 / count,) * count
    if any(weight < 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"weights must not be negative and must not all be zero, got {tuple(weights)}")
    return tuple(weight / sum(weights) for weight in weights)


# ---- their mean -----------------------------------------------------------------------------------------------------


def average_tensors(tensors: Sequence[Tensor], *, weights: Sequence[float], name: str) -> Tensor:
    """Weighted mean of equally shaped tensors, in the dtype of the first.

    Summed in float64, so that averaging equal tensors gives them back bit for bit. Integer and bool tensors (step
    counters, masks) have no mean: the last one is copied.

    Raises:
        ValueError: shapes differ; the message names `name`.
    """
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"{name}: shapes differ between checkpoints: {sorted(shapes)}")
    if not tensors[0].is_floating_point():
        return tensors[-1].clone()
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)


def average_checkpoints(checkpoints: Sequence[Path], *, out_dir: Path, weights: Sequence[float] | None = None) -> Path:
    """Weighted mean of checkpoints of one architecture, a complete directory.

    One tensor of every checkpoint is in memory at a time, and one output file. Averaging one checkpoint copies it.
    Config and tokenizer, and the names of files and tensors, are the last checkpoint's. Weights are scaled to sum to
    one; None: uniform.

    Raises:
        ModelError: the checkpoints do not fit together, or one holds no safetensors.
    """
    try:
        shares = normalised_weights(weights, count=len(checkpoints))
        with written_aside(out_dir) as partial:
            for path in sorted(checkpoints[-1].iterdir()):
                if path.is_file() and (path.suffix != ".safetensors" or len(checkpoints) == 1):
                    shutil.copyfile(path, partial / path.name)
            if len(checkpoints) > 1:
                _write_mean(checkpoints, partial, shares)
    except ValueError as error:
        raise ModelError(f"averaging {', '.join(str(path) for path in checkpoints)}: {error}") from error
    return out_dir


def _write_mean(checkpoints: Sequence[Path], target: Path, shares: Sequence[float]) -> None:
    located = [_tensor_files(path) for path in checkpoints]
    for path, names in zip(checkpoints, located, strict=True):
        missing, extra = located[-1].keys() - names, names.keys() - located[-1]
        if missing or extra:
            example = ", ".join(sorted(missing | extra)[:3])
            raise ValueError(f"{path}: {len(missing)} tensors missing, {len(extra)} unknown (such as {example})")
    for out_file in sorted(set(located[-1].values())):
        with ExitStack() as stack:
            files = sorted({path for names in located for path in names.values()})
            opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in files}
            averaged = {
                name: average_tensors(
                    [opened[names[name]].get_tensor(name) for names in located], weights=shares, name=name
                )
                for name, file in located[-1].items()
                if file == out_file
            }
            save_file(averaged, target / out_file.name, metadata={"format": "pt"})


def _tensor_files(checkpoint: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{checkpoint}: no safetensors files to average")
    names: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names.update(dict.fromkeys(file.keys(), path))
    return names
