#!/usr/bin/env python3
"""Reading a large preference file, and pruning rows end to end with embeddings given.

As a program it is one measurement in a process of its own, printed as JSON:

    scripts/bench/data_files.py read --rows 1000000 --work folder
    scripts/bench/data_files.py prune --rows 100000 --work folder --threads 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from scripts.bench.data_cases import KEYS, Result, Setting, SkippedError
from scripts.bench.data_dedup import smaller_than
from scripts.bench.stopwatch import MemoryWatch

PROMPT_WORDS, COMPLETION_WORDS = (8, 32), (30, 90)
NUM_WORDS = 4_000
BAD_EVERY = 1_000
"""One row in so many cannot be read."""
NEAR_EVERY = 20
"""One prompt in so many says an earlier one again with a word more."""


def read(setting: Setting) -> list[Result]:
    """Rows a second of reading and checking, and memory at the whole file against a tenth of it."""
    rows, pairs = setting.amount.num_read, setting.amount.pairs
    least = setting.child("data_files.py", "read", "--rows", str(rows // 10), "--work", str(setting.work))
    runs = [
        setting.child("data_files.py", "read", "--rows", str(rows), "--work", str(setting.work)) for _ in range(pairs)
    ]
    each = tuple(run["rows_per_second"] for run in runs)
    growth = median(run["above_mib"] for run in runs) - least["above_mib"]
    told = (
        f"{rows:,} canonical rows of {runs[0]['bytes_per_row']:.0f} bytes, one in {BAD_EVERY:,} of them bad; "
        f"{median(run['mb_per_second'] for run in runs):.0f} MB/s, a process a core"
    )
    alone = median(run["read_alone_per_second"] for run in runs)
    remark = (
        f"reading alone, on one thread: {alone:,.0f} rows/s; memory above the start: "
        f"{median(run['above_mib'] for run in runs):.1f} MiB, with a tenth of the rows "
        f"{least['above_mib']:.1f} MiB"
    )
    lost = [run for run in runs if run["kept"] + run["rejected"] != rows or run["rejected"] != rows // BAD_EVERY]
    lost += [run for run in runs if not run["same"]]
    problem = f"rows vanished: {lost[0]}" if lost else None
    extra = {"read_memory_growth_mib": growth, "read_alone_rows_per_second": alone}
    return [Result(KEYS["read_rows_per_second"], median(each), told, each, None, extra, (remark,), problem)]


def prune_100k(setting: Setting) -> list[Result]:
    """Seconds of `alignloop data prune` without a judge, embeddings given: reading, all steps, writing."""
    if find_spec("alignloop.alone.prune") is None:
        raise SkippedError("there is no alignloop.alone.prune")
    rows, pairs = setting.amount.num_pruned, setting.amount.pairs
    arguments = ("prune", "--rows", str(rows), "--work", str(setting.work))
    runs = [setting.child("data_files.py", *arguments) for _ in range(pairs)]
    each = tuple(run["seconds"] for run in runs)
    steps = ", ".join(
        f"{name.removeprefix('seconds_of_')} {median(run[name] for run in runs):.1f}"
        for name in runs[0]
        if name.startswith("seconds_of_") and median(run[name] for run in runs) >= 0.05
    )
    told = f"{rows:,} preference rows to {runs[0]['kept']:,.0f}; seconds by step: {steps}"
    smaller, extra = smaller_than(100_000, rows), {"prune_peak_mib": runs[-1]["peak_mib"]}
    return [Result(KEYS["prune_100k_seconds"], median(each), told, each, smaller, extra)]


def write_preferences(file: Path, *, num_rows: int, with_bad: bool) -> None:
    """A canonical preference file, made from a seed; not made again where it is there."""
    if file.is_file():
        return
    with file.with_suffix(".partial").open("w") as out:
        out.writelines(_lines(num_rows, with_bad=with_bad))
    file.with_suffix(".partial").rename(file)


def _lines(num_rows: int, *, with_bad: bool) -> Iterator[str]:
    random = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, size=random.integers(2, 10))) for _ in range(NUM_WORDS)]
    # Words of a text lie anywhere in one long list: as many texts as places and lengths, and made quickly.
    pool = [words[place] for place in random.integers(NUM_WORDS, size=200_000)]
    earlier = "Say something."
    for row in range(num_rows):
        starts = random.integers(len(pool) - COMPLETION_WORDS[1], size=3).tolist()
        lengths = [
            int(random.integers(*PROMPT_WORDS)),
            *random.integers(*COMPLETION_WORDS, size=2).tolist(),
        ]
        prompt, chosen, rejected = (
            " ".join(pool[start : start + length]) for start, length in zip(starts, lengths, strict=True)
        )
        prompt = f"{earlier} please" if row % NEAR_EVERY == NEAR_EVERY - 1 else f"{prompt}, as in {row}?"
        earlier = prompt
        fields = {"id": f"row-{row}", "prompt": prompt, "chosen": f"{chosen}.", "rejected": f"{rejected}."}
        if with_bad and row % BAD_EVERY == BAD_EVERY - 1:
            fields["rejected"] = fields["chosen"]
        yield json.dumps({**fields, "strength": "better"}) + "\n"


def _read(rows: int, work: Path, threads: int) -> dict[str, float]:
    """Reading alone in this process, then reading and checking as `alignloop data check` does, a process a core."""
    from alignloop.data.check_files import check_file
    from alignloop.data.readers import iter_preferences
    from alignloop.records import RejectedRow

    file = work / f"preferences-{rows}.jsonl"
    write_preferences(file, num_rows=rows, with_bad=True)
    small = work / "preferences-warm.jsonl"
    write_preferences(small, num_rows=2_000, with_bad=True)
    for _ in iter_preferences(small):
        pass
    watch = MemoryWatch()
    kept = rejected = 0
    started = time.perf_counter()
    for row in iter_preferences(file):
        if type(row) is RejectedRow:
            rejected += 1
        else:
            kept += 1
    reading = time.perf_counter() - started
    started = time.perf_counter()
    checked = check_file(file, workers=threads).tally
    checking = time.perf_counter() - started
    return {
        "rows_per_second": rows / checking,
        "read_alone_per_second": rows / reading,
        "mb_per_second": file.stat().st_size / checking / 1e6,
        "bytes_per_row": file.stat().st_size / rows,
        "above_mib": watch.above_mib(),
        "kept": kept,
        "rejected": rejected,
        "same": float((checked.num_kept, checked.num_rejected) == (kept, rejected)),
    }


def _prune(rows: int, work: Path) -> dict[str, float]:
    from alignloop.alone.prune import prune_file
    from alignloop.progress import QuietProgress
    from scripts.bench.data_rows import clustered

    file, vectors, out = work / f"prune-{rows}.jsonl", work / f"prune-{rows}.npy", work / "pruned.jsonl"
    write_preferences(file, num_rows=rows, with_bad=False)
    if not vectors.is_file():
        np.save(vectors, clustered(rows).vectors)
    for old in work.glob("pruned.*"):
        old.unlink()
    watch = MemoryWatch()
    started = time.perf_counter()
    result = prune_file(
        str(file),
        out=out,
        embedder=None,
        embeddings=vectors,
        benchmarks=("quickstart",),
        form=None,
        config=None,
        overrides=(),
        progress=QuietProgress(),
    )
    found = {"seconds": time.perf_counter() - started, "peak_mib": watch.peak_mib()}
    with out.open() as kept:
        found["kept"] = float(sum(1 for _ in kept))
    return found | {f"seconds_of_{step['step']}": float(step["seconds"]) for step in result.funnel["steps"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("read", "prune"))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "read":
        measured = _read(options.rows, options.work, options.threads)
    else:
        measured = _prune(options.rows, options.work)
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
