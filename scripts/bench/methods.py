#!/usr/bin/env python3
"""RLOO against TRL's trainer, and what a semi-online round takes beside its own work.

scripts/bench/methods.py                     as `scripts/bench/run.py --cases methods`, with its options
scripts/bench/methods.py --quick --json      a check of minutes, with the figures as JSON
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides, number
from scripts.bench.methods_sides import Rloo, rloo_ours, rloo_trl, semi_online_rounds
from scripts.bench.processes import alone

LENGTHS_APART = 0.25
"""Share by which the tokens that the two sides sample may differ: policies are equal, draws and updates are not."""
FIRST_PLAIN_ROUND = 2
"""Round 1 trains a reward model and SFT; with `reward.every` 6 and benchmarks at the end the next four do not."""
SEMI_ONLINE = ("evaluate.every=1000", "evaluate.limit=8", "evaluate.test_tasks=[]", "measure.enabled=false")
SHORTENED = ("reward.max_steps=4", "prune.human_rows=8", "evaluate.limit=2", "engine.name=transformers")
"""With `--quick` beside that."""


def _rloo_vs_trl(bench: Bench) -> Sides:
    """Seconds a step, sampling, rewards and weight swap in it, after the first step; each reading a process."""
    small = {"num_prompts": 2, "num_candidates": 2, "max_tokens": 16} if bench.quick else {}
    job = Rloo(bench.work / "rloo", steps=bench.amount, engine="transformers" if bench.quick else "vllm", **small)
    job.folder.mkdir(parents=True, exist_ok=True)

    def side(name: str) -> Reading:
        measured = rloo_ours if name == "ours" else rloo_trl
        reading: Reading = alone(measured, job, log=bench.work / f"rloo-{name}.log", environment=bench.environment)
        return reading

    def check(ours: Readings, peer: Readings) -> list[str]:
        mine, other = (median(reading["tokens"] for reading in side) for side in (ours, peer))
        if abs(mine - other) > LENGTHS_APART * other and not bench.quick:
            raise BenchError(f"completions of {mine:.1f} and {other:.1f} tokens: not the same work")
        rewards = [number(median(reading["reward"] for reading in side)) for side in (ours, peer)]
        return [
            f"{job.num_prompts} prompts x {job.num_candidates} completions a step, {job.steps} steps; completions of "
            f"{mine:.1f} and {other:.1f} tokens; mean reward of the second half {' and '.join(rewards)}"
        ]

    return Sides(partial(side, "ours"), partial(side, "trl"), check)


def _semi_online(bench: Bench) -> Sides:
    """The median over plain rounds of the share of wall time outside sample, score, build_pairs and train_dpo."""

    def read() -> Reading:
        run_dir = bench.work / "semi-online"
        shutil.rmtree(run_dir, ignore_errors=True)
        overrides = (*SEMI_ONLINE, *(SHORTENED if bench.quick else ()))
        log = bench.work / "semi-online.log"
        rounds = alone(semi_online_rounds, run_dir, bench.amount, overrides, log=log, environment=bench.environment)
        plain = rounds[FIRST_PLAIN_ROUND - 1 : -1]  # the last is asked the benchmarks
        shares = [1.0 - sum(stages.values()) / wall for wall, stages in plain]
        return {"share": median(shares), "seconds": median(wall for wall, _ in plain), "rounds": plain}

    def check(ours: Readings, peer: Readings) -> Sequence[str]:
        rounds = ours[-1]["rounds"]
        parts = {name: median(stages[name] for _, stages in rounds) for name in rounds[0][1]}
        shown = ", ".join(f"{name} {number(seconds)} s" for name, seconds in parts.items())
        return [f"{len(rounds)} rounds of {number(ours[-1]['seconds'])} s: {shown}"]

    return Sides(read, None, check)


_RLOO = Figure("rloo_vs_trl", "seconds", " s", least=2.0, inverse=True)
_OVERHEAD = Figure("semi_online_overhead", "share", most=0.2)
CASES: Sequence[Case] = (
    Case("rloo_vs_trl", (_RLOO,), _rloo_vs_trl, {"base": 8}, quick=2, needs="trl"),
    Case("semi_online_overhead", (_OVERHEAD,), _semi_online, {"6 rounds": 6}, quick=3, once=True),
)


if __name__ == "__main__":
    from scripts.bench import run

    sys.exit(run.main(["--cases", "methods", *sys.argv[1:]]))
