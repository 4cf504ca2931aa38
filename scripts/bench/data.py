"""Data work: reading and pruning end to end; semantic deduplication and planted rows are modules of their own."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np

from alignloop.alone.prune import prune_file
from alignloop.data.check_files import check_file
from alignloop.data.reading import Reading as FileReading
from alignloop.records import RejectedRow
from scripts.bench import dedup, planted
from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides, middle
from scripts.bench.made_up import clustered, write_preferences
from scripts.bench.processes import MemoryWatch, alone

NUM_READ_BAD = 1_000
"""One row in so many cannot be read."""


def _read(bench: Bench) -> Sides:
    """Reading and checking as `alignloop data check` does, a process a core; beside it reading alone on one thread."""
    files = {rows: bench.work / f"preferences-{rows}.jsonl" for rows in (bench.amount, bench.amount // 10)}
    for rows, file in files.items():
        write_preferences(file, num_rows=rows, bad_every=NUM_READ_BAD)

    def read() -> Reading:
        whole, tenth = (alone(_read_file, file, bench.threads, log=bench.work / "read.log") for file in files.values())
        if (whole["kept"] + whole["rejected"], whole["rejected"]) != (bench.amount, bench.amount // NUM_READ_BAD):
            raise BenchError(f"rows vanished: {whole}")
        return {**whole, "growth": whole["above_mib"] - tenth["above_mib"]}

    def remarks(ours: Readings, peer: Readings) -> list[str]:
        size = files[bench.amount].stat().st_size
        return [f"{bench.amount:,} rows of {size / bench.amount:,.0f} bytes, {middle(ours, 'mb'):.0f} MB/s"]

    return Sides(read, check=remarks)


def _read_file(file: Path, threads: int) -> Reading:
    watch, started = MemoryWatch(), time.perf_counter()
    num = rejected = 0
    for row in FileReading(file, "preferences"):
        num += 1
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
    """`alignloop data prune` without a judge, with ready embeddings: reading, all steps, writing."""
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


CASES = (
    *dedup.CASES,
    planted.CASE,
    Case(
        "read",
        (
            Figure("read_rows_per_second", "rate", " rows/s", least=50_000.0),
            Figure("read_alone_rows_per_second", "alone", " rows/s"),
            Figure("read_memory_growth_mib", "growth", " MiB"),
        ),
        _read,
        {"": 1_000_000},
        quick=20_000,
    ),
    Case(
        "prune_100k",
        (Figure("prune_100k_seconds", "seconds", " s", most=60.0), Figure("prune_peak_mib", "peak_mib", " MiB")),
        _prune,
        {"": 100_000},
        quick=2_000,
    ),
)
