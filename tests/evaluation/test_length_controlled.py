"""Win rates at equal lengths, by hand: with two lengths alone the regression meets both groups exactly."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from alignloop.evaluation.length_controlled import length_controlled
from alignloop.evaluation.measures import Figures, add_win_rate
from alignloop.evaluation.standard_error import Estimate


def estimated(outcomes: list[float], differences: list[float]) -> Estimate:
    found = length_controlled(outcomes, differences)
    assert isinstance(found, Estimate), found
    return found


def test_wins_by_length_alone_are_half_at_equal_length() -> None:
    # Longer by 10: 6 of 8 win, log-odds ln 3. Shorter by 10: 1 of 4, -ln 3. Halfway: 0, one half; 7 of 12 as they are.
    found = estimated([1.0] * 6 + [0.0] * 2 + [1.0] + [0.0] * 3, [10.0] * 8 + [-10.0] * 4)
    assert found.value == pytest.approx(0.5, abs=1e-9)


def test_rate_and_error_by_hand() -> None:
    # Longer: 6 of 8, ln 3; shorter: 2 of 4, 0. Halfway: ln 3 / 2, a rate of 1 / (1 + 3 ** -0.5).
    found = estimated([1.0] * 6 + [0.0] * 2 + [1.0] * 2 + [0.0] * 2, [10.0] * 8 + [-10.0] * 4)
    rate = 1.0 / (1.0 + 3.0**-0.5)
    assert found.value == pytest.approx(rate, abs=1e-9)
    # The variance of a group's log-odds is 1 / (n p q): 1 / 1.5 and 1; of half their sum a quarter of that; 12 prompts.
    variance = (1.0 / 1.5 + 1.0) / 4.0 * 12.0 / 11.0
    assert found.stderr == pytest.approx(rate * (1.0 - rate) * math.sqrt(variance), rel=1e-7)
    assert math.fsum(found.influence) == pytest.approx(0.0, abs=1e-9)


def test_a_tie_is_half_a_win_and_the_sides_are_symmetric() -> None:
    outcomes, differences = [0.5, 0.5, 1.0, 0.0, 1.0, 0.5], [3.0, -7.0, 4.0, 1.0, -2.0, 0.0]
    one = estimated(outcomes, differences)
    other = estimated([1.0 - y for y in outcomes], [-d for d in differences])
    assert one.value + other.value == pytest.approx(1.0, abs=1e-9)
    assert one.stderr == pytest.approx(other.stderr)
    assert estimated([0.5] * 4, [1.0, 2.0, -5.0, 9.0]).value == pytest.approx(0.5)


def test_without_a_difference_of_length_it_is_the_win_rate() -> None:
    found = estimated([1.0, 1.0, 0.0, 0.5], [0.0] * 4)
    assert found.value == 0.625


def test_it_is_what_scikit_learn_fits_without_a_penalty() -> None:
    draw = random.Random(3)
    differences = [draw.gauss(20.0, 60.0) for _ in range(300)]
    outcomes = [float(draw.random() < 1.0 / (1.0 + math.exp(-0.4 - d / 50.0))) for d in differences]
    x = np.tanh(np.array(differences) / np.std(differences, ddof=1))[:, None]
    peer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, outcomes)
    rate = 1.0 / (1.0 + math.exp(-peer.intercept_[0]))
    assert estimated(outcomes, differences).value == pytest.approx(rate, abs=1e-6)
    # Drawn with 0.4: at equal length about 0.6 win, and more as they are, for ours are mostly longer.
    assert rate == pytest.approx(0.6, abs=0.08)
    assert sum(outcomes) / 300 > rate


@pytest.mark.parametrize(
    ("outcomes", "differences", "why"),
    [
        ([1.0, 1.0, 1.0], [1.0, -2.0, 3.0], "all are wins"),
        ([0.0, 0.0], [1.0, -2.0], "all are losses"),
        ([1.0, 1.0, 0.0, 0.0], [5.0, 3.0, 1.0, -2.0], "the lengths alone tell wins from losses"),
        ([0.0, 0.0, 1.0, 1.0], [5.0, 3.0, 3.0, -2.0], "the lengths alone tell wins from losses"),
        ([1.0, 0.5], [5.0, -5.0], "the lengths alone tell wins from losses"),
        ([1.0, 0.0, 1.0], [4.0, 4.0, 4.0], "all answers differ by the same length, +4"),
    ],
)
def test_where_it_cannot_be_estimated_it_says_why(outcomes: list[float], differences: list[float], why: str) -> None:
    assert length_controlled(outcomes, differences) == why
    figures = Figures()
    assert add_win_rate(figures, "win_rate/base", outcomes, lengths=differences) == why
    assert figures.values.keys() == {"win_rate/base", "win_rate/base_ties"}


def test_it_stands_beside_the_win_rate() -> None:
    figures = Figures()
    assert add_win_rate(figures, "win_rate/base", [1.0, 0.0, 0.0, 1.0], lengths=[2.0, 2.0, -2.0, -2.0]) is None
    assert figures.values["win_rate/base_length_controlled"] == pytest.approx(0.5)
    assert figures.errors["win_rate/base_length_controlled_stderr"] > 0.0
