"""What the benchmarks do not show, worked by hand."""

from __future__ import annotations

import math

import pytest

from alignloop.errors import ModelError
from alignloop.evaluation.measures.calibration import (
    calibration_error,
    confidence,
    is_right,
    pair_loss,
    reliability,
)
from alignloop.evaluation.measures.divergence import divergence, sum_k1, sum_k3
from alignloop.evaluation.measures.figures import Figures, clustered
from alignloop.evaluation.measures.texts import Ending, add_texts
from alignloop.evaluation.measures.winning import by_reward, win_rate, without_asking
from alignloop.evaluation.standard_error import mean


def margin_of(probability: float) -> float:
    """The margin whose sigmoid is `probability`."""
    return math.log(probability / (1.0 - probability))


def test_right_wrong_and_undecided() -> None:
    assert [is_right(margin) for margin in (2.0, -0.1, 0.0)] == [1.0, 0.0, 0.5]


def test_confidence_is_of_the_side_taken() -> None:
    assert confidence(margin_of(0.8)) == pytest.approx(0.8)
    assert confidence(margin_of(0.2)) == pytest.approx(0.8)
    assert confidence(0.0) == 0.5
    assert confidence(-800.0) == 1.0


def test_loss_is_minus_log_sigmoid() -> None:
    assert pair_loss(0.0) == pytest.approx(math.log(2.0))
    assert pair_loss(margin_of(0.8)) == pytest.approx(-math.log(0.8))
    assert pair_loss(-1000.0) == pytest.approx(1000.0)


def test_calibration_error_by_hand() -> None:
    """Two pairs at 0.82 (one right), one at 0.97 (right), one at 0.52 (wrong).

    |0.5 - 0.82| * 2/4 + |1 - 0.97| * 1/4 + |0 - 0.52| * 1/4 = 0.16 + 0.0075 + 0.13 = 0.2975
    """
    margins = [margin_of(0.82), -margin_of(0.82), margin_of(0.97), margin_of(0.48)]
    bins = reliability(margins)
    assert [(each.low, each.high, each.count) for each in bins] == [
        (pytest.approx(0.50), pytest.approx(0.55), 1),
        (pytest.approx(0.80), pytest.approx(0.85), 2),
        (pytest.approx(0.95), pytest.approx(1.00), 1),
    ]
    assert [each.accuracy for each in bins] == [0.0, 0.5, 1.0]
    assert bins[1].confidence == pytest.approx(0.82)
    assert calibration_error(bins) == pytest.approx(0.2975)


def test_a_calibrated_model_has_no_error_and_certainty_falls_into_the_last_bin() -> None:
    """At 0.75 three of four right; at certainty all right."""
    margins = [margin_of(0.75)] * 3 + [-margin_of(0.75)] + [900.0] * 4
    bins = reliability(margins)
    assert calibration_error(bins) == pytest.approx(0.0, abs=1e-12)
    assert bins[-1].count == 4
    assert bins[-1].high == pytest.approx(1.0)


def test_rows_of_one_prompt_are_one_cluster() -> None:
    """Prompt a: 1, 1, prompt b: 0. p = 2/3; u_a = (2 - 2/3 * 2) / 3 = 2/9, u_b = (0 - 2/3) / 3 = -2/9.

    The error is sqrt(2/1 * (4/81 + 4/81)) = 4/9; three prompts of their own would have 1/3.
    """
    found = clustered([1.0, 1.0, 0.0], clusters=["a", "a", "b"])
    assert found.value == pytest.approx(2 / 3)
    assert found.stderr == pytest.approx(4 / 9)
    assert clustered([1.0, 1.0, 0.0], clusters=["a", "c", "b"]).stderr == pytest.approx(1 / 3)


def test_divergence_of_two_tokens_by_hand() -> None:
    """Policy (1/2, 1/4), base (1/4, 1/2): k1 = ln 2 - ln 2 = 0; k3 = (1/2 - 1 + ln 2) + (2 - 1 - ln 2) = 1/2."""
    policy, base = [math.log(0.5), math.log(0.25)], [math.log(0.25), math.log(0.5)]
    assert sum_k1(policy, base) == pytest.approx(0.0, abs=1e-15)
    assert sum_k3(policy, base) == pytest.approx(0.5)


def test_divergence_is_a_token_and_its_error_is_of_the_prompts() -> None:
    """Prompt 0: completions of 1 and 2 tokens that moved by 1 and 2 nats; prompt 1: one of 1 token that moved by 0.

    A token: 3 / 4. u_0 = (3 - 3/4 * 3) / 4 = 3/16, u_1 = (0 - 3/4) / 4 = -3/16; error sqrt(2 * 2 * 9/256) = 3/8.
    A completion: 3 / 3 = 1.
    """
    found = divergence([[-1.0], [-1.0, -1.0], [-2.0]], [[-2.0], [-2.0, -2.0], [-2.0]], prompts=[0, 0, 1])
    assert found.k1.value == pytest.approx(0.75)
    assert found.k1.stderr == pytest.approx(3 / 8)
    assert found.completion.value == pytest.approx(1.0)
    assert found.k3.value == pytest.approx(3 * (math.exp(-1.0) - 1.0 + 1.0) / 4)


def test_both_estimators_find_the_divergence_of_two_known_models() -> None:
    """A token is 0 with probability 3/4 under the policy, 1/2 under the base: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    drawn = [[math.log(0.75)]] * 3 + [[math.log(0.25)]]
    found = divergence(drawn, [[math.log(0.5)]] * 4, prompts=range(4))
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.k1.value == pytest.approx(exact)
    assert found.k3.value == pytest.approx(exact)


def test_win_rate_counts_ties_half() -> None:
    """Win, win, tie, loss: 2.5 / 4; sd of (1, 1, .5, 0) about .625 is sqrt(.6875 / 3), through sqrt(4)."""
    found = win_rate([by_reward(2.0, 1.0), by_reward(0.1, 0.0), by_reward(1.0, 1.0), by_reward(0.0, 1.0)])
    assert found.rate.value == 0.625
    assert found.rate.stderr == pytest.approx(math.sqrt(0.6875 / 3) / 2)
    assert found.ties == 0.25


def test_what_needs_no_judge() -> None:
    assert without_asking("Yes. ", "Yes.") == 0.5
    assert without_asking("", " ") == 0.5
    assert without_asking("Yes.", "") == 1.0
    assert without_asking(" ", "Yes.") == 0.0
    assert without_asking("Yes.", "No.") is None


def test_endings_lengths_and_repetitions() -> None:
    """Seven words in a loop of two have four 4-word sequences, two of them different: half of them repeat."""
    figures = Figures()
    add_texts(
        figures,
        [Ending("a b a b a b a", 8, True), Ending("", 1, True), Ending("one two three four five", 6, False)],
    )
    assert figures.values == {
        "stop_rate": pytest.approx(2 / 3),
        "truncation_rate": pytest.approx(1 / 3),
        "repetition_rate": pytest.approx(0.5 / 3),
        "empty_rate": pytest.approx(1 / 3),
        "mean_tokens": pytest.approx(5.0),
    }
    # 8, 1, 6: squares about 5 are 9, 16, 1; sqrt(26 / 2) / sqrt(3)
    assert figures.errors["mean_tokens_stderr"] == pytest.approx(math.sqrt(13.0 / 3.0))


def test_figures_put_values_first_and_refuse_what_is_no_number() -> None:
    figures = Figures()
    figures.add("a", mean([1.0, 3.0]))
    figures.details["bin"] = 4.0
    figures.add("b", mean([1.0]))
    assert list(figures.flat.items()) == [("a", 2.0), ("b", 1.0), ("a_stderr", 1.0), ("bin", 4.0)]
    figures.values["c"] = math.nan
    with pytest.raises(ModelError, match="c is nan"):
        figures.flat  # noqa: B018
