#!/usr/bin/env python3
"""Semantic deduplication: time, memory and growth, the plain double loop, and semhash.

As a program it is one measurement in a process of its own, printed as JSON:

    scripts/bench/data_dedup.py time --rows 100000 --repeats 3 --threads 2
    scripts/bench/data_dedup.py semhash --rows 100000 --repeats 3 --threads 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from alignloop.selection.semantic_dedup import ROUNDING, CompareTo, DedupResult, semantic_dedup
from scripts.bench.data_cases import KEYS, ROWS_PER_CLUSTER, THRESHOLD, Result, Setting, SkippedError
from scripts.bench.data_rows import DIM, Planted, clustered
from scripts.bench.stopwatch import MemoryWatch

MOST_NEAREST = 5


def dedup_1m(setting: Setting) -> list[Result]:
    """Seconds and peak memory at the largest size, and the exponent of growth over all sizes."""
    sizes, repeats = setting.amount.sizes, setting.amount.pairs
    found = {
        rows: setting.child("data_dedup.py", "time", "--rows", str(rows), "--repeats", str(repeats)) for rows in sizes
    }
    seconds = {rows: [found[rows][f"seconds_{n}"] for n in range(repeats)] for rows in sizes}
    middle = {rows: median(parts) for rows, parts in seconds.items()}
    cpu = {rows: median(found[rows][f"cpu_{n}"] for n in range(repeats)) for rows in sizes}
    exponent, exponent_cpu = _slope(middle), _slope(cpu)
    last = sizes[-1]
    extra = {f"dedup_{rows}_seconds": middle[rows] for rows in sizes[:-1]}
    extra |= {
        "dedup_1m_planted_recall": found[last]["recall"],
        "dedup_1m_planted_recall_nearest_2": found[last]["recall_2"],
        "dedup_1m_seconds_nearest_2": found[last]["seconds_nearest_2"],
    }
    told = ", ".join(f"{middle[rows]:.2f} s for {rows:,}" for rows in sizes)
    smaller = smaller_than(1_000_000, last)
    border = (
        f"of {int(found[last]['planted']):,} planted near-duplicates {found[last]['recall']:.1%} were found: the "
        f"paper's rule compares within clusters alone; with `num_nearest=2` {found[last]['recall_2']:.1%} in "
        f"{found[last]['seconds_nearest_2']:.1f} s"
    )
    facts = f"{last:,} x {DIM} float32, {int(found[last]['num_clusters']):,} clusters, {setting.threads} threads"
    return [
        Result(KEYS["dedup_1m_seconds"], middle[last], facts, tuple(seconds[last]), smaller, extra, (border,)),
        Result(
            KEYS["dedup_1m_gib"],
            found[last]["peak_gib"],
            f"peak resident memory of the process, {found[last]['input_gib']:.2f} GiB of it the input",
            smaller=smaller,
        ),
        Result(
            KEYS["dedup_growth_exponent"],
            exponent,
            told,
            smaller=smaller,
            extra={"dedup_growth_exponent_cpu": exponent_cpu},
            remarks=(
                f"of processor seconds, which other work on the machine does not lengthen: {exponent_cpu:.3f} "
                f"({', '.join(f'{cpu[rows]:.2f} s for {rows:,}' for rows in sizes)})",
            ),
        ),
    ]


def _slope(seconds: dict[int, float]) -> float:
    """Exponent of the power law through seconds by number of rows."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def dedup_exact_20k(setting: Setting) -> list[Result]:
    """1 where what is dropped, and the row it loses to, is what a plain double loop over the same clusters says."""
    rows = setting.amount.num_exact
    planted = clustered(rows)
    priorities = np.random.default_rng(1).integers(0, 50, size=rows).astype(np.float64)  # with ties
    equal, told = True, []
    modes: tuple[CompareTo, CompareTo] = ("seen", "kept")
    for compare_to in modes:
        ours = semantic_dedup(
            planted.vectors,
            priorities=priorities,
            threshold=THRESHOLD,
            rows_per_cluster=ROWS_PER_CLUSTER,
            compare_to=compare_to,
            num_threads=setting.threads,
        )
        plain = double_loop(planted.vectors, priorities, ours.clusters, threshold=THRESHOLD, compare_to=compare_to)
        same = {twin.dropped: twin.twin for twin in ours.twins} == plain
        equal &= same
        told.append(f"`{compare_to}` {len(plain):,} dropped, {'equal' if same else 'NOT EQUAL'}")
    facts = f"{rows:,} rows: {'; '.join(told)}"
    return [Result(KEYS["dedup_exact_20k"], float(equal), facts, smaller=smaller_than(20_000, rows))]


def smaller_than(wanted: int, rows: int) -> str | None:
    """What to say of a measurement on fewer rows than its bar speaks of."""
    return None if rows >= wanted else f"{rows:,} rows in place of {wanted:,}"


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


def dedup_vs_semhash(setting: Setting) -> list[Result]:
    """semhash's seconds over ours, at the least number of nearest clusters that finds as many planted pairs."""
    try:
        import semhash  # noqa: F401
    except ImportError as error:
        raise SkippedError(f"semhash is not installed ({error})") from error
    rows, pairs = setting.amount.num_semhash, setting.amount.pairs
    found = setting.child("data_dedup.py", "semhash", "--rows", str(rows), "--repeats", str(pairs))
    each = tuple(found[f"ratio_{n}"] for n in range(pairs))
    facts = (
        f"{rows:,} rows: ours {found['ours']:.2f} s, semhash {found['semhash']:.2f} s; recall {found['recall']:.2%} "
        f"with {int(found['num_nearest'])} nearest clusters, semhash {found['semhash_recall']:.2%}"
    )
    remark = (
        f"with one cluster a row (the default, as in the paper) {found['paper_seconds']:.2f} s and recall "
        f"{found['paper_recall']:.2%}"
    )
    extra = {
        "dedup_recall_one_cluster": found["paper_recall"],
        "dedup_recall_matched": found["recall"],
        "semhash_recall": found["semhash_recall"],
        "dedup_nearest_clusters": found["num_nearest"],
    }
    problem = None
    if found["recall"] < found["semhash_recall"]:
        problem = f"semhash finds more planted pairs than {MOST_NEAREST} nearest clusters do"
    return [Result(KEYS["dedup_vs_semhash"], median(each), facts, each, None, extra, (remark,), problem)]


def run_ours(vectors: NDArray[np.float32], *, num_nearest: int, threads: int) -> tuple[DedupResult, float]:
    """Our answer with ties decided by the order of rows, and seconds."""
    started = time.perf_counter()
    result = semantic_dedup(
        vectors,
        priorities=np.zeros(len(vectors)),
        threshold=THRESHOLD,
        rows_per_cluster=ROWS_PER_CLUSTER,
        num_nearest=num_nearest,
        num_threads=threads,
    )
    return result, time.perf_counter() - started


def recall(planted: Planted, dropped: Sequence[int]) -> float:
    """Share of planted pairs of which one row is gone."""
    is_gone = np.zeros(len(planted.vectors), dtype=bool)
    is_gone[list(dropped)] = True
    return float((is_gone[planted.copies] | is_gone[planted.sources]).mean())


def _time(rows: int, repeats: int, threads: int) -> dict[str, float]:
    planted = clustered(rows)
    run_ours(planted.vectors[: min(rows, 5_000)], num_nearest=1, threads=threads)  # imports, threads
    watch = MemoryWatch()
    found: dict[str, float] = {"input_gib": planted.vectors.nbytes / 2**30, "planted": float(len(planted.copies))}
    for number in range(repeats):
        before = time.process_time()
        result, found[f"seconds_{number}"] = run_ours(planted.vectors, num_nearest=1, threads=threads)
        found[f"cpu_{number}"] = time.process_time() - before
    found["peak_gib"] = watch.peak_mib() / 1024
    found["num_clusters"] = result.metrics["num_clusters"]
    found["recall"] = recall(planted, [twin.dropped for twin in result.twins])
    result, found["seconds_nearest_2"] = run_ours(planted.vectors, num_nearest=2, threads=threads)
    found["recall_2"] = recall(planted, [twin.dropped for twin in result.twins])
    return found


def _against_semhash(rows: int, repeats: int, threads: int) -> dict[str, float]:
    planted = clustered(rows)
    names = [str(row) for row in range(rows)]
    run_ours(planted.vectors[:2_000], num_nearest=1, threads=threads)
    _semhash(planted.vectors[:2_000], names[:2_000])
    gone, _ = _semhash(planted.vectors, names)
    found = {"semhash_recall": recall(planted, gone)}
    for num_nearest in range(1, MOST_NEAREST + 1):
        result, seconds = run_ours(planted.vectors, num_nearest=num_nearest, threads=threads)
        found["recall"] = recall(planted, [twin.dropped for twin in result.twins])
        found["num_nearest"] = float(num_nearest)
        if num_nearest == 1:
            found |= {"paper_recall": found["recall"], "paper_seconds": seconds}
        if found["recall"] >= found["semhash_recall"]:
            break
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(repeats):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                ours.append(_ours_seconds(planted, found, threads))
            else:
                theirs.append(_semhash(planted.vectors, names)[1])
    found |= {f"ratio_{n}": other / mine for n, (mine, other) in enumerate(zip(ours, theirs, strict=True))}
    return {**found, "ours": median(ours), "semhash": median(theirs)}


def _ours_seconds(planted: Planted, found: dict[str, float], threads: int) -> float:
    return run_ours(planted.vectors, num_nearest=int(found["num_nearest"]), threads=threads)[1]


def _semhash(vectors: NDArray[np.float32], names: list[str]) -> tuple[list[int], float]:
    """Rows that semhash drops, given the vectors, and the seconds it takes; its index is built as it is shipped."""
    from semhash import SemHash

    encoder: Any = _NoEncoder()
    started = time.perf_counter()
    index = SemHash.from_embeddings(vectors, names, model=encoder)
    result = index.self_deduplicate(threshold=THRESHOLD)
    seconds = time.perf_counter() - started
    return [int(record.record) for record in result.filtered], seconds


class _NoEncoder:
    """Stands where semhash wants a model; vectors are given, so that nothing is encoded."""

    def encode(self, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
        raise AssertionError(f"{len(texts)} texts to encode, though vectors are given")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "semhash"))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    measure = _time if options.what == "time" else _against_semhash
    print(json.dumps(measure(options.rows, options.repeats, options.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
