"""What a training stage left, and what was averaged of it: small JSON files that a person can read too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.artifacts import Artifact
from alignloop.errors import DataError
from alignloop.training.screening import ObjectiveName

SUMMARY_VERSION = 1


class TrainedCheckpoint(BaseModel):
    """One checkpoint that a training stage kept."""

    # A held-out loss may be infinite or NaN: JSON's null would lose which.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    file: str
    """Folder, relative to the stage's."""
    digest: str
    step: int | None = None
    """Optimiser steps trained, of its own training; None where nobody said."""
    variant: int | None = None
    """Counted from 1; None where the stage is trained once, as it is."""
    changed: dict[str, Any] = {}
    """What the variant changes in the stage's config."""
    metrics: dict[str, float] = {}
    """On held-out rows; empty where there are none."""


class TrainSummary(BaseModel):
    """`train_summary.json`: the stage's checkpoints, oldest first, one variant after another."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    summary_version: int = SUMMARY_VERSION
    objective: ObjectiveName
    checkpoints: tuple[TrainedCheckpoint, ...]


class AveragedCheckpoint(TrainedCheckpoint):
    """A checkpoint that could be averaged, with its share in the mean."""

    weight: float
    """Weights of all sum to one; 0: left out."""


class AverageSummary(BaseModel):
    """`averaged.json`: which checkpoints a mean is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    summary_version: int = SUMMARY_VERSION
    checkpoints: tuple[AveragedCheckpoint, ...]


def read_summary(path: Path) -> TrainSummary:
    """The summary of a training stage.

    Raises:
        DataError: the file is none.
    """
    try:
        return TrainSummary.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"{path}: not a summary of a training stage ({error}); name its train_summary.json") from error


def entries_of(checkpoints: Sequence[Artifact], summary: TrainSummary | None) -> list[TrainedCheckpoint]:
    """What the summary says of each checkpoint, known by its digest; without one, its path alone.

    Raises:
        DataError: a checkpoint that the summary does not name.
    """
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
