"""Step 6, semantic deduplication (4.2.3; SemDeDup, Abbas et al. 2023): of dialogs that mean the same the best stays.

Within a cluster, sorted by quality x difficulty, a row is kept where its cosine to all rows before it stays under a
threshold.

embeddings --unit length, k-means--> clusters --by quality x difficulty, best first--> greedy cosine threshold

The result depends on the rows alone: not on block sizes, threads or the order of clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.items import Item
from alignloop.pruning.quality import priorities_of
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, lacking, left, pruned
from alignloop.pruning.vectors import (
    BLOCK,
    Floats,
    Indexes,
    Labels,
    UnitRows,
    blocks,
    cores,
    in_threads,
    nearest_clusters,
    one_blas_thread,
    reach,
)
from alignloop.sampling.best_of_k import check_finite

CompareTo = Literal["seen", "kept"]
_BLOCK = 1024
# float32 unit vectors of equal direction have a dot product that falls short of 1 by about this much.
ROUNDING = 1e-6


class Twin(NamedTuple):
    dropped: int
    twin: int
    cosine: float


@dataclass(frozen=True)
class DedupResult:
    """Indexes kept (input order), twins (by dropped index), and [N] the row's cluster, -1 for a zero vector."""

    kept: tuple[int, ...]
    twins: tuple[Twin, ...]
    clusters: Labels = field(compare=False)

    @property
    def metrics(self) -> dict[str, float]:
        sizes = np.bincount(self.clusters[self.clusters >= 0])
        return {
            "num_clusters": float(np.count_nonzero(sizes)),
            "largest_cluster": float(sizes.max(initial=0)),
            "num_zero_vectors": float(np.count_nonzero(self.clusters < 0)),
        }

    def verdict(self, ids: Sequence[str]) -> Pruned:
        drops = {}
        for each in self.twins:
            twin, reason = ids[each.twin], f"cosine {each.cosine:.4f} to {ids[each.twin]}"
            drops[each.dropped] = drop(ids[each.dropped], "semantic_dedup", reason, twin, each.cosine)
        return pruned(ids, drops, metrics=self.metrics)


def semantic_dedup(
    embeddings: NDArray[np.floating],
    *,
    priorities: Sequence[float] | NDArray[np.floating],
    threshold: float,
    rows_per_cluster: int,
    compare_to: CompareTo = "seen",
    seed: int = 0,
    num_nearest: int = 1,
    num_threads: int | None = None,
) -> DedupResult:
    """Drop rows too near to a better one of their cluster. Same input and seed, same result, whatever the threads.

    A row is dropped where a row before it in its cluster, by priority, has a cosine to it that reaches the threshold
    (to 1e-6); the best of those is its twin. Memory beside `embeddings` is a few blocks and some 50 bytes a row.

    Args:
        embeddings: [N, D], any lengths; a zero vector is near to nothing.
        priorities: N numbers, higher first (quality x difficulty); ties go to the first row.
        rows_per_cluster: there are N / this many clusters, rounded up.
        compare_to: `seen` compares with all earlier rows of the cluster (the paper), `kept` with those kept.
        num_nearest: two rows are compared where they share one of their this many nearest clusters. 1: rows of
            different clusters are never compared (the paper), and near-duplicates on two sides of a border are both
            kept. More only with `seen`; time within clusters grows with its square.
        num_threads: default: all cores of the process.

    Raises:
        ValueError: a value that is not finite, or shapes that do not fit.
    """
    ranked = np.asarray(priorities, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) != len(ranked):
        raise ValueError(f"embeddings of shape {embeddings.shape} do not fit {len(ranked)} priorities")
    if not np.isfinite(ranked).all():
        check_finite(ranked.tolist(), name="priorities")
    # What is kept in one of several clusters would depend on the others: the config refuses it.
    assert num_nearest == 1 or compare_to == "seen"
    num_threads = num_threads or cores()
    with one_blas_thread():
        units = UnitRows(embeddings, num_threads=num_threads)
        labels = nearest_clusters(
            units, rows_per_cluster=rows_per_cluster, num_nearest=num_nearest, seed=seed, num_threads=num_threads
        )
        order = np.argsort(-ranked, kind="stable")

        def search(rows: Indexes) -> tuple[Indexes, Indexes]:
            dropped, twins = find_twins(units.take(rows), threshold=threshold, compare_to=compare_to)
            return rows[dropped], rows[twins]

        dropped, twins = _best_twins(in_threads(search, members(labels, order), num_threads=num_threads), order)
        cosines = np.clip(units.cosines(dropped, twins), -1.0, 1.0)
    is_kept = np.ones(len(units), dtype=bool)
    is_kept[dropped] = False
    found = tuple(map(Twin, dropped.tolist(), twins.tolist(), cosines.tolist()))
    return DedupResult(tuple(np.flatnonzero(is_kept).tolist()), found, np.ascontiguousarray(labels[:, 0]))


def members(labels: Labels, order: Indexes) -> list[Indexes]:
    """Rows of every non-empty cluster, in the order of `order` (best first), the largest cluster first.

    `labels` [N, m] are the clusters of each row, -1 for none.
    """
    position = np.argsort(labels[order].ravel(), kind="stable")  # stable: the best stay first
    names = labels[order].ravel()[position]
    rows = np.repeat(order, labels.shape[1])[position]
    starts = np.flatnonzero(np.diff(names, prepend=-1))
    clusters = np.split(rows, starts)[1:] if len(starts) else []
    return sorted(clusters, key=len, reverse=True)


def find_twins(rows: Floats, *, threshold: float, compare_to: CompareTo) -> tuple[Indexes, Indexes]:
    """Dropped rows of one cluster (unit [n, D], best first) and their twins.

    Block after block: the rows still left are compared with a block's rows, and the first that is near enough is the
    twin. A dropped row is not compared again, so that a cluster full of copies costs little.
    """
    bound = threshold - ROUNDING
    twin = np.full(len(rows), -1, dtype=np.intp)
    for part in blocks(len(rows), _BLOCK):
        block = np.arange(part.start, part.stop)
        alive = block[twin[block] < 0]
        sources = block if compare_to == "seen" else alive
        hits = reach(rows[alive], rows[sources], bound) & (sources[None, :] < alive[:, None])
        if compare_to == "seen":
            _note(twin, alive, sources, hits)
        else:
            _one_by_one(twin, alive, hits)
            sources = alive[twin[alive] < 0]
        later = part.stop + np.flatnonzero(twin[part.stop :] < 0)
        for some in blocks(len(later), BLOCK // 4):
            _note(twin, later[some], sources, reach(rows[later[some]], rows[sources], bound))
    dropped = np.flatnonzero(twin >= 0)
    return dropped, twin[dropped]


def _note(twin: Indexes, rows: Indexes, sources: Indexes, hits: NDArray[np.bool_]) -> None:
    near = np.flatnonzero(hits.any(axis=1))
    if len(near):
        twin[rows[near]] = sources[hits[near].argmax(axis=1)]


def _one_by_one(twin: Indexes, rows: Indexes, hits: NDArray[np.bool_]) -> None:
    """Within a block what was kept so far decides: row after row, those that are near to nothing passed over."""
    is_kept = np.ones(len(rows), dtype=bool)
    for position in np.flatnonzero(hits.any(axis=1)):
        near = hits[position] & is_kept
        if near.any():
            twin[rows[position]] = rows[near.argmax()]
            is_kept[position] = False


def _best_twins(found: Sequence[tuple[Indexes, Indexes]], order: Indexes) -> tuple[Indexes, Indexes]:
    """Dropped rows, ascending, each once; of the twins found in several clusters the best row."""
    if not found:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    dropped, twins = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    position = np.lexsort((rank[twins], dropped))
    first = position[np.diff(dropped[position], prepend=-1) > 0]
    return dropped[first], twins[first]


def semantic_dedup_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop dialogs that mean the same as a better one of their cluster."""
    config = tools.config.semantic_dedup
    if tools.embedding is None:
        why = "nothing embeds the rows: name an embedder, or give embeddings"
        return lacking(items, tools, step="semantic_dedup", why=why)
    vectors = tools.embedding.dialogs(items)
    found = semantic_dedup(
        vectors - vectors.mean(axis=0, keepdims=True) if tools.embedding.centred else vectors,
        priorities=priorities_of(items, by_reward=tools.config.quality.by != "judge"),
        threshold=config.threshold,
        rows_per_cluster=config.rows_per_cluster,
        compare_to=config.compare_to,
        num_nearest=config.nearest_clusters,
        seed=tools.seed,
    )
    clustered = [replace(item, cluster=label) for item, label in zip(items, found.clusters.tolist(), strict=True)]
    return left(clustered, found.verdict([item.id for item in items]))
