"""Weight swaps: their time against a cold start and against reading the bytes, and memory over many of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from alignloop.engines.base import Engine
from alignloop.engines.checkpoint import num_parameters, weight_files
from scripts.bench.measuring import BenchError
from scripts.bench.sampling_cases import CASES, Result, Size
from scripts.bench.sampling_models import copies
from scripts.bench.sampling_room import Room
from scripts.bench.stopwatch import resident_mb

BUFFER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Swaps:
    """Seconds, in the order they were measured.

    Attributes:
        whole: `load_weights` of the engine, canary included.
        bare: vLLM's weights alone, by the engine's worker extension, without canary.
        reads: all bytes of the same checkpoint's weight files into memory, after each whole swap.
        cold_start: of the engine, once.
    """

    whole: list[float]
    bare: list[float]
    reads: list[float]
    cold_start: float


def swap_seconds_5m(room: Room) -> list[Result]:
    """Median seconds of `load_weights` between two checkpoints, canary included."""
    swaps = _swaps(room, "5m", count=room.amount.num_swaps)
    whole, bare = median(swaps.whole), median(swaps.bare)
    return [
        Result(
            CASES["swap_seconds_5m"],
            whole,
            tuple(swaps.whole),
            f"{whole:.2f} s",
            f"cold start {swaps.cold_start:.1f} s",
            extra={"swap_seconds_5m_without_canary": bare, "cold_start_seconds_5m": swaps.cold_start},
            remarks=(f"{num_parameters(room.checkpoint('5m', 'a')):,} parameters; without the canary {bare:.2f} s",),
        )
    ]


def swap_vs_read_300m(room: Room) -> list[Result]:
    """Median seconds of a swap over those of reading the checkpoint's weight files, both from the page cache."""
    swaps = _swaps(room, "300m", count=room.amount.num_large_swaps)
    checkpoint = room.checkpoint("300m", "b")
    buffered = median(_buffered_read_seconds(checkpoint) for _ in swaps.reads)
    whole, bare, read = median(swaps.whole), median(swaps.bare), median(swaps.reads)
    ratios = tuple(swap / after for swap, after in zip(swaps.whole, swaps.reads, strict=True))
    num_bytes = sum(file.stat().st_size for file in weight_files(checkpoint))
    return [
        Result(
            CASES["swap_vs_read_300m"],
            median(ratios),
            ratios,
            f"{whole:.2f} s",
            f"read {read:.2f} s; cold start {swaps.cold_start:.1f} s",
            extra={
                "swap_seconds_300m": whole,
                "swap_seconds_300m_without_canary": bare,
                "read_seconds_300m": read,
                "cold_start_seconds_300m": swaps.cold_start,
            },
            remarks=(
                f"{num_parameters(checkpoint):,} parameters, {num_bytes / 1e9:.2f} GB, in the page cache on both sides",
                f"swaps of {min(swaps.whole):.2f} to {max(swaps.whole):.2f} s, without the canary {bare:.2f} s; reads "
                f"of {min(swaps.reads):.2f} to {max(swaps.reads):.2f} s, {buffered:.2f} s through one buffer of "
                f"{BUFFER_BYTES // 2**20} MiB, which keeps nothing",
            ),
        )
    ]


def swap_memory_growth_mb(room: Room) -> list[Result]:
    """Resident memory of the engine process after many swaps, less that after the first few."""
    amount = room.amount
    engine = room.engine("vllm", "5m")
    readings = []
    for number, directory in enumerate(copies(room.work, count=amount.num_settling + amount.num_memory_swaps), start=1):
        engine.load_weights(directory)
        if number >= amount.num_settling:
            assert engine.pid is not None
            readings.append(resident_mb(engine.pid))
    if not readings[0]:
        raise BenchError("swap_memory_growth_mb: this system does not tell a process's resident memory (no /proc)")
    start, end = readings[0], readings[-1]
    return [
        Result(
            CASES["swap_memory_growth_mb"],
            end - start,
            (),
            f"{start:,.1f} MB after {amount.num_settling} swaps",
            f"{end:,.1f} MB after {amount.num_memory_swaps} more",
            extra={"swap_memory_start_mb": start, "swap_memory_end_mb": end},
            remarks=(f"least {min(readings):,.1f}, greatest {max(readings):,.1f} MB; every swap to another directory",),
        )
    ]


def _swaps(room: Room, size: Size, *, count: int) -> Swaps:
    """`count` swaps between two checkpoints, after one to each that settles the allocator and the page cache."""
    a, b = room.checkpoint(size, "a"), room.checkpoint(size, "b")
    engine = room.engine("vllm", size)
    turns = list(islice(cycle((b, a)), count + 2))
    timed = [(_load_seconds(engine, checkpoint), _read_seconds(checkpoint)) for checkpoint in turns]
    raw = room.raw(size)
    bare = [float(raw.call("swap", checkpoint)) for checkpoint in turns]
    raw.call("swap", a)  # what the other cases find served
    return Swaps(
        whole=[swap for swap, _ in timed[2:]],
        bare=bare[2:],
        reads=[read for _, read in timed[2:]],
        cold_start=engine.cold_start,
    )


def _load_seconds(engine: Engine, checkpoint: Path) -> float:
    started = time.perf_counter()
    engine.load_weights(checkpoint)
    return time.perf_counter() - started


def _read_seconds(checkpoint: Path) -> float:
    """All bytes of the weight files into memory, file by file."""
    started = time.perf_counter()
    for file in weight_files(checkpoint):
        file.read_bytes()
    return time.perf_counter() - started


def _buffered_read_seconds(checkpoint: Path) -> float:
    buffer = bytearray(BUFFER_BYTES)
    started = time.perf_counter()
    for path in weight_files(checkpoint):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started
