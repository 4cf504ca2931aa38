"""What a pruning rule answers: keep, or drop with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignloop.records import DroppedRow


@dataclass(frozen=True)
class Pruned:
    """A rule's answer: indexes kept (input order), drops (input order), numbers for the manifest."""

    kept: tuple[int, ...]
    dropped: tuple[DroppedRow, ...]
    metrics: dict[str, float]


def drop(row_id: str, rule: str, reason: str, twin: str | None = None, cosine: float | None = None) -> DroppedRow:
    """A row that pruning drops; `twin`: the row it lost to, `cosine`: to the twin, where embeddings were compared."""
    return DroppedRow(id=row_id, stage="prune", rule=rule, reason=reason, twin=twin, cosine=cosine)


def pruned(
    ids: Sequence[str], drops: Mapping[int, DroppedRow], *, metrics: Mapping[str, float] | None = None
) -> Pruned:
    """The answer for N rows from the drops by index; `in == kept + dropped` holds by construction."""
    kept = tuple(index for index in range(len(ids)) if index not in drops)
    assert len(kept) + len(drops) == len(ids), "a drop names a row that is not there"
    return Pruned(kept, tuple(drops[index] for index in sorted(drops)), dict(metrics or {}))
