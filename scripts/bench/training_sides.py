#!/usr/bin/env python3
"""One measurement of one side, in a process of its own.

    scripts/bench/training_sides.py ours reward_3way --size 3m --rows 8 --threads 1 --profile
    scripts/bench/training_sides.py theirs dpo_real --rows 4 --precompute-ref

Models and rows lie in --work, where they are built once. Prints one JSON object; everything else goes to stderr.
`--profile` adds where the time went: torch's operators by their own CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.packing.groups import PromptGroup
from scripts.bench.training_cases import (
    CASES,
    SIDES,
    SIZES,
    Amount,
    Measurement,
    Request,
    Setting,
    amount_of,
)
from scripts.bench.training_data import load_groups, prepare

ROOT = Path(__file__).resolve().parents[2]


def measure(request: Request) -> Measurement:
    """Make the measurement in this process: TRL's side only once in each."""
    case = CASES[request.case]
    groups = load_groups(Path(request.work), case.data, amount=request.amount)
    warm_up = warm_up_groups(groups, count=request.amount.batch_groups)
    if case.kind == "score":
        from scripts.bench import scoring_sides

        side = scoring_sides.measure_ours if request.side == "ours" else scoring_sides.measure_separate_rows
        return side(request, warm_up=warm_up, groups=groups)
    if request.side == "ours":
        from scripts.bench import training_ours

        return training_ours.measure(request, warm_up=warm_up, groups=groups)
    from scripts.bench import training_trl

    return training_trl.measure(request, warm_up=warm_up, groups=groups)


def warm_up_groups(groups: Sequence[PromptGroup], *, count: int) -> list[PromptGroup]:
    """One step's groups, the longest of all among them: memory has then been asked for once."""
    longest = max(range(len(groups)), key=lambda number: groups[number].num_tokens)
    numbers = [longest, *(number for number in range(len(groups)) if number != longest)]
    return [groups[number] for number in sorted(numbers[:count])]


def default_work() -> Path:
    """Where models and rows are kept between calls of this script."""
    return Path(tempfile.gettempdir()) / f"alignloop-bench-{os.getuid()}"


def main() -> int:
    arguments = _parser().parse_args()
    case = CASES[arguments.case]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    # stdout is for the result alone: the trainers print as they like.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = (case.ours if arguments.side == "ours" else case.theirs)[0]
    setting = Setting(arguments.rows or first.rows, arguments.precompute_ref, arguments.packing or first.packing)
    usual = amount_of(case, size=arguments.size, quick=False)
    amount = Amount(arguments.groups or usual.num_groups, arguments.batch_groups or usual.batch_groups)
    prepare(arguments.work, sizes=[arguments.size], names=[case.data], data_dir=arguments.data)
    request = Request(arguments.side, arguments.case, arguments.size, setting, amount, str(arguments.work))
    measured = _profiled(request) if arguments.profile else measure(request)
    print(json.dumps(measured.to_json() | {"setting": setting.label, "threads": arguments.threads}), file=result)
    return 0


def _profiled(request: Request) -> Measurement:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        measured = measure(request)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--size", choices=SIZES, default=SIZES[0])
    parser.add_argument("--rows", type=int, help="rows per forward pass; default: the case's first")
    parser.add_argument("--precompute-ref", action="store_true", help="TRL's DPO: reference logprobs before training")
    parser.add_argument("--packing", choices=("bfd", "wrapped"), help="TRL's SFT")
    parser.add_argument("--groups", type=int, help="prompt groups of the timed pass")
    parser.add_argument("--batch-groups", type=int, help="prompt groups an optimiser step")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=default_work())
    parser.add_argument("--profile", action="store_true", help="also print the operators that took the time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
