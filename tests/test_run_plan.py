"""The plan: what is published, what would run, what drifted and why, and the rows and tokens it expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import derive_seed
from alignloop.config import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.engines.open import open_engine
from alignloop.errors import UserError
from alignloop.loop import ingest_inputs
from alignloop.plan import make_plan, plan_text
from alignloop.plan.estimate import Estimator
from alignloop.preflight import check
from alignloop.progress import QuietProgress
from alignloop.run_dir import enter, locked
from alignloop.stage import Place, run_stage
from alignloop.stages import ingest


def recipe_of(folder: Path, **values: Any) -> Recipe:
    """100 preference rows with strengths by turns, of as many prompts; nothing held out."""
    strengths = ["significantly_better", "better", "slightly_better", "marginally_better"]
    path = folder / "p.jsonl"
    if not path.exists():
        rows = [
            {"prompt": f"Name river {n}.", "chosen": f"River {n}.", "rejected": "No.", "strength": strengths[n % 4]}
            for n in range(100)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small: dict[str, Any] = {
        "preferences": str(path),
        "rounds": 3,
        "data": {"heldout_fraction": 0.0, "split_rounds": 4},
        "sample": {"max_tokens": 64, "num_candidates": 5, "num_prompts": 40},
        "evaluate": {"include_path": "quickstart"},
        "engine": {"max_model_len": 384, "name": "transformers"},
        **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
    }
    return load_recipe({**small, **values})


@pytest.mark.parametrize(
    ("stage", "number", "rows"),
    [
        ("ingest", 0, 100),
        ("collect", 1, 25),  # 100 rows in 4 batches
        ("train_reward", 1, 13),  # half of the 25 are significantly better or better: 12.5
        ("train_reward", 3, 38),  # half of 75
        ("train_reward", 9, 50),  # past the last batch nothing is new
        ("sample", 1, 200),  # 40 prompts x 5
        ("score", 2, 200),
        ("select", 1, 200),
        ("prune", 1, 65),  # 40 best of K + 25 of people
        ("train_sft", 1, 35),  # the top quarter of 40, and 25
        ("build_pairs", 1, 65),
        ("train_dpo", 1, 33),  # 12.5 of people, and the wider half of 40
    ],
)
def test_expected_rows(tmp_path: Path, stage: str, number: int, rows: int) -> None:
    recipe = recipe_of(tmp_path)
    assert Estimator(recipe, check(recipe)).of(stage, number=number).rows == rows


def test_expected_tokens_of_sampling(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    checked = check(recipe)
    assert checked.lengths is not None
    expected = int(40 * (checked.lengths.prompt + 5 * checked.lengths.completion))
    assert Estimator(recipe, checked).of("sample", number=1).tokens == expected


def test_a_plan_of_nothing_done_yet(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path), run_dir=tmp_path / "run")
    assert [stage.name for stage in plan.stages if stage.round == 0] == ["01_ingest", "02_base", "03_evaluate"]
    assert [len([s for s in plan.stages if s.round == number]) for number in (1, 2, 3)] == [13, 13, 13]
    assert {stage.state for stage in plan.stages} == {"to do"}
    assert not (tmp_path / "run").exists()
    assert all(len(line) <= 90 for line in plan_text(plan).splitlines() if str(tmp_path) not in line)


def test_a_base_without_a_template_is_planned_with_bootstrap(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path, bootstrap="always"), run_dir=tmp_path / "run")
    assert [stage.name for stage in plan.stages if stage.round == 0][3:] == ["04_bootstrap", "05_average"]


def publish_ingest(recipe: Recipe, run_dir: Path) -> None:
    with locked(run_dir), open_engine(recipe.engine, log_file=run_dir / "engine.log") as engine:
        enter(run_dir, recipe, rebuild=False)
        place = Place(run_dir / "round-00" / "01_ingest", 0, recipe.seed)
        inputs = ingest_inputs(recipe)
        run_stage(ingest.STAGE, recipe.data, inputs, place=place, engine=engine, progress=QuietProgress())


def test_published_begun_and_drifted_stages(tmp_path: Path) -> None:
    recipe, run_dir = recipe_of(tmp_path), tmp_path / "run"
    publish_ingest(recipe, run_dir)
    (run_dir / "round-00" / "02_base.partial").mkdir()
    plan = make_plan(recipe, run_dir=run_dir)
    assert [stage.state for stage in plan.stages[:3]] == ["published", "begun", "to do"]
    assert not plan.drifted

    data = tmp_path / "p.jsonl"
    data.write_text(data.read_text().replace("River 7.", "River Seven."))
    plan = make_plan(recipe, run_dir=run_dir)
    assert plan.drifted
    assert plan.stages[0].state == "drift"
    (change,) = plan.stages[0].changes
    assert change.startswith("input.preferences.0.digest: sha256:")
    assert not make_plan(recipe, run_dir=run_dir, rebuild=True).drifted


def test_another_recipe_and_bad_data_are_told_together(tmp_path: Path) -> None:
    recipe, run_dir = recipe_of(tmp_path), tmp_path / "run"
    publish_ingest(recipe, run_dir)
    other = recipe.model_copy(update={"seed": 5, "base": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"(?s)2 problems.*seed: 0 -> 5.*no such folder"):
        make_plan(other, run_dir=run_dir)


def test_plan_and_run_agree_on_seeds(tmp_path: Path) -> None:
    """The held-out rows preflight counts are those `ingest` holds out."""
    recipe, run_dir = recipe_of(tmp_path, data={"heldout_fraction": 0.2}, seed=3), tmp_path / "run"
    publish_ingest(recipe, run_dir)
    held = (run_dir / "round-00/01_ingest/heldout.jsonl").read_text().splitlines()
    manifest = json.loads((run_dir / "round-00/01_ingest/manifest.json").read_text())
    assert manifest["seed"] == derive_seed(3, 0, "01_ingest")
    checked = check(recipe)
    assert {json.loads(line)["id"] for line in held} == {row.id for row in checked.rows.heldout}
    assert len(held) > 5
