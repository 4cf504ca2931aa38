"""Tasks that report and choose nothing, in a run of two rounds that goes on to a third: the whole thing, small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignloop import run
from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.evaluation.comparing import read_differences
from alignloop.look.status import status_text
from alignloop.loop.plan import make_plan
from alignloop.loop.run import RunResult
from alignloop.records import RoundRow
from alignloop.report.benchmarks import alike, headline_keys
from alignloop.report.facts import read_run
from scripts.bench.method_arms import Arm
from scripts.bench.method_record import STRICT, outcome_of
from tests.loop.small import SMALL

SETTINGS = (
    *SMALL,
    "measure.enabled=false",
    "reward.epochs=1",
    "best_metric=ifeval_dev/mean",
)
TEST = "ifeval/mean"


def again(run_dir: Path, *, rounds: int, more: Sequence[str] = ()) -> RunResult:
    """`ifeval_dev` and MMLU choose, the bundled IFEval is the test."""
    dev = f"ifeval_dev={run_dir.parent.parent / 'dev.jsonl'}"
    tasks = [f"evaluate.tasks=[{dev}, mmlu]", "evaluate.test_tasks=[ifeval]"]
    return run("quickstart", rounds=rounds, run_dir=run_dir, overrides=[*SETTINGS, *tasks, *more])


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("tested")
    lines = (QUICKSTART / "data" / "ifeval.jsonl").read_text().splitlines(keepends=True)
    (folder / "dev.jsonl").write_text("".join(lines[-8:]))
    run_dir = folder / "first" / "run"
    return run_dir, again(run_dir, rounds=2)


def copied(run_dir: Path, name: str) -> Path:
    """Beside it, so that the recipe's paths are the same."""
    return Path(shutil.copytree(run_dir, run_dir.parent.parent / name / "run"))


def rows_in(run_dir: Path) -> list[RoundRow]:
    return [RoundRow.model_validate_json(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]


def outcome(run_dir: Path) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds"}) for row in rows_in(run_dir)]


def evaluations(run_dir: Path) -> dict[str, int]:
    found = run_dir.glob("round-*/*_evaluate*/manifest.json")
    return {path.parent.relative_to(run_dir).as_posix(): path.stat().st_mtime_ns for path in found}


def test_the_base_the_last_and_the_best_are_asked(tested: tuple[Path, RunResult]) -> None:
    run_dir, result = tested
    rows, asked = rows_in(run_dir), {0, 2, result.final_round}
    assert {row.round for row in rows if TEST in row.metrics} == asked
    assert {row.round for row in rows if TEST in row.stderr} == asked
    assert all("ifeval_dev/mean" in row.metrics for row in rows)
    assert list(result.rounds) == rows
    pairs = {(e.round, e.against) for e in read_differences(run_dir) if any(d.key == TEST for d in e.differences)}
    assert {(2, 0)} <= pairs <= {(n, m) for n in asked for m in asked}
    dev = json.loads((run_dir / "round-02/13_evaluate/manifest.json").read_text())
    assert "test_tasks" not in dev["config"]


def test_the_report_and_the_screen_show_rounds_without_them(tested: tuple[Path, RunResult]) -> None:
    run_dir, result = tested
    page, asked = read_run(run_dir), {0, 2, result.final_round}
    assert set(headline_keys(page.finished)) == {"ifeval_dev/mean", "mmlu/acc", TEST}
    shown, notes = alike(page, TEST)
    assert ({entry.number for entry in shown}, notes) == (asked, [])
    assert len(alike(page, "ifeval_dev/mean")[0]) == 3
    assert 'data-table="climb-ifeval/mean"' in (run_dir / "report.html").read_text()
    head = status_text(run_dir).split("\n\n")[1].splitlines()[0]
    assert " IFEval dev " in head
    assert " IFEval " in head


def test_the_laboratory_keeps_what_a_run_came_to(tested: tuple[Path, RunResult]) -> None:
    run_dir, _ = tested
    found = outcome_of(run_dir, arm=Arm("loop"), seed=3, rounds=2, measures=("truth/pick",))
    rows = rows_in(run_dir)
    assert (found.arm, found.seed, found.measures) == ("loop", 3, {})  # nothing is measured here
    assert [metrics.get(STRICT) for metrics in found.metrics] == [row.metrics.get(STRICT) for row in rows]
    # The last round's answers to the four questions of the test.
    assert len(found.answers) == 4
    assert found.answers.count("1") / 4 == rows[-1].metrics[STRICT]


def test_a_run_killed_before_the_last_test_asks_it_alone(tested: tuple[Path, RunResult]) -> None:
    run_dir, best = copied(tested[0], "killed"), tested[1].final_round
    before = outcome(run_dir)
    (gone,) = run_dir.glob(f"round-{best:02d}/*_evaluate_test")
    shutil.rmtree(gone)
    kept = evaluations(run_dir)
    again(run_dir, rounds=2)
    assert evaluations(run_dir).items() > kept.items()
    assert outcome(run_dir) == before


def test_going_on_asks_the_new_last_and_best_and_nothing_again(tested: tuple[Path, RunResult]) -> None:
    run_dir = copied(tested[0], "longer")
    before, lines = evaluations(run_dir), outcome(run_dir)
    longer = again(run_dir, rounds=3)
    after = evaluations(run_dir)
    assert after.items() > before.items()
    tests = {int(name[6:8]) for name in after if name.endswith("_test")}
    assert tests == {0, 2, 3, tested[1].final_round, longer.final_round}
    assert {row.round for row in rows_in(run_dir) if TEST in row.metrics} == tests
    assert all(
        row.items() >= {**line, "metrics": row["metrics"], "stderr": row["stderr"]}.items()
        for row, line in zip(outcome(run_dir), lines, strict=False)
    )
    # All rounds, afterwards: only what is missing.
    again(run_dir, rounds=3, more=["evaluate.test_rounds=all"])
    assert evaluations(run_dir).items() >= after.items()
    assert all(TEST in row.metrics for row in rows_in(run_dir))


def test_a_plan_of_a_finished_run_has_nothing_to_do(tested: tuple[Path, RunResult]) -> None:
    run_dir = tested[0]
    stages = make_plan(load_recipe(run_dir / "recipe.yaml"), run_dir=run_dir).stages
    assert {stage.state for stage in stages} == {"published"}
    asked = {stage.round for stage in stages if stage.name.endswith("_evaluate_test")}
    assert asked == {0, 2, tested[1].final_round}
    assert [stage.round for stage in stages] == sorted(stage.round for stage in stages)
