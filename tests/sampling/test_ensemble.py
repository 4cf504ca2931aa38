"""Rewards of several models made one, by hand."""

from __future__ import annotations

import math

import pytest

from alignloop.config.sampling import Ensemble
from alignloop.sampling.ensemble import combined, spread, spread_of_gap

REWARDS = (1.0, 3.0, 8.0)
# Mean 4; deviations -3, -1, 4: squares 9 + 1 + 16 = 26, over three members.
SPREAD = math.sqrt(26 / 3)


@pytest.mark.parametrize(
    ("by", "penalty", "expected"),
    [
        ("mean", 1.0, 4.0),
        ("least", 1.0, 1.0),
        ("mean_minus_spread", 1.0, 4.0 - SPREAD),
        ("mean_minus_spread", 0.5, 4.0 - 0.5 * SPREAD),
        ("mean_minus_spread", 0.0, 4.0),
    ],
)
def test_rewards_of_three_members(by: Ensemble, penalty: float, expected: float) -> None:
    assert combined(REWARDS, by=by, penalty=penalty) == pytest.approx(expected)
    assert combined(REWARDS[::-1], by=by, penalty=penalty) == pytest.approx(expected)


def test_the_spread_is_the_standard_deviation_over_the_members() -> None:
    assert spread(REWARDS) == pytest.approx(SPREAD)
    assert spread((2.0, 2.0, 2.0)) == 0.0


def test_of_two_members_a_penalty_of_one_is_the_least() -> None:
    # Mean 2, deviations -3 and 3: a spread of 3.
    assert combined((-1.0, 5.0), by="mean_minus_spread", penalty=1.0) == pytest.approx(-1.0)


@pytest.mark.parametrize("by", ["average_weights", "mean", "mean_minus_spread", "least"])
def test_of_one_model_the_reward_is_its_own(by: Ensemble) -> None:
    assert combined((0.1,), by=by, penalty=1.0) == 0.1


def test_the_most_liked_is_not_the_pick_where_members_disagree_on_it() -> None:
    sure, doubtful = (1.0, 1.2, 1.1), (4.0, 4.0, -4.0)
    # Means 1.1 and 4 / 3; the spread of the second is sqrt((2 * (8/3)^2 + (16/3)^2) / 3) = 3.77.
    assert combined(sure, by="mean", penalty=1.0) < combined(doubtful, by="mean", penalty=1.0)
    for by in ("mean_minus_spread", "least"):
        assert combined(sure, by=by, penalty=1.0) > combined(doubtful, by=by, penalty=1.0)


def test_the_spread_of_a_gap_does_not_know_a_members_level() -> None:
    # Gaps 1, 1, 1 whatever the levels; then 2 and -2, whose standard deviation is 2.
    assert spread_of_gap((11.0, 1.0, -4.0), (10.0, 0.0, -5.0)) == 0.0
    assert spread_of_gap((3.0, 0.0), (1.0, 2.0)) == 2.0
