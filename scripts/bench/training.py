#!/usr/bin/env python3
"""alignloop's training against TRL's, and its scoring against separate rows, on this machine's CPU.

    scripts/bench/training.py                          every case, both model sizes, three pairs
    scripts/bench/training.py --quick --json out.json  a check of a minute or two, not a result
    scripts/bench/training.py --tokens                 what the lengths of the rows foretell, unmeasured
    scripts/bench/training.py --cases dpo sft --size 3m --pairs 5 --markdown table.md

Same model, rows, optimiser and threads; in one run the two sides take turns, and a result is the median of the pairs'
ratios. docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.measuring import BenchError, Measurer
from scripts.bench.page import add_flags, check_flags, heading, write
from scripts.bench.training_cases import (
    CASES,
    SIDES,
    SIZES,
    Amount,
    Case,
    Measurement,
    Request,
    Setting,
    Side,
    amount_of,
)
from scripts.bench.training_data import SOURCES, load_groups
from scripts.bench.training_table import Result, to_json, to_markdown
from scripts.bench.training_tokens import HEADER, TokenCounts, token_counts

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl")
TRIAL_STEPS = 1
"""Optimiser steps that each setting of a side is tried on."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was measured, whatever the ratios; 1 where a measurement failed or was not of equal work."""
    options = _options(argv)
    cases = _with_data([CASES[name] for name in options.cases], data_dir=options.data)
    sizes = SIZES if options.size == "both" else (options.size,)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-training-")))
        work.mkdir(parents=True, exist_ok=True)
        bench = _Bench(options, Measurer(threads=options.threads, work=work), work)
        try:
            if options.tokens:
                print("\n".join(bench.tokens(cases, sizes=sizes)))
                return 0
            results = bench.run(cases, sizes=sizes)
        except BenchError as error:
            print(f"broken: {error}", file=sys.stderr)
            return 1
    top = heading(options, packages=PACKAGES, pairs=options.pairs)
    write(to_markdown(results, heading=top), to_json(results), options)
    for problem in bench.problems:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if bench.problems else 0


def _with_data(cases: Sequence[Case], *, data_dir: Path) -> list[Case]:
    """The cases whose rows are here; the others are left out, with the reason."""
    kept = []
    for case in cases:
        path = data_dir / SOURCES[case.data] if case.is_real else None
        if path is None or path.is_file():
            kept.append(case)
        else:
            print(f"{case.name}: skipped: it needs {path}, which is not here")
    return kept


class _Bench:
    """Measures cases, and tells as it goes.

    Attributes:
        problems: measurements that failed or were not of equal work.
    """

    def __init__(self, options: argparse.Namespace, measurer: Measurer, work: Path) -> None:
        self.options, self.measurer, self.work = options, measurer, work
        self.problems: list[str] = []

    def run(self, cases: Sequence[Case], *, sizes: Sequence[str]) -> list[Result]:
        """Results of the cases that could be measured; one that fails does not end the others.

        Raises:
            BenchError: there are no models or rows to measure on.
        """
        started = time.monotonic()
        self.measurer.prepare(sizes=sizes, names=[case.data for case in cases], data_dir=self.options.data)
        print(f"models and rows: {time.monotonic() - started:.0f} s", flush=True)
        results = []
        for size in sizes:
            for case in cases:
                try:
                    result = self._case(case, size=size)
                except BenchError as error:
                    self.problems.append(str(error))
                    continue
                print(result.line(), flush=True)
                results.append(result)
                if (problem := result.problem()) is not None:
                    self.problems.append(problem)
        return results

    def _case(self, case: Case, *, size: str) -> Result:
        """Settings first, then the pairs: ours and theirs take turns at going first."""
        amount = self._amount(case, size=size)
        theirs, memory_mib = self._setting("theirs", case, size=size, amount=amount)
        ours, _ = self._setting("ours", case, size=size, amount=amount, most_mib=memory_mib)
        settings: dict[Side, Setting] = {"ours": ours, "theirs": theirs}
        result = Result(case, size, self._tokens(case, amount), ours, theirs)
        for number in range(self.options.pairs):
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            measured = {side: self._measure(side, case, size, settings[side], amount) for side in order}
            result.pairs.append((measured["ours"], measured["theirs"]))
        return result

    def tokens(self, cases: Sequence[Case], *, sizes: Sequence[str]) -> list[str]:
        """Lines of a Markdown table: what the lengths of the rows say, without a measurement."""
        self.measurer.prepare(sizes=sizes, names=[case.data for case in cases], data_dir=self.options.data)
        rows = [
            self._tokens(case, self._amount(case, size=size)).row(case.name, size) for size in sizes for case in cases
        ]
        return [*HEADER, *rows]

    def _tokens(self, case: Case, amount: Amount) -> TokenCounts:
        return token_counts(case, load_groups(self.work, case.data, amount=amount))

    def _setting(
        self, side: Side, case: Case, *, size: str, amount: Amount, most_mib: float = math.inf
    ) -> tuple[Setting, float]:
        """The fastest of the side's settings on a few steps, and its memory.

        Settings that take more than `most_mib` are left out, unless all do. Where none is tried out, the case's first.
        """
        settings = case.ours if side == "ours" else case.theirs
        if not self.options.tune:
            return settings[0], math.inf
        trial = replace(amount, num_groups=min(amount.num_groups, TRIAL_STEPS * amount.batch_groups))
        tried = {setting: self._measure(side, case, size, setting, trial) for setting in settings}
        told = "; ".join(
            f"{setting.label}: {measured.examples_per_second:.2f} ({measured.memory_mib:,.0f} MiB)"
            for setting, measured in tried.items()
        )
        print(f"  {case.name}, {size}, {side}: examples/s by setting: {told}", flush=True)
        least = min(measured.memory_mib for measured in tried.values())
        fitting = [setting for setting in settings if tried[setting].memory_mib <= max(most_mib, least)]
        chosen = max(fitting, key=lambda setting: tried[setting].examples_per_second)
        return chosen, tried[chosen].memory_mib

    def _measure(self, side: Side, case: Case, size: str, setting: Setting, amount: Amount) -> Measurement:
        return self.measurer.measure(Request(side, case.name, size, setting, amount, str(self.work)))

    def _amount(self, case: Case, *, size: str) -> Amount:
        amount = amount_of(case, size=size, quick=self.options.quick)
        groups = self.options.groups or amount.num_groups
        return replace(amount, num_groups=groups, batch_groups=min(amount.batch_groups, groups))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; a flag that makes no sense ends the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=list(CASES), help=f"of: {', '.join(CASES)}")
    parser.add_argument("--size", choices=(*SIZES, "both"), help="of the model; default both, with --quick 3m")
    parser.add_argument("--groups", type=int, metavar="N", help="prompt groups a measurement; default by case and size")
    parser.add_argument(
        "--tokens", action="store_true", help="only count the rows' tokens, and the ratio they foretell"
    )
    parser.add_argument("--tune", action=argparse.BooleanOptionalAction, help="try out each side's settings first")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real rows")
    add_flags(
        parser,
        quick="few groups, no trying out of settings: not a result",
        work="keep models and rows here; default: a temporary folder",
    )
    options = parser.parse_args(argv)
    check_flags(parser, options, known=CASES, counts=("pairs", "groups", "threads"))
    options.size = options.size or ("3m" if options.quick else "both")
    options.pairs = options.pairs or (1 if options.quick else 3)
    options.threads = options.threads or len(os.sched_getaffinity(0))
    options.tune = not options.quick if options.tune is None else options.tune
    return options


if __name__ == "__main__":
    sys.exit(main())
