#!/usr/bin/env python3
"""alignloop's data work: semantic deduplication at scale and against semhash, planted rows, reading, pruning.

    scripts/bench/data.py                          everything: some twenty minutes on two cores, 4 GiB of memory
    scripts/bench/data.py --quick --json out.json  a check of less than a minute, not a result
    scripts/bench/data.py --cases dedup_1m dedup_exact_20k --pairs 1 --markdown table.md

docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.config.environment import prepare
from alignloop.errors import AlignloopError
from scripts.bench.data_cases import CASES, FULL, QUICK, Result, Setting, SkippedError
from scripts.bench.data_table import line, to_json, to_markdown
from scripts.bench.measuring import BenchError
from scripts.bench.page import add_flags, check_flags, heading, write

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "scipy", "sentence-transformers", "semhash", "usearch", "orjson")


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was measured, whatever the values; 1 where a measurement failed."""
    options = _options(argv)
    prepare()
    threads = options.threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    amount = QUICK if options.quick else FULL
    amount = replace(amount, pairs=options.pairs or amount.pairs)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-data-")))
        work.mkdir(parents=True, exist_ok=True)

        def child(script: str, *arguments: str) -> dict[str, float]:
            return _child(script, *arguments, "--threads", str(threads))

        setting = Setting(amount, threads, work.resolve(), ROOT.parent / "shared" / "data", child)
        results, problems = _measure(options.cases, setting)
    top = heading(options, packages=PACKAGES, pairs=amount.pairs)
    write(to_markdown(results, heading=top), to_json(results), options)
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measure(names: Sequence[str], setting: Setting) -> tuple[list[Result], list[str]]:
    """Results, and what failed; one case that fails does not end the others."""
    measures = _measures()
    results: list[Result] = []
    problems: list[str] = []
    for name in names:
        started = time.monotonic()
        try:
            measured = measures[name](setting)
        except SkippedError as reason:
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        except (BenchError, AlignloopError) as error:
            problems.append(f"{name}: {error}")
            continue
        for result in measured:
            print(line(result), flush=True)
        print(f"  ({name}: {time.monotonic() - started:.0f} s)", flush=True)
        results += measured
        problems += [f"{name}: {result.problem}" for result in measured if result.problem]
    return results, problems


def _measures() -> dict[str, Callable[[Setting], list[Result]]]:
    # numpy reads the number of threads when it is imported: after the options are known.
    from scripts.bench.data_dedup import dedup_1m, dedup_exact_20k, dedup_vs_semhash
    from scripts.bench.data_files import prune_100k, read
    from scripts.bench.data_planted import planted

    return {
        "dedup_1m": dedup_1m,
        "dedup_exact_20k": dedup_exact_20k,
        "dedup_vs_semhash": dedup_vs_semhash,
        "planted": planted,
        "read": read,
        "prune_100k": prune_100k,
    }


def _child(script: str, *arguments: str) -> dict[str, float]:
    """The JSON object that a measurement prints as its last line, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise BenchError(f"{' '.join(command[1:])} ended with {done.returncode} (out of memory, if -9)\n{tail}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; a flag that makes no sense ends the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"of: {', '.join(CASES)}; default all")
    add_flags(
        parser,
        quick="little of everything: not a result",
        work="keep the made files here; default: a temporary folder",
    )
    options = parser.parse_args(argv)
    check_flags(parser, options, known=CASES, counts=("pairs", "threads"))
    options.cases = options.cases or list(CASES)
    return options


if __name__ == "__main__":
    sys.exit(main())
