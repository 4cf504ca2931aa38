"""Semantic deduplication (The Llama 3 Herd of Models, 4.2.3; SemDeDup, Abbas et al. 2023).

embeddings --unit length, k-means--> clusters --by quality x difficulty, best first--> greedy cosine threshold
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignloop.selection.verdicts import Drop, Pruned, check_finite, pruned

Floats = NDArray[np.float32]
Indexes = NDArray[np.intp]
_BLOCK = 1024
# float32 dot products of equal unit vectors fall short of 1 by about this much.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Twin:
    """A dropped row, the row it lost to, and their cosine."""

    dropped: int
    twin: int
    cosine: float


@dataclass(frozen=True)
class DedupResult:
    """Indexes kept (input order), twins (by dropped index), numbers for the manifest."""

    kept: tuple[int, ...]
    twins: tuple[Twin, ...]
    metrics: dict[str, float]

    def verdicts(self, ids: Sequence[str]) -> Pruned:
        """The same with the rows' ids, as the other pruning steps answer."""
        drops = {
            twin.dropped: Drop(
                ids[twin.dropped], "semantic_dedup", f"cosine {twin.cosine:.4f} to {ids[twin.twin]}", ids[twin.twin]
            )
            for twin in self.twins
        }
        return pruned(ids, drops, metrics=self.metrics)


def semantic_dedup(
    embeddings: NDArray[np.floating],
    *,
    priorities: Sequence[float],
    threshold: float,
    rows_per_cluster: int,
    compare_to: Literal["seen", "kept"] = "seen",
    seed: int = 0,
) -> DedupResult:
    """Drop rows too near to a better one of their cluster. Same input and seed, same answer.

    Args:
        embeddings: [N, D], any lengths; a zero vector is near to nothing.
        priorities: N numbers, higher first (quality x difficulty); ties go to the first row.
        threshold: a cosine that reaches it drops the later row.
        rows_per_cluster: N / this many clusters, rounded up. Rows of different clusters are never compared.
        compare_to: `seen` compares with all earlier rows of the cluster (the paper), `kept` with those kept.

    Raises:
        ValueError: a value that is not finite, or shapes that do not fit.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(priorities):
        raise ValueError(f"embeddings of shape {embeddings.shape} do not fit {len(priorities)} priorities")
    check_finite(priorities, name="priorities")
    units = _unit_rows(embeddings)
    twins: list[Twin] = []
    clusters = _clusters(units, rows_per_cluster=rows_per_cluster, seed=seed)
    for members in clusters:
        order = np.array(sorted(members, key=lambda index: (-priorities[index], index)), dtype=np.intp)
        search = _against_seen if compare_to == "seen" else _against_kept
        for row, twin, cosine in search(units[order], threshold - _ROUNDING):
            twins.append(Twin(int(order[row]), int(order[twin]), min(max(cosine, -1.0), 1.0)))
    dropped = {twin.dropped for twin in twins}
    kept = tuple(index for index in range(len(units)) if index not in dropped)
    metrics = {"num_clusters": float(len(clusters)), "largest_cluster": float(max(map(len, clusters), default=0))}
    return DedupResult(kept, tuple(sorted(twins, key=lambda twin: twin.dropped)), metrics)


def _unit_rows(embeddings: NDArray[np.floating]) -> Floats:
    # Squares of large finite float32 values overflow: norms are taken in float64.
    rows = embeddings.astype(np.float64)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"embeddings[{bad}] holds NaN or infinite values")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Floats = (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    return units


def _clusters(units: Floats, *, rows_per_cluster: int, seed: int) -> list[Indexes]:
    """Non-empty clusters of row indexes, by label."""
    num_clusters = math.ceil(len(units) / rows_per_cluster)
    if num_clusters <= 1:
        return [np.arange(len(units))] if len(units) else []
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    # With several threads the order of sums, and so the clusters, would change from run to run.
    with threadpool_limits(limits=1):
        model = MiniBatchKMeans(num_clusters, random_state=seed, batch_size=4096, n_init=3)
        labels = model.fit_predict(units)
    return [members for label in range(num_clusters) if len(members := np.flatnonzero(labels == label))]


def _against_seen(rows: Floats, threshold: float) -> Iterator[tuple[int, int, float]]:
    """(row, most similar earlier row, cosine) for every row that has one at the threshold; memory block x N."""
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        cosines = rows[start:stop] @ rows[:stop].T
        cosines[:, start:][np.triu_indices(stop - start)] = -np.inf  # a row is not earlier than itself
        nearest = cosines.argmax(axis=1)
        best = cosines[np.arange(stop - start), nearest]
        for offset in np.flatnonzero(best >= threshold):
            yield start + int(offset), int(nearest[offset]), float(best[offset])


def _against_kept(rows: Floats, threshold: float) -> Iterator[tuple[int, int, float]]:
    """As `_against_seen`, but earlier rows count only where they were kept."""
    kept: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        cosines = rows[start:stop] @ rows[:stop].T
        for row in range(start, stop):
            near = cosines[row - start, kept]
            place = int(near.argmax()) if kept else 0
            if kept and near[place] >= threshold:
                yield row, kept[place], float(near[place])
            else:
                kept.append(row)
