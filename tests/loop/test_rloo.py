"""A round whose policy is trained by RLOO: the whole thing, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop import run
from alignloop.config import load_recipe
from alignloop.errors import UserError
from alignloop.loop.control import control_recipe
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import plan_text
from alignloop.report.paired import Spent
from alignloop.run_dir.reader import published_stages

SMALL = (
    "engine.name=transformers",
    "collect.num_annotations=4",
    "data.split_rounds=60",
    "data.heldout_fraction=0.01",
    "sample.num_prompts=6",
    "sample.num_candidates=3",
    "sample.max_tokens=16",
    "evaluate.limit=2",
    "evaluate.max_gen_tokens=8",
    "evaluate.tasks=[mmlu]",
    "evaluate.test_tasks=[]",
    "measure.num_prompts=2",
    "measure.max_tokens=8",
    "best_metric=mmlu/acc",
    "reward.max_steps=2",
    "sft.max_steps=1",
    "rloo.batch_groups=2",
    "rloo.num_candidates=2",
    "rloo.max_steps=4",
)
STAGES = (
    "collect train_reward average sample score select prune train_sft average train_rloo average evaluate measure"
).split()


def test_a_round_with_rloo_in_the_place_of_pairs_and_dpo(tmp_path: Path) -> None:
    result = run("rloo", rounds=1, run_dir=tmp_path / "run", overrides=SMALL)
    assert result.num_engine_starts == 1
    stages = {stage.dir.name: stage for stage in published_stages(tmp_path / "run", 1)}
    assert [name.partition("_")[2] for name in stages] == STAGES
    rloo, sft, averaged = (stages[name].manifest for name in ("10_train_rloo", "09_average", "11_average"))
    start = sft.outputs["checkpoint"].digest  # type: ignore[union-attr]
    assert rloo.inputs["start"]["digest"] == rloo.inputs["reference"]["digest"] == start
    assert rloo.inputs["reward_model"]["path"].endswith("03_average/checkpoint")
    assert rloo.counts == {"in": 8, "kept": 8, "dropped": 0, "dropped_by_length": 0}
    assert {"sampling", "scoring", "training"} <= rloo.seconds.keys()
    assert averaged.outputs["checkpoint"].digest != start  # type: ignore[union-attr]
    assert result.rounds[1].policy.startswith("round-01/11_average")
    recipe = load_recipe("rloo", overrides=[*SMALL, "rounds=1"])
    assert {stage.state for stage in make_plan(recipe, run_dir=tmp_path / "run").stages} == {"published"}
    again = run("rloo", rounds=1, run_dir=tmp_path / "run", overrides=SMALL)
    assert again.num_engine_starts == 0


def test_a_plan_says_what_rloo_samples() -> None:
    text = plan_text(make_plan(load_recipe("rloo", overrides=["engine.name=transformers"]), run_dir=Path("nowhere")))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "rloo start the SFT model of its round, which is its reference too" in lines
    assert "rloo samples 12 prompts x 8 completions at a time, 2 steps each; rewarded" in lines
    assert next(line for line in lines if line.startswith("10_train_rloo")).split()[:5] == [
        *("10_train_rloo", "to", "do", "120", "20")
    ]
    assert "dpo start" not in text


def test_a_control_is_of_a_run_with_dpo() -> None:
    with pytest.raises(UserError, match=r"controls are of runs that train DPO, and policy\.by is rloo"):
        control_recipe(load_recipe("rloo"), "sft-only", spent=Spent(1, 1, 1, 1.0), rounds=1)


def test_what_rloo_cannot_do_is_found_before_it_runs() -> None:
    overrides = ["engine.name=transformers", "training.num_processes=2", "rloo.max_length=200"]
    with pytest.raises(UserError) as found:
        make_plan(load_recipe("rloo", overrides=[*overrides, "averaging.rloo.choose=1"]), run_dir=Path("nowhere"))
    text = str(found.value)
    assert "policy.by: rloo trains in one process, and training.num_processes is 2" in text
    assert "rloo.max_length (200) leaves no room for a prompt" in text
