"""Semantic deduplication of made-up vectors: timed, by a plain double loop, against semhash."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.semantic_dedup import ROUNDING, CompareTo, DedupResult, semantic_dedup
from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides
from scripts.bench.made_up import Planted, Vectors, clustered
from scripts.bench.processes import Hosted, MemoryWatch, alone

THRESHOLD, ROWS_PER_CLUSTER = 0.95, 256
"""As the recipe's defaults."""
MOST_NEAREST = 5


def dedup(vectors: Vectors, *, threads: int, num_nearest: int = 1, **options: Any) -> tuple[DedupResult, float]:
    """Our result with the recipe's settings, ties decided by the order of rows, and seconds."""
    options = {"threshold": THRESHOLD, "priorities": np.zeros(len(vectors)), **options}
    started = time.perf_counter()
    result = semantic_dedup(
        vectors, rows_per_cluster=ROWS_PER_CLUSTER, num_nearest=num_nearest, num_threads=threads, **options
    )
    return result, time.perf_counter() - started


def _found(planted: Planted, *, threads: int, num_nearest: int) -> Reading:
    result, seconds = dedup(planted.vectors, num_nearest=num_nearest, threads=threads)
    recall = planted.recall([twin.dropped for twin in result.twins])
    num_clusters = int(result.metrics["num_clusters"])
    return {"seconds": seconds, "recall": recall, "num_nearest": num_nearest, "num_clusters": num_clusters}


def timed(rows: int, threads: int) -> Reading:
    """Seconds, processor seconds and peak memory of a process that has the vectors already."""
    planted = clustered(rows)
    dedup(planted.vectors[: min(rows, 5_000)], threads=threads)  # imports, threads
    watch, before = MemoryWatch(), time.process_time()
    found = _found(planted, threads=threads, num_nearest=1)
    cpu, peak = time.process_time() - before, watch.peak_mib() / 1024
    two = _found(planted, threads=threads, num_nearest=2)
    return {**found, "cpu": cpu, "peak_gib": peak, "input_gib": planted.vectors.nbytes / 2**30, "two": two}


def _dedup_1m(bench: Bench) -> Sides:
    """Seconds and peak memory at the largest size, and the exponent of growth over it, a tenth and a hundredth."""
    sizes = (bench.amount // 100, bench.amount // 10, bench.amount)

    def read() -> Reading:
        found = {rows: alone(timed, rows, bench.threads, log=bench.work / "dedup.log") for rows in sizes}
        exponents = {name: _growth({rows: one[name] for rows, one in found.items()}) for name in ("seconds", "cpu")}
        return {**found[sizes[-1]], "exponent": exponents["seconds"], "exponent_cpu": exponents["cpu"]}

    def remarks(ours: Readings, peer: Readings) -> list[str]:
        last, two = ours[-1], ours[-1]["two"]
        return [
            f"{sizes[-1]:,} rows, {last['num_clusters']:,} clusters; {last['input_gib']:.2f} GiB are input",
            f"of planted near-duplicates {last['recall']:.1%} were found: the paper's rule compares within clusters "
            f"alone; with `num_nearest=2` {two['recall']:.1%} in {two['seconds']:.1f} s",
        ]

    return Sides(read, check=remarks)


def _growth(seconds: Mapping[int, float]) -> float:
    """Exponent of the power law through seconds by number of rows."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def equal_to_double_loop(rows: int, threads: int) -> Reading:
    """`equal` is 1 where drops and twins are those of a plain double loop, in both modes."""
    vectors = clustered(rows).vectors
    priorities = np.random.default_rng(1).integers(0, 50, size=rows).astype(np.float64)  # with ties
    modes: tuple[CompareTo, CompareTo] = ("seen", "kept")
    equal = True
    for compare_to in modes:
        ours, _ = dedup(vectors, threads=threads, priorities=priorities, compare_to=compare_to)
        plain = double_loop(vectors, priorities, ours.clusters, threshold=THRESHOLD, compare_to=compare_to)
        equal &= {twin.dropped: twin.twin for twin in ours.twins} == plain
    return {"equal": float(equal), "dropped": len(plain)}


def double_loop(
    vectors: Vectors,
    priorities: NDArray[np.float64],
    clusters: NDArray[np.int32],
    *,
    threshold: float,
    compare_to: CompareTo,
) -> dict[int, int]:
    """Dropped row -> its twin, by the rule as written: one pair after another, in float64."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    twins: dict[int, int] = {}
    for cluster in np.unique(clusters[clusters >= 0]):
        rows = sorted(np.flatnonzero(clusters == cluster).tolist(), key=lambda row: (-priorities[row], row))
        for position, row in enumerate(rows):
            for earlier in rows[:position]:
                if compare_to == "kept" and earlier in twins:
                    continue
                if wide[row].dot(wide[earlier]) >= threshold - ROUNDING:
                    twins[row] = earlier
                    break
    return twins


class AgainstSemhash:
    """Both sides on the same vectors: ours at the least number of nearest clusters that finds as many planted pairs as
    semhash, whose index is built with its defaults."""

    def __init__(self, rows: int, threads: int) -> None:
        self._planted = clustered(rows)
        self._ours = partial(_found, self._planted, threads=threads)
        self._names = [str(row) for row in range(rows)]
        dedup(self._planted.vectors[:2_000], threads=threads)
        wanted, tried = self.semhash()["recall"], [self._ours(num_nearest=1)]
        while tried[-1]["recall"] < wanted and len(tried) < MOST_NEAREST:
            tried.append(self._ours(num_nearest=len(tried) + 1))
        self._one_cluster, self._num_nearest = tried[0], len(tried)

    def ours(self) -> Reading:
        """Also reads one cluster a row, as in the paper."""
        return {**self._ours(num_nearest=self._num_nearest), "one_cluster": self._one_cluster}

    def semhash(self) -> Reading:
        from semhash import SemHash

        encoder: Any = object()  # it wants a model, though the vectors are there and nothing is encoded
        started = time.perf_counter()
        index = SemHash.from_embeddings(self._planted.vectors, self._names, model=encoder)
        result = index.self_deduplicate(threshold=THRESHOLD)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "recall": self._planted.recall([int(one.record) for one in result.filtered])}


def _dedup_vs_semhash(bench: Bench) -> Sides:
    log = bench.work / "semhash.log"
    both = bench.stack.enter_context(Hosted(AgainstSemhash, bench.amount, bench.threads, log=log))

    def remarks(ours: Readings, peer: Readings) -> list[str]:
        mine, other, one = ours[-1], peer[-1], ours[-1]["one_cluster"]
        if mine["recall"] < other["recall"]:
            raise BenchError("semhash finds more planted pairs than ours with the most nearest clusters")
        return [
            f"recall {mine['recall']:.2%} with {mine['num_nearest']} nearest clusters, semhash {other['recall']:.2%}; "
            f"with one cluster a row, as in the paper, {one['seconds']:.2f} s and {one['recall']:.2%}"
        ]

    return Sides(partial(both.call, "ours"), partial(both.call, "semhash"), remarks)


CASES = (
    Case(
        "dedup_1m",
        (
            Figure("dedup_1m_seconds", "seconds", " s", most=180.0),
            Figure("dedup_1m_gib", "peak_gib", " GiB", most=6.0),
            Figure("dedup_growth_exponent", "exponent", most=1.1),
            Figure("dedup_growth_exponent_cpu", "exponent_cpu"),
        ),
        _dedup_1m,
        {"": 1_000_000},
        quick=20_000,
    ),
    Case(
        "dedup_exact_20k",
        (Figure("dedup_exact_20k", "equal", least=1.0),),
        lambda bench: Sides(partial(equal_to_double_loop, bench.amount, bench.threads)),
        {"": 20_000},
        quick=2_000,
        once=True,
    ),
    Case(
        "dedup_vs_semhash",
        (Figure("dedup_vs_semhash", "seconds", " s", least=1.0, inverse=True),),
        _dedup_vs_semhash,
        {"": 100_000},
        quick=5_000,
        needs="semhash",
    ),
)
