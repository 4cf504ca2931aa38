from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import Artifact
from alignloop.config import Recipe
from alignloop.errors import UserError
from alignloop.loop.round import RoundEnd, RoundStart
from alignloop.loop.rounds import best_round, gated, next_start, sampling_policy
from alignloop.records import RoundRow
from alignloop.stages import evaluate, measure


def _recipe(*, policy: str = "best", limit: float | None = 0.05, metrics: tuple[str, ...] = ()) -> Recipe:
    return Recipe.model_validate(
        {
            "preferences": ["quickstart"],
            "gate": {"max_regression": limit, "metrics": metrics},
            "sample": {"policy": policy, "max_tokens": 64},
        }
    )


def _rows(recipe: Recipe, *values: tuple[float, float]) -> list[RoundRow]:
    """A row a round, gated in order, of ifeval/mean and mmlu/acc."""
    rows: list[RoundRow] = []
    for number, (ifeval, mmlu) in enumerate(values):
        row = RoundRow(
            round=number,
            policy=f"round-{number:02d}",
            metrics={"ifeval/mean": ifeval, "mmlu/acc": mmlu},
            stderr={},
            reward_model={},
            rows={},
            seconds={},
        )
        rows.append(gated(row, rows, recipe) if number else row)
    return rows


def _policies(rows: list[RoundRow]) -> dict[int, Artifact]:
    return {row.round: Artifact(Path(row.policy), "digest") for row in rows}


def test_a_fall_past_the_limit_is_gated_and_said_with_its_numbers() -> None:
    rows = _rows(_recipe(), (0.2, 0.5), (0.6, 0.5), (0.54, 0.5))
    assert [row.gated is None for row in rows] == [True, True, False]
    assert rows[2].gated == ("ifeval/mean 0.5400 is 0.0600 below round 1's 0.6000 (gate.max_regression 0.05)")


def test_a_fall_of_exactly_the_limit_passes() -> None:
    # 0.8 - 0.75 is 0.050000000000000044: past the limit in its last digits alone.
    assert 0.8 - 0.75 > 0.05
    assert _rows(_recipe(), (0.2, 0.5), (0.8, 0.5), (0.75, 0.5))[2].gated is None


def test_small_falls_do_not_add_up_unseen() -> None:
    # Each round lies 0.04 below the one before, the second of them 0.08 below the best.
    rows = _rows(_recipe(), (0.2, 0.5), (0.6, 0.5), (0.56, 0.5), (0.52, 0.5))
    assert [row.gated is None for row in rows] == [True, True, True, False]


def test_what_did_not_pass_sets_no_mark() -> None:
    # Round 1 gains on IFEval and loses MMLU: it does not pass, so round 2 is held to the base's figures.
    recipe = _recipe(metrics=("ifeval/mean", "mmlu/acc"))
    rows = _rows(recipe, (0.2, 0.5), (0.9, 0.3), (0.3, 0.5))
    assert rows[1].gated is not None
    assert rows[1].gated.startswith("mmlu/acc 0.3000 is 0.2000 below round 0's 0.5000")
    assert rows[2].gated is None


def test_without_a_limit_every_round_passes() -> None:
    rows = _rows(_recipe(limit=None), (0.9, 0.5), (0.1, 0.0))
    assert rows[1].gated is None


def test_a_metric_that_nothing_reports_is_refused() -> None:
    with pytest.raises(UserError, match=r"gate\.metrics: 'gsm8k/acc' is not reported.*ifeval/mean, mmlu/acc"):
        _rows(_recipe(metrics=("gsm8k/acc",)), (0.2, 0.5), (0.3, 0.5))


@pytest.mark.parametrize(("policy", "expected"), [("previous", 2), ("best", 2)])
def test_a_gated_round_neither_samples_nor_is_published(policy: str, expected: int) -> None:
    recipe = _recipe(policy=policy, metrics=("mmlu/acc",))
    # Round 3 is the best on IFEval, and has lost ten points of MMLU.
    rows = _rows(recipe, (0.2, 0.5), (0.5, 0.5), (0.6, 0.5), (0.9, 0.4))
    assert sampling_policy(recipe, rows, _policies(rows)).path == Path(f"round-{expected:02d}")
    assert best_round(rows, recipe.best_metric).round == 2


@pytest.mark.parametrize(
    ("policy", "after", "expected"),
    [
        ("base", 1, 0),
        ("base", 3, 0),
        ("round-2", 1, 1),  # not there yet: the last round's
        ("round-2", 2, 2),
        ("round-2", 4, 2),
        ("round-3", 4, 2),  # round 3 has not passed the gate
    ],
)
def test_a_fixed_policy_samples_on(policy: str, after: int, expected: int) -> None:
    recipe = _recipe(policy=policy, metrics=("mmlu/acc",))
    rows = _rows(recipe, (0.2, 0.5), (0.5, 0.5), (0.6, 0.5), (0.9, 0.4), (0.7, 0.5))[: after + 1]
    assert sampling_policy(recipe, rows, _policies(rows)).path == Path(f"round-{expected:02d}")


def test_where_no_round_passed_the_start_samples_again_and_the_base_is_published() -> None:
    recipe = _recipe(metrics=("mmlu/acc",))
    rows = _rows(recipe, (0.2, 0.5), (0.5, 0.4))
    policies = {0: Artifact(Path("bootstrapped"), "digest"), **_policies(rows[1:])}
    assert sampling_policy(recipe, rows, policies).path == Path("bootstrapped")
    assert best_round(rows, recipe.best_metric).round == 0


@pytest.mark.parametrize(
    ("passed", "start_from", "expected"),
    [
        (True, "previous", "policy"),
        (False, "previous", "before"),
        (True, "base", "before"),
        (False, "base", "before"),
    ],
)
def test_the_next_round_is_not_built_on_one_that_did_not_pass(passed: bool, start_from: str, expected: str) -> None:
    def artifact(name: str) -> Artifact:
        return Artifact(Path(name), name)

    given: dict[str, Any] = {
        name: artifact(name) for name in ("policy", "reward_start", "preferences", "heldout", "prompts")
    }
    before = measure.Before(base=artifact("base"), base_answers=artifact("a"), last_answers=artifact("a"))
    start = RoundStart(**given, sft_start=artifact("before"), batches=(), scored=None, before=before)
    measured: dict[str, Any] = dict.fromkeys(_artifacts_of(measure.Outputs), artifact("measured"))
    end = RoundEnd(
        policy=artifact("policy"),
        reward_model=artifact("reward"),
        batch=artifact("batch"),
        prompts=artifact("prompts"),
        scored=artifact("scored"),
        evaluation=evaluate.Outputs(report=artifact("report"), samples=artifact("samples")),
        measured=measure.Outputs(**measured),
    )
    recipe = _recipe()
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"start_from": start_from})})
    following = next_start(recipe, start, end, passed=passed)
    assert following.sft_start.path == Path(expected)
    # Its data and its reward model are handed on either way.
    assert [batch.path for batch in following.batches] == [Path("batch")]
    assert following.scored == artifact("scored")
    assert following.reward_start == artifact("reward" if recipe.reward.start_from == "previous" else "reward_start")


def _artifacts_of(outputs: type) -> list[str]:
    return [found.name for found in fields(outputs) if found.name not in ("counts", "metrics", "facts")]
