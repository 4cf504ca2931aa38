#!/usr/bin/env python3
"""The benchmarks: alignloop against what people use today, on this machine.

    scripts/bench/run.py --cases training data            whole groups, or single cases
    scripts/bench/run.py --cases dpo sft --size 3m --pairs 5 --json out.json --markdown table.md
    scripts/bench/run.py --quick                          a little of each: a check of minutes, not a result
    scripts/bench/run.py --cases score_k16 --side peer --setting 1     one side alone

The two sides of a case take turns, and a ratio is the median of the pairs' ratios. The exit code is 1 where a
measurement failed or the sides did not do the same work. docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.environment import prepare, silence
from alignloop.errors import AlignloopError
from scripts.bench import data, evaluation, methods, sampling, training
from scripts.bench.case import Bench, BenchError, Measured, SkippedError, heading, measure, to_json, to_markdown

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GROUPS = {
    "training": training.CASES,
    "sampling": sampling.CASES,
    "data": data.CASES,
    "evaluation": evaluation.CASES,
    "methods": methods.CASES,
}
STDOUT = Path("/dev/stdout")
CASES = {case.name: case for cases in GROUPS.values() for case in cases}


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was measured, whatever the values; 1 where a measurement failed."""
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that no engine is left behind
    options.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    # Read when torch is imported, here and in every process that is started.
    os.environ |= {**options.environment, "OMP_NUM_THREADS": str(options.threads)}
    prepare()
    silence()
    problems: list[str] = []
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        work.mkdir(parents=True, exist_ok=True)
        measured = list(_measured(options, work.resolve(), problems))
    top = heading(threads=options.threads, pairs=options.pairs, quick=options.quick)
    text = to_markdown(measured, heading=top)
    print(f"\n{text}", end="", flush=True)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        text = json.dumps(to_json(measured), indent=2) + "\n"
        if options.json == STDOUT:
            print(text, end="", flush=True)
        else:
            options.json.write_text(text)
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measured(options: argparse.Namespace, work: Path, problems: list[str]) -> Iterator[Measured]:
    """One case after another; one that fails does not end the others."""
    how = (options.side, options.setting, options.environment)
    for case in options.cases:
        sizes = [size for size in case.amounts if options.size in (None, size)]
        for size in sizes[: 1 if options.quick else None]:
            started, usual = time.monotonic(), case.amounts[size]
            amount = options.amount or (case.quick or next(iter(case.amounts.values())) if options.quick else usual)
            much = (options.threads, options.pairs, options.quick, size, amount, amount < usual)
            try:
                with ExitStack() as stack:
                    one = measure(case, Bench(work, options.data, *much, *how, stack))
            except SkippedError as reason:
                print(f"{case.name}: skipped: {reason}", flush=True)
                continue
            except (BenchError, AlignloopError) as error:
                problems.append(f"{case.name} {size}: {error}")
                continue
            print("\n  ".join([*one.rows(), *one.remarks, f"({time.monotonic() - started:.0f} s)"]), flush=True)
            yield one


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options that make no sense end the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {', '.join(case.name for case in cases)}" for name, cases in GROUPS.items())
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=list(GROUPS), help=f"groups or cases of {listed}")
    parser.add_argument("--size", help="of the model, where a case has several; default all, with --quick the first")
    parser.add_argument("--side", choices=("both", "ours", "peer"), default="both", help="one side alone")
    parser.add_argument("--setting", metavar="LABEL", help="of both sides, as the table shows it; default: tried out")
    parser.add_argument("--amount", type=int, metavar="N", help="rows, groups, prompts, swaps ... of one measurement")
    parser.add_argument("--pairs", type=int, metavar="N", help="readings of each side; default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--quick", action="store_true", help="little of everything, no settings tried: not a result")
    json_help = "the figures, as one flat object; without a FILE it is printed last"
    parser.add_argument("--json", type=Path, metavar="FILE", nargs="?", const=STDOUT, help=json_help)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the real data")
    parser.add_argument("--work", type=Path, help="keep models, rows, runs and logs here; default: a temporary folder")
    options = parser.parse_args(argv)
    for name in ("amount", "pairs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: must be at least 1, not {value}")
    for path in (options.json, options.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"{path}: there is no folder {path.resolve().parent} to write it to")
    if unknown := [name for name in options.cases if name not in GROUPS | CASES]:
        parser.error(f"--cases: there is no case {', '.join(unknown)}; choose from {', '.join([*GROUPS, *CASES])}")
    cases = [case for name in options.cases for case in (GROUPS[name] if name in GROUPS else (CASES[name],))]
    options.cases = [case for case in cases if case.quick or not options.quick or case.name in options.cases]
    if options.size and not any(options.size in case.amounts for case in options.cases):
        parser.error(f"--size: no case has {options.size}")
    options.pairs = options.pairs or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
