"""Rounds that only sample, score, pair and train DPO, with the rest now and then: the whole thing, small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignloop import run
from alignloop.config import Recipe, load_recipe
from alignloop.config.base import Scheduled
from alignloop.errors import RecipeError
from alignloop.evaluation.comparing import read_differences
from alignloop.look.status import status_text
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import plan_text
from alignloop.loop.run import RunResult
from alignloop.run_dir.reader import PublishedStage, published_stages
from tests.loop.small import SMALL

SETTINGS = (
    *SMALL,
    "sample.policy=previous",
    "evaluate.tasks=[mmlu]",
    "evaluate.test_tasks=[]",
    "evaluate.every=2",
    "measure.at=[3]",
    "measure.num_prompts=2",
    "measure.max_tokens=16",
    "best_metric=mmlu/acc",
    "reward.at=[3]",
    "reward.max_steps=2",
    "sft.at=[1]",
    "dpo.max_steps=1",
    "dpo.reference=ema",
    "dpo.ema_decay=0.75",
    "dpo.carry_optimizer=true",
)
ALWAYS = ["collect", "sample", "score", "build_pairs", "train_dpo", "average", "average"]


def again(run_dir: Path, *, rounds: int, more: Sequence[str] = ()) -> RunResult:
    return run("quickstart", rounds=rounds, run_dir=run_dir, overrides=[*SETTINGS, *more])


@pytest.fixture(scope="module")
def semi_online(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    run_dir = tmp_path_factory.mktemp("semi") / "run"
    return run_dir, again(run_dir, rounds=4)


def stages_of(run_dir: Path, number: int) -> list[PublishedStage]:
    return list(published_stages(run_dir, number))


def of_name(run_dir: Path, number: int, name: str) -> list[PublishedStage]:
    return [stage for stage in stages_of(run_dir, number) if stage.name == name]


def inputs(run_dir: Path, number: int, stage: str) -> dict[str, Any]:
    (found,) = of_name(run_dir, number, stage)
    return dict(found.manifest.inputs)


def test_a_round_has_the_stages_that_are_due(semi_online: tuple[Path, RunResult]) -> None:
    run_dir, _ = semi_online
    names = {number: sorted(stage.name for stage in stages_of(run_dir, number)) for number in range(1, 5)}
    reward, sft = ["train_reward", "average"], ["select", "prune", "train_sft", "average"]
    assert names == {
        1: sorted([*ALWAYS, *reward, *sft]),
        2: sorted([*ALWAYS, "evaluate"]),
        3: sorted([*ALWAYS, *reward, "measure"]),
        4: sorted([*ALWAYS, "evaluate", "measure"]),
    }


def test_a_round_without_a_reward_model_or_sft_goes_on_with_the_last(semi_online: tuple[Path, RunResult]) -> None:
    run_dir, _ = semi_online
    used = [inputs(run_dir, number, "score")["reward_model"]["digest"] for number in range(1, 5)]
    assert used[0] == used[1] != used[2] == used[3]
    starts = [inputs(run_dir, number, "train_dpo")["start"]["path"] for number in range(1, 5)]
    policies = [inputs(run_dir, number, "sample")["policy"]["path"] for number in range(1, 5)]
    assert "round-01" in starts[0]  # its own SFT model
    assert starts[1:] == policies[1:]  # the policy that sampled, trained on
    assert len(set(starts)) == 4


def test_the_optimizer_goes_on_from_round_to_round(semi_online: tuple[Path, RunResult]) -> None:
    from safetensors.torch import load_file

    run_dir, _ = semi_online
    ends = [of_name(run_dir, number, "train_dpo")[0].files("optimizer")[0] for number in range(1, 5)]
    begins = [inputs(run_dir, number, "train_dpo").get("optimizer", []) for number in range(1, 5)]
    assert begins[0] == []
    assert [(run_dir / begin["path"]).resolve() for (begin,) in begins[1:]] == [end.resolve() for end in ends[:-1]]
    # A step a round (`dpo.max_steps`).
    steps = [{float(value) for name, value in load_file(end).items() if name.endswith("/step")} for end in ends]
    assert steps == [{1.0}, {2.0}, {3.0}, {4.0}]


def test_the_reference_is_the_moving_average_of_the_policies(semi_online: tuple[Path, RunResult]) -> None:
    from safetensors.torch import load_file

    run_dir, _ = semi_online
    references = [inputs(run_dir, number, "train_dpo")["reference"]["path"] for number in range(1, 5)]
    assert "round-00" in references[0]
    weights = "model.norm.weight"
    expected = load_file(run_dir / references[0] / "model.safetensors")[weights]
    for number in (1, 2):
        policy, moving = (stage.files("checkpoint")[0] for stage in of_name(run_dir, number, "average")[-2:])
        expected = 0.75 * expected + 0.25 * load_file(policy / "model.safetensors")[weights]
        assert load_file(moving / "model.safetensors")[weights] == pytest.approx(expected, abs=1e-6)
        assert (run_dir / references[number]).resolve() == moving.resolve()


def test_only_rounds_that_were_asked_can_be_the_best(semi_online: tuple[Path, RunResult]) -> None:
    run_dir, result = semi_online
    assert [row.round for row in result.rounds] == [0, 1, 2, 3, 4]
    assert [row.round for row in result.rounds if row.metrics] == [0, 2, 4]
    assert result.final_round in (0, 2, 4)
    pairs = {(entry.round, entry.against) for entry in read_differences(run_dir)}
    assert pairs == {(2, 0), (4, 2), (4, 0)}
    assert result.report.is_file()
    assert "4 of 4 rounds done" in status_text(run_dir)
    assert "round 3: 10 stages" in status_text(run_dir)


def test_it_goes_on_where_it_was_and_what_was_asked_stands(semi_online: tuple[Path, RunResult]) -> None:
    run_dir, result = semi_online
    assert {stage.state for stage in make_plan(_recipe(4), run_dir=run_dir).stages} == {"published"}
    same = again(run_dir, rounds=4)
    assert (same.rounds, same.num_engine_starts) == (result.rounds, 0)
    longer = make_plan(_recipe(5), run_dir=run_dir).stages
    assert {stage.round for stage in longer if stage.state != "published"} == {5}
    assert "evaluate" in {stage.name.partition("_")[2] for stage in longer if stage.round == 5}


def _recipe(rounds: int) -> Recipe:
    return load_recipe("quickstart", overrides=[*SETTINGS, f"rounds={rounds}"])


def test_many_rounds_to_do_share_a_line_where_they_are_alike() -> None:
    """Round 1 stage by stage, 2 to 9 as one, 10 with a reward model and benchmarks, then 11."""
    recipe = load_recipe("semi_online", overrides=["rounds=13", "reward.every=10"])
    text = plan_text(make_plan(recipe, run_dir=Path("nowhere")))
    lines = [" ".join(line.split()[:5]) for line in text.splitlines() if line.startswith("round")]
    assert lines == [
        "round 0",
        "round 1",
        "rounds 2 to 9 to",
        "round 10 to do 11",
        "rounds 11 to 12 to",
        "round 13 to do 10",
    ]
    assert "rounds 2 to 9         to do      7 stages each, tokens: sample" in text
    assert "reward              in 2 of 13 rounds: 1, 10" in text
    assert "its\n                    reference the moving average of the policies (decay 0.9)" in text


def test_a_schedule_by_hand() -> None:
    every, at = Scheduled(every=3), Scheduled(at=(2, 5))
    assert [number for number in range(1, 10) if every.is_due(number)] == [3, 6, 9]
    assert [number for number in range(1, 10) if at.is_due(number)] == [2, 5]
    recipe = _recipe(5)
    assert [number for number in range(6) if recipe.evaluates(number)] == [0, 2, 4, 5]
    assert [number for number in range(6) if recipe.measures(number)] == [0, 3, 5]
    assert [number for number in range(1, 6) if recipe.trains_reward(number)] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reward.every=2", "reward.at=[1]"], r"every \(2\) and at \(\[1\]\) both say in which rounds"),
        (["evaluate.every=2", "gate.max_regression=0.1"], "gate.max_regression asks for the benchmarks of every round"),
        (["evaluate.every=2"], "sample.policy is best, and evaluate asks only some rounds"),
        (["sft.every=9"], r"sft.every \(9\) and sft.at \(\[\]\) name no round of 6: SFT would never train"),
        (["sft.at=[7]"], r"sft.at \(\[7\]\) name no round of 6"),
        (["dpo.carry_optimizer=true", "dpo.lora={}"], "carry_optimizer: with lora each round trains parameters of its"),
        (["dpo.carry_optimizer=true", "dpo.variants=[{seed: 1}]"], "carry_optimizer: with variants each round"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises((RecipeError, ValidationError), match=message):
        load_recipe("quickstart", overrides=settings)


def test_without_sft_at_all_no_sft_needs_to_be_due() -> None:
    assert load_recipe("quickstart", overrides=["sft.every=9", "prune.sources=[]"]).sft.every == 9
