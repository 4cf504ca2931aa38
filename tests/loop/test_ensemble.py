"""Rounds whose candidates are scored by three variants of the reward model: the whole thing, small."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from alignloop import run
from alignloop.config import Recipe, load_recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.look.why import lives_of
from alignloop.loop.plan import make_plan
from alignloop.loop.run import RunResult
from alignloop.records import CandidateRow, PreferenceRow, SftRow, split_annotation_id
from alignloop.report.model_card import model_card
from alignloop.run_dir.reader import PublishedStage, published_stages
from alignloop.sampling.ensemble import spread_of_gap

SMALL = (
    "engine.name=transformers",
    "collect.num_annotations=3",
    "collect.pairs_per_prompt=1",
    "collect.choose_by=spread",
    "data.heldout_fraction=0.01",
    "sample.num_prompts=12",
    "sample.num_candidates=4",
    "sample.max_tokens=24",
    "evaluate.limit=4",
    "evaluate.max_gen_tokens=16",
    "evaluate.tasks=[mmlu]",
    "evaluate.test_tasks=[]",
    "measure.num_prompts=2",
    "measure.max_tokens=16",
    "best_metric=mmlu/acc",
    "reward.max_steps=4",
    "reward.num_checkpoints=2",
    "reward.center_rewards=0.01",
    "reward.variants=[{seed: 1}, {seed: 2, learning_rate: 3e-3}, {seed: 3, data_fraction: 0.5}]",
    "score.ensemble=mean_minus_spread",
    "score.spread_penalty=0.5",
    "sft.max_steps=1",
    "dpo.max_steps=1",
)
ROUNDS = 2


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    return run("quickstart", rounds=ROUNDS, run_dir=folder, overrides=list(SMALL))


@pytest.fixture(scope="module")
def run_dir(result: RunResult) -> Path:
    return result.run_dir


def recipe() -> Recipe:
    return load_recipe("quickstart", overrides=[*SMALL, f"rounds={ROUNDS}"])


def of_name(run_dir: Path, number: int, name: str) -> list[PublishedStage]:
    return [stage for stage in published_stages(run_dir, number) if stage.name == name]


def inputs(run_dir: Path, number: int, stage: str) -> dict[str, Any]:
    (found,) = of_name(run_dir, number, stage)
    return dict(found.manifest.inputs)


def candidates_of(run_dir: Path, number: int) -> list[CandidateRow]:
    (scored,) = of_name(run_dir, number, "score")
    return list(load_jsonl(scored.files("candidates")[0], CandidateRow))


def test_the_last_checkpoint_of_each_variant_scores(run_dir: Path) -> None:
    for number in range(1, ROUNDS + 1):
        (trained,) = of_name(run_dir, number, "train_reward")
        checkpoints = trained.files("checkpoints")
        assert len(checkpoints) == 6
        members = [(run_dir / member["path"]).resolve() for member in inputs(run_dir, number, "score")["reward_model"]]
        assert members == [checkpoint.resolve() for checkpoint in checkpoints[1::2]]
        assert inputs(run_dir, number, "measure")["reward_model"] == inputs(run_dir, number, "score")["reward_model"]
    first = inputs(run_dir, 1, "score")["reward_model"]
    assert inputs(run_dir, 1, "measure")["first_reward_model"] is None
    assert inputs(run_dir, 2, "measure")["first_reward_model"] == first


def test_the_next_round_trains_from_the_average(run_dir: Path) -> None:
    average = of_name(run_dir, 1, "average")[0].files("checkpoint")[0]
    assert (run_dir / inputs(run_dir, 2, "train_reward")["start"]["path"]).resolve() == average.resolve()


def test_candidates_have_the_members_rewards_and_what_is_made_of_them(run_dir: Path) -> None:
    for number in range(1, ROUNDS + 1):
        rows = candidates_of(run_dir, number)
        assert len(rows) == 48
        for row in rows:
            assert len(row.member_rewards) == 3
            assert row.reward_spread == pytest.approx(pstdev(row.member_rewards))
            assert row.reward == pytest.approx(fmean(row.member_rewards) - 0.5 * pstdev(row.member_rewards))
        assert fmean(row.reward_spread or 0.0 for row in rows) > 1e-3


def test_what_follows_goes_by_the_ensembles_reward(run_dir: Path) -> None:
    rewards = {row.id: row.reward for row in candidates_of(run_dir, 1)}
    (pruned,) = of_name(run_dir, 1, "prune")
    rows = [row for row in load_jsonl(pruned.files("rows")[0], SftRow) if row.origin == "best_of_k"]
    assert rows
    assert [row.quality_score for row in rows] == [pytest.approx(rewards[row.id]) for row in rows]


def test_people_are_asked_where_the_members_agree_least(run_dir: Path) -> None:
    rows = {row.id: row for row in candidates_of(run_dir, 1)}
    (collected,) = of_name(run_dir, 2, "collect")
    assert collected.manifest.config["choose_by"] == "spread"
    made = [row for row in load_jsonl(collected.files("preferences")[0], PreferenceRow) if row.source.is_round]
    two = [[rows[name].member_rewards for name in split_annotation_id(row.id)] for row in made]
    spreads = [spread_of_gap(*rewards) for rewards in two]
    assert len(spreads) >= 2  # pairs that are ties are passed over
    assert spreads == sorted(spreads, reverse=True)


def test_a_plan_finds_the_run_as_it_is_and_counts_every_member(run_dir: Path) -> None:
    plan = make_plan(recipe(), run_dir=run_dir)
    assert {stage.state for stage in plan.stages} == {"published"}
    tokens = {stage.name.partition("_")[2]: stage.expected.tokens for stage in plan.stages if stage.round == 1}
    assert tokens["score"] == 3 * (tokens["sample"] or 0)


def test_why_and_the_model_card_name_the_members(result: RunResult, run_dir: Path) -> None:
    row = candidates_of(run_dir, 1)[0]
    (life,) = lives_of(row.id, run_dir)
    assert life.facts["rewards by member"] == ", ".join(f"{reward:.4g}" for reward in row.member_rewards)
    assert life.facts["their spread"] == row.reward_spread
    card = model_card(run_dir, rows=result.rounds, best=result.rounds[1], recipe=recipe())
    assert card.count("reward ensemble, ") == 3
