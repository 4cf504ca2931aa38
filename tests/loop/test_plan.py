"""The plan: what is published, what would run, what drifted and why, and the rows and tokens it expects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from alignloop.artifacts import stage_seed
from alignloop.config import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.engines.base import Engine
from alignloop.errors import UserError
from alignloop.loop.check import check, run_bytes
from alignloop.loop.estimate import Estimator, few_steps
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import opening_lines, plan_text
from alignloop.loop.rounds import ingest_inputs
from alignloop.progress import QuietProgress
from alignloop.run_dir.layout import enter, locked
from alignloop.stages import bootstrap, evaluate, ingest, prune, train_sft
from alignloop.stages.incoming import keep_out_of
from alignloop.stages.runner import StageRunner


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
        ("train_sft", 1, 26),  # 12.5 of people, and the top quarter of the 40 and of the 12.5 they hardly preferred
        ("build_pairs", 1, 65),
        ("train_dpo", 1, 33),  # 12.5 of people, and the wider half of 40
    ],
)
def test_expected_rows(tmp_path: Path, stage: str, number: int, rows: int) -> None:
    recipe = recipe_of(tmp_path)
    assert Estimator(recipe, check(recipe)).of(stage, number=number).rows == rows


@pytest.mark.parametrize(
    ("sources", "stage", "rows"),
    [
        (["on_policy"], "train_sft", 10),  # the top quarter of the 40
        (["file"], "train_sft", 16),  # 12.5 of people, and the top quarter of the other 12.5
        (["annotated"], "train_sft", 0),
        (["on_policy"], "train_dpo", 20),  # the wider half of 40
        (["file", "annotated"], "train_dpo", 13),
        ([], "train_dpo", 0),
        ([], "prune", 65),
    ],
)
def test_expected_rows_of_some_sources(tmp_path: Path, sources: list[str], stage: str, rows: int) -> None:
    recipe = recipe_of(tmp_path, prune={"sources": sources}, pairs={"sources": sources})
    assert Estimator(recipe, check(recipe)).of(stage, number=1).rows == rows


@pytest.mark.parametrize(
    ("pairs", "seen", "train"),
    [
        ({"pairs_per_prompt": 3}, 105, 53),  # 5 candidates give two pairs: the wider half of 80
        ({"min_gap_quantile": 0.0, "max_gap_quantile": 0.5, "min_rejected_length_quantile": 0.5}, 65, 23),  # 40 / 2 / 2
        ({"on_policy_share": 0.5}, 65, 26),  # 13 of people and as many of the 20
        ({"on_policy_share": 0.8}, 65, 25),  # the 20 and a quarter as many of people
    ],
)
def test_expected_pairs_within_limits(tmp_path: Path, pairs: dict[str, Any], seen: int, train: int) -> None:
    recipe = recipe_of(tmp_path, pairs=pairs)
    estimator = Estimator(recipe, check(recipe))
    assert estimator.of("build_pairs", number=1).rows == seen
    assert estimator.of("train_dpo", number=1).rows == train


def test_expected_tokens_of_sampling(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    checked = check(recipe)
    assert checked.lengths is not None
    expected = int(40 * (checked.lengths.prompt + 5 * checked.lengths.completion))
    assert Estimator(recipe, checked).of("sample", number=1).tokens == expected


def test_expected_tokens_of_variants_are_those_of_all_trainings(tmp_path: Path) -> None:
    """13 rows once, twice, and half of them (6 or 7) once: 13 + 26 + 6 row lengths."""
    once = recipe_of(tmp_path)
    variants = [{}, {"epochs": 2}, {"data_fraction": 0.5}]
    thrice = recipe_of(tmp_path, reward={"max_length": 384, "variants": variants})
    one = Estimator(once, check(once)).of("train_reward", number=1)
    all_three = Estimator(thrice, check(thrice)).of("train_reward", number=1)
    assert one.tokens is not None
    assert all_three.rows == one.rows == 13
    assert all_three.tokens == pytest.approx(one.tokens * 45 / 13, abs=4)
    few = recipe_of(tmp_path, reward={"max_length": 384, "variants": [{"max_steps": 2, "batch_groups": 3}]})
    assert Estimator(few, check(few)).of("train_reward", number=1).tokens == pytest.approx(one.tokens * 6 / 13, abs=1)


def test_sft_steps_are_said_and_a_floor_warns_before_anything_is_trained(tmp_path: Path) -> None:
    """26 rows in batches of 4 give 7 steps, twice that over two epochs."""
    sft = {"max_length": 384, "batch_groups": 4}
    recipe = recipe_of(tmp_path, sft={**sft, "min_steps": 8})
    plan = make_plan(recipe, run_dir=tmp_path / "run")
    assert [s.expected.steps for s in plan.stages if s.name.endswith("train_sft")] == [7] * 3
    (line,) = [line for line in plan_text(plan).splitlines() if "_train_sft" in line and "to do" in line]
    assert line.split()[2:5] == ["do", "26", "7"]
    said = " ".join(" ".join(opening_lines(plan.checked, recipe=recipe, run_dir=tmp_path / "run")).split())
    assert "sft.min_steps: in 3 of 3 rounds the rows give SFT about 7 optimiser steps, under 8" in said
    for enough in ({**sft, "min_steps": 7}, {**sft, "min_steps": 8, "epochs": 2}, sft):
        assert few_steps(recipe_of(tmp_path, sft=enough), plan.checked) == []


def test_a_floor_of_steps_is_no_part_of_what_sft_is_made_from(tmp_path: Path) -> None:
    with_floor, without = (recipe_of(tmp_path, sft={"max_length": 384, **more}) for more in ({"min_steps": 8}, {}))
    assert train_sft.settings(with_floor).model_dump() == train_sft.settings(without).model_dump()
    assert bootstrap.settings(with_floor).model_dump() == bootstrap.settings(without).model_dump()
    with pytest.raises(UserError, match=r"max_steps \(5\) is under min_steps \(8\)"):
        recipe_of(tmp_path, sft={"min_steps": 8, "max_steps": 5})


def test_expected_tokens_are_train_tokens_where_they_are_set(tmp_path: Path) -> None:
    """26 rows in steps of two; the step that reaches the tokens is the last."""

    def expected(**sft: Any) -> tuple[int | None, float | None]:
        recipe = recipe_of(tmp_path, sft={"max_length": 384, "batch_groups": 2, **sft})
        found = Estimator(recipe, check(recipe)).of("train_sft", number=1)
        return found.steps, found.tokens

    steps, once = expected()
    assert once is not None
    assert steps == 13
    ten = {"train_tokens": int(10 * once)}
    assert expected(**ten, epochs=3) == (130, pytest.approx(10 * once, abs=10))
    assert expected(**ten, max_steps=26) == (26, pytest.approx(2 * once, abs=2))
    assert expected(train_tokens=1) == (1, pytest.approx(once / 13, abs=1))
    assert expected(**ten, variants=[{}, {"data_fraction": 0.1}])[1] == pytest.approx(20 * once, rel=0.05)


def test_disk_holds_the_checkpoints_of_all_variants(tmp_path: Path) -> None:
    def needed(**dpo: Any) -> int:
        recipe = recipe_of(tmp_path, dpo={"max_length": 384, "num_checkpoints": 2, **dpo})
        return run_bytes(recipe, num_parameters=1_000_000, num_prompts=10, prompt_tokens=5.0)

    # Two more variants of two checkpoints each, 4 MB a checkpoint, three rounds.
    assert needed(variants=[{}, {"beta": 0.2}, {"seed": 1}]) - needed() == 3 * 2 * 2 * 4_000_000


def test_a_plan_of_nothing_done_yet(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path), run_dir=tmp_path / "run")
    before = [stage.name for stage in plan.stages if stage.round == 0]
    assert before == ["01_ingest", "02_base", "03_evaluate", "04_measure"]
    assert [len([s for s in plan.stages if s.round == number]) for number in (1, 2, 3)] == [14, 14, 14]
    assert {stage.state for stage in plan.stages} == {"to do"}
    assert not (tmp_path / "run").exists()
    assert all(len(line) <= 90 for line in plan_text(plan).splitlines() if str(tmp_path) not in line)


def test_a_base_without_a_template_is_planned_with_bootstrap(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path, bootstrap="always"), run_dir=tmp_path / "run")
    assert [stage.name for stage in plan.stages if stage.round == 0][3:] == ["04_bootstrap", "05_average", "06_measure"]
    (line,) = [line for line in plan_text(plan).splitlines() if "sample.policy" in line]
    assert "(round 1: the base, fine-tuned" in " ".join(plan_text(plan).split()), line


def publish_ingest(recipe: Recipe, run_dir: Path) -> None:
    with locked(run_dir):
        enter(run_dir, recipe, rebuild=False)
        stages = StageRunner(recipe, run_dir, cast(Engine, None), QuietProgress())
        stages.run(ingest.STAGE, ingest_inputs(recipe))


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
    """The held-out rows the checks count are those `ingest` holds out."""
    recipe, run_dir = recipe_of(tmp_path, data={"heldout_fraction": 0.2}, seed=3), tmp_path / "run"
    publish_ingest(recipe, run_dir)
    held = (run_dir / "round-00/01_ingest/heldout.jsonl").read_text().splitlines()
    manifest = json.loads((run_dir / "round-00/01_ingest/manifest.json").read_text())
    assert manifest["seed"] == stage_seed(3, round=0, stage="ingest")
    checked = check(recipe)
    assert {json.loads(line)["id"] for line in held} == {row.id for row in checked.rows.heldout}
    assert len(held) > 5


def settings_of(recipe: Recipe, folder: Path) -> dict[str, str]:
    """The plan's settings, by name; lines that go on are joined."""
    lines = plan_text(make_plan(recipe, run_dir=folder / "run")).split("\n\n")[2].splitlines()
    settings: dict[str, str] = {}
    for line in lines:
        assert len(line) <= 80, line
        name = line[:20].strip() or list(settings)[-1]
        settings[name] = f"{settings.get(name, '')} {line[20:].strip()}".strip()
    return settings


def test_a_plan_says_where_each_model_comes_from(tmp_path: Path) -> None:
    assert settings_of(recipe_of(tmp_path), tmp_path) == {
        "sample.policy": "best: the best so far by ifeval/mean (round 1: the base)",
        "reward.start_from": "previous: the last round's (round 1: the base, new head)",
        "sft.start_from": "previous: the last round's policy (round 1: the base)",
        "dpo start": "the SFT model of its round, which is its reference too",
        "pairs.data_window": "1: the round's preferences, and best/worst of its candidates",
        "averaging": "none: each stage goes on with its last checkpoint",
    }


@pytest.mark.parametrize(
    ("test_rounds", "asked", "said"),
    [("ends", [0, 3], "of the base, the last and the best round"), ("all", [0, 1, 2, 3], "of every round")],
)
def test_a_plan_says_which_rounds_are_asked_the_test_tasks(
    tmp_path: Path, test_rounds: str, asked: list[int], said: str
) -> None:
    tasks = {"include_path": "quickstart", "tasks": ["mmlu"], "test_tasks": ["ifeval"], "test_rounds": test_rounds}
    recipe = recipe_of(tmp_path, evaluate=tasks, best_metric="mmlu/acc")
    stages = make_plan(recipe, run_dir=tmp_path / "run").stages
    assert [stage.round for stage in stages if stage.name.endswith("_evaluate_test")] == asked
    assert [stage.name for stage in stages if stage.round == 0] == [
        "01_ingest", "02_base", "03_evaluate", "04_measure", "05_evaluate_test",
    ]  # fmt: skip
    assert stages[-1].name == "15_evaluate_test"
    assert settings_of(recipe, tmp_path)["evaluate.test_tasks"] == f"ifeval: {said}; they choose nothing"


def test_what_chooses_does_not_know_of_the_tests_and_what_comes_in_does(tmp_path: Path) -> None:
    tasks: dict[str, Any] = {"include_path": "quickstart", "tasks": ["mmlu"]}
    alone = recipe_of(tmp_path, evaluate=tasks, best_metric="mmlu/acc")
    with_test = recipe_of(tmp_path, evaluate={**tasks, "test_tasks": ["ifeval"]}, best_metric="mmlu/acc")
    assert evaluate.STAGE.settings(alone) == evaluate.STAGE.settings(with_test)
    assert evaluate.TEST.settings(with_test).tasks == ("ifeval",)
    keep_out = keep_out_of(with_test)
    assert keep_out is not None
    assert keep_out.tasks == ("mmlu", "ifeval")
    assert prune.settings(with_test).tasks == ("mmlu", "ifeval")


@pytest.mark.parametrize(
    ("section", "values", "name", "said"),
    [
        ("sample", {"policy": "base"}, "sample.policy", "base: the base, in every round"),
        (
            "sample",
            {"policy": "round-2"},
            "sample.policy",
            "round-2: the last round's policy, after round 2 that round's (round 1: the base)",
        ),
        ("pairs", {"sources": []}, "pairs.data_window", "1: no pair (pairs.sources is empty)"),
        ("pairs", {"sources": ["on_policy"]}, "pairs.data_window", "1: best/worst of the round's candidates"),
        ("pairs", {"sources": ["file"]}, "pairs.data_window", "1: the round's preferences (file alone)"),
    ],
)
def test_a_plan_says_what_an_ablation_sets(
    tmp_path: Path, section: str, values: dict[str, Any], name: str, said: str
) -> None:
    recipe = recipe_of(tmp_path, **{section: {"max_tokens": 64, **values} if section == "sample" else values})
    assert settings_of(recipe, tmp_path)[name] == said


def test_a_plan_says_what_is_averaged_adapted_and_run_in_parallel(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        data={"heldout_fraction": 0.1},
        reward={"max_length": 384, "num_checkpoints": 2, "start_from": "base"},
        sft={"max_length": 384, "lora": {"rank": 8}},
        dpo={"max_length": 384, "num_checkpoints": 3, "variants": [{}, {"beta": 0.2, "seed": 1}]},
        averaging={"reward": {"weights": [1, 3]}, "dpo": {"choose": 2, "metric": "accuracy"}},
        pairs={"data_window": 2, "sources": ["file", "annotated"]},
        training={"num_processes": 2, "accelerate": "fsdp2"},
    )
    settings = settings_of(recipe, tmp_path)
    assert settings["reward.start_from"] == "base: the base, with a new head, in every round"
    assert settings["pairs.data_window"] == "2: preferences of the last 2 rounds"
    assert settings["dpo.variants"] == "1: the stage as it is 2: seed 1, beta 0.2"
    assert settings["averaging.reward"] == "weights 1, 3 over 2 checkpoints"
    assert settings["averaging.sft"] == "none: its last checkpoint"
    assert settings["averaging.dpo"] == (
        "uniform over the 2 of 6 (3 checkpoints x 2 variants) with the highest held-out accuracy"
    )
    assert settings["sft.lora"] == "rank 8, alpha 32, on all-linear; merged for the next stage"
    assert settings["training"] == "2 processes, fsdp2"


def test_the_reference_is_named_by_its_digest_where_it_is_made(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path), run_dir=tmp_path / "run")
    assert all(stage.reference is None for stage in plan.stages)
    digest = "sha256:" + "0123456789abcdef" * 4
    made = tuple(
        replace(stage, reference=digest) if (stage.round, stage.name) == (2, "11_train_dpo") else stage
        for stage in plan.stages
    )
    assert "dpo reference       of round 2: sha256:0123456789ab\n" in plan_text(replace(plan, stages=made))
    assert "dpo reference" not in plan_text(plan)


def test_what_the_chat_template_is_rendered_with_is_in_the_plan(tmp_path: Path) -> None:
    def line(**values: Any) -> str:
        text = plan_text(make_plan(recipe_of(tmp_path, chat_template="qwen3", **values), run_dir=tmp_path / "run"))
        return next(line for line in text.splitlines() if line.startswith("chat template"))

    assert line(chat_template_kwargs={"enable_thinking": True}).split() == (
        "chat template {enable_thinking: true}: answers may hold reasoning".split()
    )
    assert "{enable_thinking: false}, as answers without reasoning need" in line()
