"""Weight swaps: their time against a cold start and against reading the bytes, and memory over many of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
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

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(swap / read for swap, read in zip(self.whole, self.reads, strict=True))


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
    """Median seconds of a swap over those of reading the checkpoint's weight files, both from the disk.

    Beside it the same with the files in the page cache.
    """
    disk = _swaps(room, "300m", count=room.amount.num_large_swaps, cached=False)
    cached = _swaps(room, "300m", count=room.amount.num_large_swaps)
    checkpoint = room.checkpoint("300m", "b")
    ratios, cached_ratios = disk.ratios, cached.ratios
    num_bytes = sum(file.stat().st_size for file in weight_files(checkpoint))
    return [
        Result(
            CASES["swap_vs_read_300m"],
            median(ratios),
            ratios,
            f"{median(disk.whole):.2f} s",
            f"read {median(disk.reads):.2f} s; cold start {disk.cold_start:.1f} s",
            extra={
                "swap_seconds_300m": median(disk.whole),
                "read_seconds_300m": median(disk.reads),
                "cold_start_seconds_300m": disk.cold_start,
                "swap_vs_read_300m_cached": median(cached_ratios),
                "swap_seconds_300m_cached": median(cached.whole),
                "swap_seconds_300m_cached_without_canary": median(cached.bare),
                "read_seconds_300m_cached": median(cached.reads),
            },
            remarks=(
                f"{num_parameters(checkpoint):,} parameters, {num_bytes / 1e9:.2f} GB, from the disk on both sides",
                f"with the files in the page cache on both sides: {median(cached_ratios):.2f}x "
                f"({min(cached_ratios):.2f} to {max(cached_ratios):.2f}), {median(cached.whole):.2f} s against "
                f"{median(cached.reads):.2f} s; the weights alone, without the canary, {median(cached.bare):.2f} s",
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


def _swaps(room: Room, size: Size, *, count: int, cached: bool = True) -> Swaps:
    """`count` swaps between two checkpoints, after one to each that settles the allocator and the page cache.

    Args:
        cached: False: before each swap and each read the system is made to forget the files.
    """
    a, b = room.checkpoint(size, "a"), room.checkpoint(size, "b")
    engine = room.engine("vllm", size)
    turns = list(islice(cycle((b, a)), count + 2))
    timed = []
    for checkpoint in turns:
        seconds = []
        for measure in (partial(_load_seconds, engine), _read_seconds):
            if not cached:
                _forget(checkpoint)
            seconds.append(measure(checkpoint))
        timed.append(tuple(seconds))
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


def _forget(checkpoint: Path) -> None:
    """Drop the weight files from the page cache; what is not on the disk yet goes there first."""
    for path in weight_files(checkpoint):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
