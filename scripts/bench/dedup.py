"""Semantic deduplication of made-up vectors: timed, by a plain double loop, against semhash."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.semantic_dedup import ROUNDING, CompareTo, DedupResult, semantic_dedup
from scripts.bench.case import Reading
from scripts.bench.made_up import Planted, clustered, recall
from scripts.bench.processes import MemoryWatch

THRESHOLD, ROWS_PER_CLUSTER = 0.95, 256
"""As the recipe's defaults."""
MOST_NEAREST = 5


def dedup(
    vectors: NDArray[np.float32], *, threads: int, num_nearest: int = 1, **options: Any
) -> tuple[DedupResult, float]:
    """Our answer with the recipe's settings, ties decided by the order of rows, and seconds."""
    options = {"threshold": THRESHOLD, "priorities": np.zeros(len(vectors)), **options}
    started = time.perf_counter()
    result = semantic_dedup(
        vectors, rows_per_cluster=ROWS_PER_CLUSTER, num_nearest=num_nearest, num_threads=threads, **options
    )
    return result, time.perf_counter() - started


def timed(rows: int, threads: int) -> Reading:
    """Seconds, processor seconds and peak memory of the process that holds the vectors already."""
    planted = clustered(rows)
    dedup(planted.vectors[: min(rows, 5_000)], threads=threads)  # imports, threads
    watch, before = MemoryWatch(), time.process_time()
    result, seconds = dedup(planted.vectors, threads=threads)
    reading = {"seconds": seconds, "cpu": time.process_time() - before, "peak_gib": watch.peak_mib() / 1024}
    two, seconds_two = dedup(planted.vectors, num_nearest=2, threads=threads)
    return {
        **reading,
        "input_gib": planted.vectors.nbytes / 2**30,
        "num_clusters": int(result.metrics["num_clusters"]),
        "recall": _recall(planted, result),
        "recall_nearest_2": _recall(planted, two),
        "seconds_nearest_2": seconds_two,
    }


def _recall(planted: Planted, result: DedupResult) -> float:
    return recall(planted, [twin.dropped for twin in result.twins])


def growth(seconds: Mapping[int, float]) -> float:
    """Exponent of the power law through seconds by number of rows."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def equal_to_double_loop(rows: int, threads: int) -> Reading:
    """`equal` 1 where what is dropped, and the row it loses to, is what a plain double loop says, in both modes."""
    vectors = clustered(rows).vectors
    priorities = np.random.default_rng(1).integers(0, 50, size=rows).astype(np.float64)  # with ties
    modes: tuple[CompareTo, CompareTo] = ("seen", "kept")
    equal = True
    for compare_to in modes:
        ours, _ = dedup(vectors, threads=threads, priorities=priorities, compare_to=compare_to)
        plain = double_loop(vectors, priorities, ours.clusters, threshold=THRESHOLD, compare_to=compare_to)
        equal &= {twin.dropped: twin.twin for twin in ours.twins} == plain
    return {"equal": float(equal), "dropped": len(plain)}


class AgainstSemhash:
    """Both sides on the same vectors, given to semhash, whose index is built as it is shipped."""

    def __init__(self, rows: int, threads: int) -> None:
        self._planted, self._threads = clustered(rows), threads
        self._names = [str(row) for row in range(rows)]
        dedup(self._planted.vectors[:2_000], threads=threads)
        wanted = self.semhash()["recall"]
        tried = (self._ours(num_nearest) for num_nearest in range(1, MOST_NEAREST + 1))
        self._first = next(tried)
        enough = (one for one in (self._first, *tried) if one["recall"] >= wanted)
        self._num_nearest = next(enough, {"num_nearest": MOST_NEAREST})["num_nearest"]

    def _ours(self, num_nearest: int) -> Reading:
        result, seconds = dedup(self._planted.vectors, num_nearest=num_nearest, threads=self._threads)
        return {"seconds": seconds, "recall": _recall(self._planted, result), "num_nearest": num_nearest}

    def ours(self) -> Reading:
        return self._ours(self._num_nearest)

    def semhash(self) -> Reading:
        from semhash import SemHash

        encoder: Any = _NoEncoder()
        started = time.perf_counter()
        index = SemHash.from_embeddings(self._planted.vectors, self._names, model=encoder)
        result = index.self_deduplicate(threshold=THRESHOLD)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "recall": recall(self._planted, [int(one.record) for one in result.filtered])}

    def one_cluster(self) -> tuple[float, float]:
        """Recall and seconds with one cluster a row, as in the paper."""
        return self._first["recall"], self._first["seconds"]


class _NoEncoder:
    """Stands where semhash wants a model; vectors are given, so that nothing is encoded."""

    def encode(self, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
        raise AssertionError(f"{len(texts)} texts to encode, though vectors are given")


def double_loop(
    vectors: NDArray[np.float32],
    priorities: NDArray[np.float64],
    clusters: NDArray[np.int32],
    *,
    threshold: float,
    compare_to: CompareTo,
) -> dict[int, int]:
    """Dropped row -> its twin, by the rule as it is written: one pair after another, in float64."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    twins: dict[int, int] = {}
    for cluster in np.unique(clusters[clusters >= 0]):
        rows = sorted(np.flatnonzero(clusters == cluster).tolist(), key=lambda row: (-priorities[row], row))
        for place, row in enumerate(rows):
            for earlier in rows[:place]:
                if compare_to == "kept" and earlier in twins:
                    continue
                if wide[row].dot(wide[earlier]) >= threshold - ROUNDING:
                    twins[row] = earlier
                    break
    return twins
