#!/usr/bin/env python3
"""The laboratory: each claim of the method against the same run without it, on redrawn data, seed by seed.

    scripts/bench/method.py                      all arms on three seeds: a night on two cores
    scripts/bench/method.py --arms loop offline random-pick --seeds 0 1 2
    scripts/bench/method.py --quick              one seed, two rounds, the controls: a quarter of an hour
    scripts/bench/method.py --report-only        the tables from what has run

A seed draws prompts, benchmarks, the sibling of the base and the sampled preferences anew (scripts/build_quickstart.py
--data-only); the base is the one that ships. A finished run is kept and taken over, one that was stopped goes on where
it was, and stages that arms have in common are made once. Writes docs/method.md and docs/method.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alignloop.loop.final import FINAL  # noqa: E402
from alignloop.records import RoundRow  # noqa: E402
from alignloop.run_dir.reader import read_rounds  # noqa: E402
from scripts.bench.method_arms import ARMS, CLAIMS, LOOP, Arm, Claim  # noqa: E402

STRICT = "ifeval/prompt_level_strict_acc"
UNSEEN, KNOWLEDGE = "ifeval_unseen/prompt_level_strict_acc", "mmlu/acc"
DOCS = ROOT / "docs"
ALL_TESTS = "evaluate.test_rounds=all"


@dataclass(frozen=True)
class Lab:
    """Where runs lie and how long they are."""

    work: Path
    rounds: int
    seeds: tuple[int, ...]

    def world(self, seed: int) -> Path:
        return self.work / f"world-{seed}" / "data"

    def run_dir(self, arm: str, seed: int) -> Path:
        return self.work / f"{self.rounds}-rounds" / f"seed-{seed}" / arm

    def rows(self, arm: str, seed: int) -> list[RoundRow] | None:
        """The rounds of a finished run; None where there is none."""
        folder = self.run_dir(arm, seed)
        if not (folder / FINAL).is_dir():  # published last
            return None
        return list(read_rounds(folder))

    def settings(self, seed: int) -> list[str]:
        data = self.world(seed)
        tests = [f"ifeval={data}/ifeval.jsonl", f"ifeval_unseen={data}/ifeval_unseen.jsonl"]
        return [
            f"preferences={data}/preferences.jsonl",
            f"prompts={data}/prompts.jsonl",
            f"seed={seed}",
            f"evaluate.tasks=[ifeval_dev={data}/ifeval_dev.jsonl,mmlu]",
            f"evaluate.test_tasks=[{','.join(tests)}]",
            ALL_TESTS,
        ]


def main() -> int:
    options = _options()
    lab = Lab(options.work.resolve(), options.rounds, tuple(options.seeds))
    if not options.report_only:
        for seed in lab.seeds:
            draw_world(lab, seed)
        run_all(lab, [ARMS[name] for name in options.arms], side_by_side=options.side_by_side)
    text, figures = report(lab)
    print(text)
    if not options.quick:
        (DOCS / "method.md").write_text(text, encoding="utf-8")
        (DOCS / "method.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "method", help="folder of worlds and runs")
    parser.add_argument("--side-by-side", type=int, default=2, help="runs at once, each on its share of the cores")
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds, the controls; writes no docs")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rounds = options.seeds[:1], 2
        options.arms = [name for name in options.arms if name in (LOOP, "offline", "random-pick")]
    return options


def draw_world(lab: Lab, seed: int) -> None:
    folder = lab.world(seed).parent
    if (folder / "data" / "preferences.jsonl").is_file():
        return
    command = ["--data-only", "--seed", str(seed), "--out", str(folder), "--work", str(lab.work / "drawn")]
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_quickstart.py"), *command], check=True)


def run_all(lab: Lab, arms: Sequence[Arm], *, side_by_side: int) -> None:
    """The loop of every seed first: the others share its stages, and controls are measured by it."""
    for wave in ([arm for arm in arms if arm.name == LOOP], [arm for arm in arms if arm.name != LOOP]):
        jobs = [(arm, seed) for arm in wave for seed in lab.seeds if lab.rows(arm.name, seed) is None]
        with ThreadPoolExecutor(side_by_side) as pool:
            list(pool.map(lambda job: run_arm(lab, *job, threads=_threads(side_by_side)), jobs))


def _threads(side_by_side: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // side_by_side)


def run_arm(lab: Lab, arm: Arm, seed: int, *, threads: int) -> None:
    """One run in a process of its own; its output lies beside it."""
    folder, loop = lab.run_dir(arm.name, seed), lab.run_dir(LOOP, seed)
    settings = [f"name={arm.name}", *lab.settings(seed), *arm.settings]
    sets = [part for setting in settings for part in ("--set", setting)]
    common = ["quickstart", "--run-dir", str(folder), "--rounds", str(arm.rounds or lab.rounds), *sets]
    if arm.kind is not None:
        command = ["control", *common, "--kind", arm.kind, "--of", str(loop)]
    else:
        command = ["run", *common, *(() if arm.name == LOOP else ("--share-with", str(loop)))]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    print(f"{arm.name}, seed {seed}: {log}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "alignloop", *command], stdout=output, stderr=output, env=environment, check=False
        )
    if ended.returncode:
        print(f"{arm.name}, seed {seed}: failed, see {log}", flush=True)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (t-distribution); no interval of one seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def half(self) -> float | None:
        from scipy.stats import t

        if len(self.values) < 2:
            return None
        return float(t.ppf(0.975, len(self.values) - 1)) * stdev(self.values) / math.sqrt(len(self.values))

    @property
    def is_clear(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half

    def __str__(self) -> str:
        points = f"{100 * self.mean:+.1f}"
        return (
            points
            if self.half is None
            else f"{points} ({100 * (self.mean - self.half):+.1f} to {100 * (self.mean + self.half):+.1f})"
        )


def report(lab: Lab) -> tuple[str, dict[str, float]]:
    """`docs/method.md` and the flat figures of `docs/method.json`."""
    figures = headline(lab)
    for name in ARMS:
        if (last := over_seeds(lab, name, STRICT)) is not None:
            figures[name] = last.mean
    lines = [_HEAD.format(seeds=", ".join(map(str, lab.seeds)), rounds=lab.rounds), *_climb(lab)]
    for claim in CLAIMS:
        lines += _claim(lab, claim)
    return "\n".join(lines) + "\n", figures


_HEAD = """\
# What of the method can be seen to help

Written by `scripts/bench/method.py`. Seeds {seeds}, each with prompts, benchmarks and sampled preferences of its own,
for the one base that ships; {rounds} rounds. Figures are prompt-level strict accuracy in % on the test half, which
chooses nothing. Differences are in points, a mean over seeds with its 95 % interval (t-distribution, paired by seed).
*seen*: the interval lies clear of zero on the claim's side; *opposite*: on the other; *not seen*: it holds zero.
"""


def over_seeds(lab: Lab, arm: str, metric: str, *, at: int = -1) -> Estimate | None:
    """A metric of an arm at a round; None unless every seed has finished."""
    found = [rows for seed in lab.seeds if (rows := lab.rows(arm, seed)) is not None]
    if len(found) < len(lab.seeds) or any(metric not in rows[at].metrics for rows in found):
        return None
    return Estimate(tuple(rows[at].metrics[metric] for rows in found))


def minus(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    if one is None or other is None:
        return None
    return Estimate(tuple(a - b for a, b in zip(one.values, other.values, strict=True)))


def headline(lab: Lab) -> dict[str, float]:
    """The bars: loop against its controls, its climb, what it never trained on, what it must not forget."""
    last = over_seeds(lab, LOOP, STRICT)
    unseen, knowledge = (over_seeds(lab, LOOP, metric) for metric in (UNSEEN, KNOWLEDGE))
    found = {
        "loop_minus_offline": minus(last, over_seeds(lab, "offline", STRICT)),
        "loop_minus_random_pick": minus(last, over_seeds(lab, "random-pick", STRICT)),
        "round6_minus_round1": minus(last, over_seeds(lab, LOOP, STRICT, at=1)),
        "unseen_minus_base": minus(unseen, over_seeds(lab, LOOP, UNSEEN, at=0)),
        "unseen_minus_offline": minus(unseen, over_seeds(lab, "offline", UNSEEN)),
        "mmlu_minus_base": minus(knowledge, over_seeds(lab, LOOP, KNOWLEDGE, at=0)),
    }
    figures: dict[str, float] = {"num_seeds": len(lab.seeds)}
    for name, estimate in found.items():
        if estimate is not None:
            figures[name] = estimate.mean
        if estimate is not None and estimate.half is not None:
            figures |= {f"{name}_low": estimate.mean - estimate.half, f"{name}_high": estimate.mean + estimate.half}
    return figures


def _climb(lab: Lab) -> Iterator[str]:
    """Round by round, the loop beside its controls."""
    shown = [name for name in (LOOP, "offline", "random-pick") if over_seeds(lab, name, STRICT) is not None]
    if not shown:
        return
    yield f"| round | {' | '.join(shown)} | unseen types, loop | MMLU-form, loop |"
    yield "| --- " * (len(shown) + 3) + "|"
    for number in range(lab.rounds + 1):
        cells = [_percent(over_seeds(lab, name, STRICT, at=number)) for name in shown]
        cells += [_percent(over_seeds(lab, LOOP, metric, at=number)) for metric in (UNSEEN, KNOWLEDGE)]
        yield f"| {number or 'base'} | {' | '.join(cells)} |"
    yield ""


def _percent(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{100 * estimate.mean:.1f}"


def _claim(lab: Lab, claim: Claim) -> Iterator[str]:
    reference = over_seeds(lab, claim.reference, STRICT)
    yield f"\n## {claim.name}\n\n{claim.sentence}.\n"
    if reference is None or not any(over_seeds(lab, name, STRICT) for name in claim.arms):
        yield "Not run."
        return
    columns = ("arm", "keys", "strict", f"{claim.reference} minus it", *claim.measures, "verdict")
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for name in dict.fromkeys((claim.reference, *claim.arms)):
        own = over_seeds(lab, name, STRICT)
        if own is None:
            continue
        difference = None if name == claim.reference else minus(reference, own)
        cells = [_keys(ARMS[name]), _percent(own), "" if difference is None else str(difference)]
        cells += [_measure(lab, name, measure) for measure in claim.measures]
        yield f"| {name} | {' | '.join(cells)} | {_verdict(difference)} |"


def _keys(arm: Arm) -> str:
    kind = [f"control --kind {arm.kind}"] if arm.kind else []
    return ", ".join(f"`{key}`" for key in (*kind, *arm.settings)) or "the quickstart's"


def _measure(lab: Lab, arm: str, name: str) -> str:
    values = [rows[-1].measures.get(name) for seed in lab.seeds if (rows := lab.rows(arm, seed)) is not None]
    known = [value for value in values if value is not None]
    return f"{mean(known):.3f}" if known else "-"


def _verdict(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    if difference.half is None:
        return "one seed"
    if not difference.is_clear:
        return "not seen"
    return "seen" if difference.mean > 0 else "opposite"


if __name__ == "__main__":
    sys.exit(main())
