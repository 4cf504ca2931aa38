from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignloop.artifacts import Artifact
from alignloop.config import Recipe
from alignloop.errors import UserError
from alignloop.evaluation.comparing import Measured, ProtocolMismatch
from alignloop.evaluation.report import Protocol
from alignloop.evaluation.standard_error import NORMAL_95, mean
from alignloop.loop.round import RoundEnd, RoundStart
from alignloop.loop.rounds import best_round, gated, next_start, sampling_policy, simultaneous
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


NUM_QUESTIONS = 1000
PROTOCOL = Protocol(lm_eval_version="0.4", seed=0, max_model_len=512, tasks={})


def _right(share: float) -> list[float]:
    """The first questions are right: of two rounds all those that one has fewer are lost, and none is won."""
    num = round(share * NUM_QUESTIONS)
    return [1.0] * num + [0.0] * (NUM_QUESTIONS - num)


def _equally(share: float) -> list[float]:
    """Every question alike: two rounds differ in all of them by the same, without an error."""
    return [share] * NUM_QUESTIONS


def _measured(number: int, answers: Mapping[str, Sequence[float]], values: Mapping[str, float] = {}) -> Measured:
    estimates = {key: mean(of) for key, of in answers.items()}
    figures = {**values, **{key: estimate.value for key, estimate in estimates.items()}}
    return Measured(f"round {number}", PROTOCOL, figures, estimates, questions="q")


def _row(measured: Measured, number: int) -> RoundRow:
    return RoundRow(
        round=number,
        policy=f"round-{number:02d}",
        metrics=dict(measured.values),
        stderr={},
        reward_model={},
        rows={},
        seconds={},
    )


def _gated(recipe: Recipe, rounds: Sequence[Measured]) -> list[RoundRow]:
    """A row a round, gated in order."""
    rows: list[RoundRow] = []
    measured = dict(enumerate(rounds))
    for number, each in measured.items():
        row = _row(each, number)
        rows.append(gated(row, rows, recipe, measured=measured) if number else row)
    return rows


def _rows(
    recipe: Recipe, *values: tuple[float, float], right: Callable[[float], list[float]] = _right
) -> list[RoundRow]:
    """Of ifeval/mean and mmlu/acc."""
    answers = [{"ifeval/mean": right(ifeval), "mmlu/acc": right(mmlu)} for ifeval, mmlu in values]
    return _gated(recipe, [_measured(number, each) for number, each in enumerate(answers)])


def _policies(rows: list[RoundRow]) -> dict[int, Artifact]:
    return {row.round: Artifact(Path(row.policy), "digest") for row in rows}


def test_a_fall_past_the_limit_is_gated_and_said_with_its_numbers() -> None:
    # Of 1,000 questions 100 are lost: sd^2 = (100 * 0.9^2 + 900 * 0.1^2) / 999 = 0.0900901, error 0.00949158. The best
    # is of two rounds: an upper end with an error of 0.05 / 6 / 2 lies 2.638257 errors off, 0.025041.
    rows = _rows(_recipe(), (0.2, 0.5), (0.6, 0.5), (0.5, 0.5))
    assert [row.gated is None for row in rows] == [True, True, False]
    assert rows[2].gated == (
        "ifeval/mean 0.5000 is 0.1000 (0.0750 to 0.1250) below round 1's 0.6000 (gate.max_regression 0.05)"
    )


def test_a_fall_whose_interval_reaches_the_limit_passes() -> None:
    # 60 lost: error sqrt(0.06 * 0.94 / 999), 2.638257 of which are 0.0198. A point estimate would be past the limit.
    assert _rows(_recipe(), (0.2, 0.5), (0.6, 0.5), (0.54, 0.5))[2].gated is None
    assert _rows(_recipe(limit=0.04), (0.2, 0.5), (0.6, 0.5), (0.54, 0.5))[2].gated is not None


def test_the_error_is_shared_by_rounds_and_metrics() -> None:
    # One-sided: 0.05 / 6 = 0.008333, and half of it; from a table of the normal distribution.
    assert simultaneous(1) == pytest.approx(2.3940, abs=1e-4)
    assert simultaneous(2) == simultaneous(1, num_metrics=2) == pytest.approx(2.6383, abs=1e-4)


def test_a_fall_of_exactly_the_limit_passes() -> None:
    # 0.8 - 0.75 is 0.050000000000000044: past the limit in its last digits alone.
    assert 0.8 - 0.75 > 0.05
    rounds = ((0.2, 0.5), (0.8, 0.5), (0.75, 0.5))
    assert _rows(_recipe(), *rounds, right=_equally)[2].gated is None
    assert _rows(_recipe(limit=0.049), *rounds, right=_equally)[2].gated is not None


def test_small_falls_do_not_add_up_unseen() -> None:
    # Each round lies 0.04 below the one before, the second of them 0.08 below the best.
    rows = _rows(_recipe(limit=0.03), (0.2, 0.5), (0.6, 0.5), (0.56, 0.5), (0.52, 0.5))
    assert [row.gated is None for row in rows] == [True, True, True, False]


def test_a_figure_that_is_no_mean_over_questions_is_compared_as_it_is() -> None:
    rounds = [_measured(number, {}, {"translate/bleu": bleu}) for number, bleu in enumerate((0.3, 0.34, 0.28))]
    rows = _gated(_recipe(metrics=("translate/bleu",)), rounds)
    assert [row.gated for row in rows[:2]] == [None, None]
    assert rows[2].gated == ("translate/bleu 0.2800 is 0.0600 below round 1's 0.3400 (gate.max_regression 0.05)")


def test_what_was_asked_otherwise_is_not_compared() -> None:
    other = replace(_measured(1, {"ifeval/mean": _right(0.1)}), questions="others")
    with pytest.raises(ProtocolMismatch, match="round 0 and round 1 were measured by different protocols"):
        _gated(_recipe(), [_measured(0, {"ifeval/mean": _right(0.2)}), other])


def _of_equal_rounds(rng: np.random.Generator, *, num_questions: int, num_rounds: int) -> list[Measured]:
    """A base and rounds that are all as good: each question has a probability of its own, and a coin a round."""
    chances = rng.beta(0.5, 0.5, size=num_questions)
    rounds = (rng.random((num_rounds + 1, num_questions)) < chances).astype(float)
    return [_measured(number, {"ifeval/mean": of.tolist()}) for number, of in enumerate(rounds)]


def _false_alarms(*, num_questions: int, limit: float, num_runs: int) -> float:
    """Share of runs of six equal rounds in which the gate holds one back."""
    rng, recipe = np.random.default_rng(0), _recipe(limit=limit)
    runs = (_of_equal_rounds(rng, num_questions=num_questions, num_rounds=6) for _ in range(num_runs))
    return float(np.mean([any(row.gated is not None for row in _gated(recipe, run)) for run in runs]))


@pytest.mark.parametrize("num_questions", [378, 700])
@pytest.mark.parametrize("limit", [0.0, 0.02])
def test_of_runs_of_six_equal_rounds_under_five_percent_raise_an_alarm(num_questions: int, limit: float) -> None:
    assert _false_alarms(num_questions=num_questions, limit=limit, num_runs=1000) < 0.05


def test_a_plain_interval_raises_five_times_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignloop.loop.rounds.simultaneous", lambda *_, **__: NORMAL_95)
    assert 0.2 < _false_alarms(num_questions=378, limit=0.0, num_runs=300) < 0.4


@pytest.mark.parametrize(
    ("num_questions", "limit", "points", "caught"),
    [  # by 4,000 runs of an independent simulation: 0.52, 0.21, 0.83, 0.42; 0.95 and 1.00
        (378, 0.0, 6, (0.42, 0.62)),
        (378, 0.02, 6, (0.11, 0.31)),
        (700, 0.0, 6, (0.73, 0.93)),
        (700, 0.02, 6, (0.32, 0.52)),
        (378, 0.0, 10, (0.90, 1.0)),
        (378, 0.02, 15, (0.97, 1.0)),
    ],
)
def test_a_real_fall_is_caught(num_questions: int, limit: float, points: int, caught: tuple[float, float]) -> None:
    """After a base and three rounds that are equal a round loses so many points."""
    rng, recipe, found = np.random.default_rng(0), _recipe(limit=limit), []
    for _ in range(200):
        chances = rng.beta(0.5, 0.5, size=num_questions)
        lower = chances * (1 - points / 100 / chances.mean())
        rounds = [rng.random(num_questions) < of for of in (*[chances] * 4, lower)]
        run = [_measured(number, {"ifeval/mean": of.astype(float).tolist()}) for number, of in enumerate(rounds)]
        found.append(_gated(recipe, run)[-1].gated is not None)
    assert caught[0] <= np.mean(found) <= caught[1]


def test_what_did_not_pass_sets_no_mark() -> None:
    # Round 1 gains on IFEval and loses MMLU: it does not pass, so round 2 is held to the base's figures.
    recipe = _recipe(metrics=("ifeval/mean", "mmlu/acc"))
    rows = _rows(recipe, (0.2, 0.5), (0.9, 0.3), (0.3, 0.5))
    assert rows[1].gated is not None
    assert rows[1].gated.startswith("mmlu/acc 0.3000 is 0.2000 (")
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
    given |= {name: artifact("before") for name in ("base", "previous", "average", "sft_start")}
    start = RoundStart(**given, reward_model=None, batches=(), scored=None, before=before)
    measured: dict[str, Any] = dict.fromkeys(_artifacts_of(measure.Outputs), artifact("measured"))
    end = RoundEnd(
        policy=artifact("policy"),
        average=artifact("average"),
        reward_model=artifact("reward"),
        reward_average=artifact("averaged"),
        batch=artifact("batch"),
        prompts=artifact("prompts"),
        scored=artifact("scored"),
        evaluation=evaluate.Outputs(report=artifact("report"), samples=artifact("samples")),
        measured=measure.Outputs(**measured),
        optimizer=(artifact("optimizer"),),
        other_candidates=(artifact("others"),),
        variants=(),
    )
    recipe = _recipe()
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"start_from": start_from})})
    following = next_start(recipe, start, end, passed=passed)
    assert following.sft_start.path == Path(expected)
    assert following.previous.path == Path("policy" if passed else "before")
    assert following.base.path == Path("before")
    assert following.average.path == Path("average" if passed else "before")
    assert following.optimizer == ((artifact("optimizer"),) if passed else ())
    assert following.reward_model == artifact("reward")
    # Its data and its reward model are handed on either way.
    assert [batch.path for batch in following.batches] == [Path("batch")]
    assert following.scored == artifact("scored")
    assert following.reward_start == artifact("averaged" if recipe.reward.start_from == "previous" else "reward_start")


def _artifacts_of(outputs: type) -> list[str]:
    return [found.name for found in fields(outputs) if found.name not in ("counts", "metrics", "facts")]
