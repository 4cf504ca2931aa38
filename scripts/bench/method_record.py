"""What finished runs of the laboratory came to, kept in `docs/method_runs.jsonl`: an arm that has run anywhere is not
run again, and tables are made of these lines alone.

run directory --outcome_of--> Outcome --append--> docs/method_runs.jsonl --read_outcomes--> tables
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.data.jsonl import load_jsonl
from alignloop.evaluation.report import EvalSample
from alignloop.report.facts import read_run
from scripts.bench.method_arms import Arm

STRICT = "ifeval/prompt_level_strict_acc"
DEV = "ifeval_dev/prompt_level_strict_acc"
UNSEEN, KNOWLEDGE = "ifeval_unseen/prompt_level_strict_acc", "mmlu/acc"
RIGHT = "prompt_level_strict_acc"


class Outcome(BaseModel):
    """A finished run.

    Attributes:
        made_of: digest of all that the run's figures depend on; of another one, the line says nothing of today's arm.
        metrics: by round, the base first; what no benchmark of that round gave is missing.
        measures: of the last round.
        answers: the last policy's on the test half, in its order: 1 where all instructions were followed, else 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    seed: int
    made_of: str
    metrics: list[dict[str, float]]
    measures: dict[str, float]
    answers: str


def made_of(arm: Arm, *, rounds: int) -> str:
    """Digest of the arm, of what the recipe sets, of the base that ships, and of the data that does, which stands for
    the world that seeds draw from."""
    recipe = load_recipe("quickstart", overrides=arm.settings).model_dump(mode="json", exclude_defaults=True)
    said = [arm.kind, arm.rounds or rounds, recipe]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for file in sorted(path for folder in ("base", "data") for path in (QUICKSTART / folder).rglob("*")):
        if file.is_file():
            digest.update(f"\n{file.relative_to(QUICKSTART)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def outcome_of(run_dir: Path, *, arm: Arm, seed: int, rounds: int, measures: Iterable[str]) -> Outcome:
    """What a finished run came to; raises RunDirError where the folder holds none."""
    run = read_run(run_dir)
    last = run.finished[-1]
    samples = [
        sample
        for stage in last.stages
        for file in stage.files("samples")
        for sample in load_jsonl(file, EvalSample)
        if sample.task == STRICT.partition("/")[0]
    ]
    return Outcome(
        arm=arm.name,
        seed=seed,
        made_of=made_of(arm, rounds=rounds),
        metrics=[
            {key: entry.metrics[key] for key in (DEV, STRICT, UNSEEN, KNOWLEDGE) if key in entry.metrics}
            for entry in run.finished
        ],
        measures={key: last.measures[key] for key in measures if key in last.measures},
        answers="".join(
            str(int(sample.verdicts[RIGHT] == 1.0)) for sample in sorted(samples, key=lambda one: one.index)
        ),
    )


def read_outcomes(file: Path) -> dict[tuple[str, int], Outcome]:
    """By arm and seed; of two lines of one arm and seed the later."""
    if not file.is_file():
        return {}
    return {(one.arm, one.seed): one for one in load_jsonl(file, Outcome)}


def write_outcomes(file: Path, outcomes: Sequence[Outcome]) -> None:
    """All of them, in order of arm and seed."""
    lines = [one.model_dump_json() for one in sorted(outcomes, key=lambda one: (one.arm, one.seed))]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
