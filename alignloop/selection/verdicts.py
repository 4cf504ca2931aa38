"""Keep, or (drop, reason): what every pruning step answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """Why a row was dropped; the columns of `DroppedRow` but for the stage.

    `twin`: the row it lost to, where there is one; `cosine`: to the twin, where embeddings were compared.
    """

    id: str
    rule: str
    reason: str
    twin: str | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Pruned:
    """A step's answer: indexes kept (input order), drops (input order), numbers for the manifest."""

    kept: tuple[int, ...]
    dropped: tuple[Drop, ...]
    metrics: dict[str, float]


def pruned(ids: Sequence[str], drops: Mapping[int, Drop], *, metrics: Mapping[str, float] | None = None) -> Pruned:
    """Build the answer from the drops by index; `in == kept + dropped` holds by construction.

    Args:
        ids: N row ids.
        drops: index of a dropped row -> its drop.
        metrics: further numbers.
    """
    assert all(0 <= index < len(ids) for index in drops), "a drop names a row that is not there"
    kept = tuple(index for index in range(len(ids)) if index not in drops)
    counts = {"num_in": float(len(ids)), "num_kept": float(len(kept)), "num_dropped": float(len(drops))}
    return Pruned(kept, tuple(drops[index] for index in sorted(drops)), {**counts, **(metrics or {})})


def check_finite(values: Sequence[float], *, name: str) -> None:
    """Raises ValueError where a value is NaN or infinite: a broken score must not sort anywhere in silence."""
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{index}] is {value}: scores must be finite numbers")
