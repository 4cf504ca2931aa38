#!/usr/bin/env python3
"""The laboratory: each claim of the method against the same run without it, on redrawn data, seed by seed.

    scripts/bench/method.py                      all arms on three seeds: a night on two cores
    scripts/bench/method.py --arms loop offline random-pick --seeds 0 1 2
    scripts/bench/method.py --quick              one seed, two rounds, the controls: a quarter of an hour
    scripts/bench/method.py --report-only        the tables from what has run

A seed draws prompts, benchmarks, the sibling of the base and the sampled preferences anew (scripts/build_quickstart.py
--data-only); the base is the one that ships. What a finished run came to is a line of docs/method_runs.jsonl, and is
not run again, on whatever machine, while base, recipe, world and arm are the same; a run that was stopped goes on where
it was, and stages that arms have in common are made once. Writes docs/method.md and docs/method.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alignloop.loop.final import FINAL  # noqa: E402
from alignloop.run_dir.layout import RESOLVED  # noqa: E402
from scripts.bench.method_arms import ARMS, CLAIMS, LOOP, Arm  # noqa: E402
from scripts.bench.method_record import Outcome, made_of, outcome_of, read_outcomes, write_outcomes  # noqa: E402
from scripts.bench.method_tables import SHOWN, figures_of, text_of  # noqa: E402

DOCS = ROOT / "docs"
RECORD = DOCS / "method_runs.jsonl"
MEASURES = tuple(dict.fromkeys(measure for claim in CLAIMS for measure in claim.measures))
_RECORDING = threading.Lock()


@dataclass(frozen=True)
class Lab:
    """Where runs and what they came to lie, and how long they are."""

    work: Path
    record: Path
    rounds: int
    seeds: tuple[int, ...]

    def world(self, seed: int) -> Path:
        return self.work / f"world-{seed}" / "data"

    def run_dir(self, arm: str, seed: int) -> Path:
        return self.work / f"{self.rounds}-rounds" / f"seed-{seed}" / arm

    def recorded(self, arm: Arm, seed: int) -> Outcome | None:
        """What the arm's run came to, on whatever machine; None where it has not run as it would today."""
        found = read_outcomes(self.record).get((arm.name, seed))
        return found if found is not None and found.made_of == made_of(arm, rounds=self.rounds) else None

    def outcomes(self) -> dict[str, dict[int, Outcome]]:
        """By arm and seed, of the seeds that are asked for."""
        found: dict[str, dict[int, Outcome]] = {}
        for arm in ARMS.values():
            of_seeds = {seed: one for seed in self.seeds if (one := self.recorded(arm, seed)) is not None}
            if of_seeds:
                found[arm.name] = of_seeds
        return found

    def keep(self, outcome: Outcome) -> None:
        with _RECORDING:
            write_outcomes(
                self.record, [*(read_outcomes(self.record) | {(outcome.arm, outcome.seed): outcome}).values()]
            )

    def is_finished(self, arm: str, seed: int) -> bool:
        return (self.run_dir(arm, seed) / FINAL).is_dir()  # published last

    def settings(self, arm: Arm, seed: int) -> list[str]:
        """Of the arm's run, its own last. Where its climb is shown all is asked in every round; elsewhere what chooses
        nothing is asked and measured at the end alone. A control is asked what the run is that it controls."""
        data, is_shown = self.world(seed), (arm.of if arm.kind else arm.name) in SHOWN
        tests = [f"ifeval={data}/ifeval.jsonl", f"ifeval_unseen={data}/ifeval_unseen.jsonl"]
        chooses = [f"ifeval_dev={data}/ifeval_dev.jsonl"]
        (chooses if is_shown else tests).append("mmlu")
        asked = ["evaluate.test_rounds=all"] if is_shown else [f"measure.at=[{arm.rounds or self.rounds}]"]
        if any(setting.startswith("measure.") for setting in arm.settings):
            asked = []
        return [
            f"name={arm.name}",
            f"preferences={data}/preferences.jsonl",
            f"prompts={data}/prompts.jsonl",
            f"seed={seed}",
            f"evaluate.tasks=[{','.join(chooses)}]",
            f"evaluate.test_tasks=[{','.join(tests)}]",
            *asked,
            *arm.settings,
        ]


def main() -> int:
    options = _options()
    work = options.work.resolve()
    record = work / "quick_runs.jsonl" if options.quick else RECORD
    lab = Lab(work, record, options.rounds, tuple(options.seeds))
    if not options.report_only:
        run_all(lab, [ARMS[name] for name in options.arms], side_by_side=options.side_by_side)
    outcomes = lab.outcomes()
    text, figures = text_of(outcomes, rounds=lab.rounds), figures_of(outcomes)
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
    """What is not recorded, runs that have controls first: those are measured by them. All share what is there."""
    wanted = [(arm, seed) for arm in arms for seed in lab.seeds if lab.recorded(arm, seed) is None]
    seeds = sorted({seed for _, seed in wanted})
    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(lambda seed: draw_world(lab, seed), seeds))
    controlled = dict.fromkeys((ARMS[arm.of], seed) for arm, seed in wanted if arm.kind is not None)
    first = [(arm, seed) for arm, seed in controlled if not lab.is_finished(arm.name, seed)]
    for wave in (first, [job for job in wanted if job not in first]):
        with ThreadPoolExecutor(side_by_side) as pool:
            list(pool.map(lambda job: run_arm(lab, *job, threads=_threads(side_by_side)), wave))


def _threads(side_by_side: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // side_by_side)


def run_arm(lab: Lab, arm: Arm, seed: int, *, threads: int) -> None:
    """One run in a process of its own; its output lies beside it."""
    folder = lab.run_dir(arm.name, seed)
    sets = [part for setting in lab.settings(arm, seed) for part in ("--set", setting)]
    common = ["quickstart", "--run-dir", str(folder), "--rounds", str(arm.rounds or lab.rounds), *sets]
    if arm.kind is not None:
        command = ["control", *common, "--kind", arm.kind, "--of", str(lab.run_dir(arm.of, seed))]
    else:
        made = sorted(path.parent for path in folder.parent.glob(f"*/{RESOLVED}") if path.parent != folder)
        command = ["run", *common, *(part for path in made for part in ("--share-with", str(path)))]
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
        return
    lab.keep(outcome_of(folder, arm=arm, seed=seed, rounds=lab.rounds, measures=MEASURES))


if __name__ == "__main__":
    sys.exit(main())
