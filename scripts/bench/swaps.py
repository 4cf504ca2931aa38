"""Weight swaps of a warm engine against reading the bytes, and its memory over many of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench.case import Bench, BenchError, Reading, Sides
from scripts.bench.engines import checkpoint, engine, vllm_alone
from scripts.bench.processes import memory_mib

NUM_SETTLING = 5
"""Swaps before the first reading of memory."""


def swaps(bench: Bench) -> Sides:
    """Medians of `amount` swaps between two checkpoints, after one to each that settles allocator and page cache.

    The peer reads all bytes of the same weight files into memory, from the disk as from the page cache.
    """
    from alignloop.engines.checkpoint import num_parameters

    a, b = (checkpoint(bench, bench.size, which) for which in "ab")
    ours, cold_start = engine(bench, "vllm", a)
    raw = vllm_alone(bench, a)
    turns = [(b, a)[number % 2] for number in range(bench.amount + 2)]

    def seconds(work: Callable[[Path], Any], *, cached: bool) -> float:
        return median([_seconds(work, one, cached=cached) for one in turns][2:])

    def read_ours() -> Reading:
        bare = median([float(raw.call("swap", one)) for one in turns][2:])
        disk, memory = (seconds(ours.load_weights, cached=cached) for cached in (False, True))
        return {"disk": disk, "cached": memory, "bare": bare, "cold_start": cold_start}

    def read_peer() -> Reading:
        return {name: seconds(_read_bytes, cached=name == "cached") for name in ("disk", "cached")}

    return Sides(read_ours, read_peer, lambda ours, peer: [f"{num_parameters(a):,} parameters, {bench.amount} swaps"])


def _seconds(work: Callable[[Path], Any], checkpoint: Path, *, cached: bool) -> float:
    """Without `cached` the weight files are dropped from the page cache first; what is not on the disk goes there."""
    from alignloop.engines.checkpoint import weight_files

    for path in () if cached else weight_files(checkpoint):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    work(checkpoint)
    return time.perf_counter() - started


def _read_bytes(checkpoint: Path) -> None:
    from alignloop.engines.checkpoint import weight_files

    for file in weight_files(checkpoint):
        file.read_bytes()


def swap_memory(bench: Bench) -> Sides:
    """Resident memory of the engine process after many swaps, each to another directory, less that after the first."""
    sources = [checkpoint(bench, "5m", which) for which in "ab"]
    ours, _ = engine(bench, "vllm", sources[0])

    def read() -> Reading:
        readings = []
        for number in range(NUM_SETTLING + bench.amount):
            directory = bench.work / "copies" / f"{number:03d}"
            if not directory.is_dir():
                shutil.copytree(sources[number % 2], directory, copy_function=os.link)
            ours.load_weights(directory)
            readings.append(memory_mib("VmRSS", process=str(ours.pid)) * 2**20 / 1e6)
        if not readings[0]:
            raise BenchError("this system does not tell a process's resident memory (no /proc)")
        start, end = readings[NUM_SETTLING - 1], readings[-1]
        return {"start": start, "end": end, "growth": end - start}

    return Sides(read)
