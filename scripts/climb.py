#!/usr/bin/env python3
"""Print the climb of one or several runs as Markdown: round by round, and by instruction type.

    scripts/climb.py runs/seed-0 runs/seed-1 runs/seed-2

The README's tables are this script's output. It also checks what the quickstart promises and exits with 1 where a
promise does not hold: at most 20 % at the base, at least 60 % at the last round (mean over runs), no round more than
two standard errors under the one before, no instruction type under its base level by more than its error, and the
question benchmark not more than two points under the base.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean

from alignloop.records import RoundRow
from alignloop.run_dir.reader import read_rounds

STRICT = "ifeval/prompt_level_strict_acc"
QUESTIONS = "mmlu/acc"
TYPE = "ifeval/type/"
Runs = dict[str, tuple[RoundRow, ...]]


def main() -> int:
    runs: Runs = {folder: tuple(read_rounds(Path(folder))) for folder in sys.argv[1:]}
    if not runs or not all(runs.values()):
        sys.exit("usage: scripts/climb.py RUN_DIR...  (each with at least one finished round)")
    print("\n".join([*round_table(runs), "", *type_table(runs), ""]))
    broken = broken_promises(runs)
    print("\n".join(broken) if broken else "All promises hold.")
    return 1 if broken else 0


def level(runs: Runs, name: str, at: int) -> float:
    """A metric of a round, as the mean over runs."""
    return mean(rounds[at].metrics[name] for rounds in runs.values())


def types(runs: Runs) -> list[str]:
    first = next(iter(runs.values()))[0]
    return sorted(name for name in first.metrics if name.startswith(TYPE) and not name.endswith("_count"))


def round_table(runs: Runs) -> list[str]:
    """Prompt-level strict accuracy of each run and of their mean, and the mean of the question benchmark."""
    names = [Path(folder).name for folder in runs]
    lines = [f"| round | {' | '.join(names)} | mean | MMLU-form, mean |", "| --- " * (len(runs) + 3) + "|"]
    for number in range(min(map(len, runs.values()))):
        rows = [rounds[number] for rounds in runs.values()]
        cells = [f"{row.metrics[STRICT]:.1%} ± {row.stderr[STRICT]:.1%}" for row in rows]
        cells += [f"{level(runs, name, number):.1%}" for name in (STRICT, QUESTIONS)]
        lines.append(f"| {number or 'base'} | {' | '.join(cells)} |")
    return lines


def type_table(runs: Runs) -> list[str]:
    """Instruction-level strict accuracy by type: base and last round, mean over runs."""
    rows = [
        f"| `{name.removeprefix(TYPE)}` | {level(runs, name, 0):.0%} | {level(runs, name, -1):.0%} |"
        for name in types(runs)
    ]
    return ["| instruction type | base | last round |", "| --- | --- | --- |", *rows]


def broken_promises(runs: Runs) -> list[str]:
    broken = []
    if (base := level(runs, STRICT, 0)) > 0.20:
        broken.append(f"base: {base:.1%} is over 20 %")
    if (last := level(runs, STRICT, -1)) < 0.60:
        broken.append(f"last round: {last:.1%} is under 60 %")
    for folder, rounds in runs.items():
        for before, after in pairwise(rounds):
            if after.metrics[STRICT] < before.metrics[STRICT] - 2 * after.stderr[STRICT]:
                broken.append(f"{folder}: round {after.round} is more than two standard errors under the one before")
    for name in types(runs):
        base, last = level(runs, name, 0), level(runs, name, -1)
        error = mean(
            math.hypot(rounds[0].stderr.get(name, 0.0), rounds[-1].stderr.get(name, 0.0)) for rounds in runs.values()
        )
        if last < base - error:
            broken.append(f"{name}: {last:.0%} is under its base's {base:.0%} by more than {error:.0%}")
    base, last = level(runs, QUESTIONS, 0), level(runs, QUESTIONS, -1)
    if last < base - 0.02:
        broken.append(f"{QUESTIONS}: {last:.1%} is more than two points under the base's {base:.1%}")
    return broken


if __name__ == "__main__":
    sys.exit(main())
