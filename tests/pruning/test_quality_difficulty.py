from __future__ import annotations

import math

import pytest

from alignloop.pruning.difficulty import difficulty_window, distinct_intentions
from alignloop.pruning.quality import Rating, is_code, shares_not_higher, top_or_best_rated
from alignloop.pruning.step import Pruned

IDS = ["a", "b", "c", "d", "e"]


def top(rewards: list[float], fraction: float) -> Pruned:
    ids = [f"r{n}" for n in range(len(rewards))]
    return top_or_best_rated(ids, rewards=rewards, ratings=[None] * len(ids), fraction=fraction)


def test_top_fraction_by_hand() -> None:
    result = top([0.1, 3.0, 2.0, 3.0, -1.0], 0.4)
    assert result.kept == (1, 3)
    assert [drop.id for drop in result.dropped] == ["r0", "r2", "r4"]
    assert result.metrics["least_quality_score"] == 3.0
    assert "score 2 is not in the top 40% (from 3)" in result.dropped[1].reason


def test_ties_go_to_the_first_and_something_is_kept() -> None:
    assert top([1.0] * 5, 0.25).kept == (0, 1)  # ceil(1.25)
    assert top([-5.0], 0.01).kept == (0,)
    assert top([1.0] * 5, 1.0).dropped == ()
    assert top([1.0] * 5, 0.0).kept == top([], 0.5).kept == ()
    assert len(top([float(n) for n in range(100)], 0.07).kept) == 7


def test_bad_scores_are_errors() -> None:
    with pytest.raises(ValueError, match=r"quality_scores\[1\] is nan"):
        top([0.0, math.nan], 0.5)
    with pytest.raises(ValueError, match="fraction is 2"):
        top([0.0], 2)


def test_top_reward_or_the_judges_maximum_keeps_a_row() -> None:
    # Of four rewards the top half are 3 and 2; general rows get 3 points at most, code 2.
    result = top_or_best_rated(
        ["top", "second", "best", "flawed", "unread", "code", "buggy", "silent"],
        rewards=[3.0, 2.0, 1.0, 0.0, None, None, None, None],
        ratings=[Rating(1, 3), None, Rating(3, 3), Rating(2, 3), Rating(None, 3), Rating(2, 2), Rating(1, 2), None],
        fraction=0.5,
    )
    assert result.kept == (0, 1, 2, 5, 7)
    assert [(drop.id, drop.reason) for drop in result.dropped] == [
        ("flawed", "score 0 is not in the top 50% (from 2); the judge gave 2 of 3 points"),
        ("unread", "the judge's answer cannot be read"),
        ("buggy", "the judge gave 1 of 2 points"),
    ]
    assert result.metrics["num_unreadable"] == 1
    assert result.metrics["num_top_reward"] == result.metrics["num_best_rated"] == 2


def test_rewards_count_as_the_share_of_what_is_not_higher() -> None:
    assert shares_not_higher([5.0, -1.0, 5.0, 2.0]) == {-1.0: 0.25, 2.0: 0.5, 5.0: 1.0}


def test_code_is_a_topic_or_a_fenced_block() -> None:
    topics = ("code", "programming")
    assert is_code("Code ", "hello", code_topics=topics)
    assert is_code("chat", "see", "so:\n```python\nprint(1)\n```", code_topics=topics)
    assert is_code(None, "  ~~~\nx\n~~~", code_topics=topics)
    assert not is_code("chat", "use ``` inline", code_topics=topics)
    assert not is_code(None, code_topics=topics)


def rates(values: list[float | None], low: float, high: float) -> Pruned:
    ids = IDS[: len(values)]
    return difficulty_window(ids, values=values, low=low, high=high, name="pass_rate", easy_is_high=True)


def test_window_of_pass_rates() -> None:
    result = rates([0.0, 0.1, 0.5, 1.0, None], 0.1, 0.9)
    assert result.kept == (1, 2, 4)
    assert ["too hard" in result.dropped[0].reason, "too easy" in result.dropped[1].reason] == [True, True]
    assert result.metrics["mean_pass_rate"] == pytest.approx(0.4)
    assert rates([0.0, 1.0, 0.5, 1.0, None], 0, 1).dropped == ()
    with pytest.raises(ValueError, match=r"min_pass_rate 0\.9 is above max_pass_rate 0.1: nothing would be kept"):
        rates([None] * 5, 0.9, 0.1)
    with pytest.raises(ValueError, match=r"pass_rates\[0\] is nan"):
        rates([math.nan], 0, 1)


def test_points_and_intentions_are_hard_where_they_are_many() -> None:
    points = difficulty_window(IDS, values=[1, 2, 3, None, 2], low=2, high=2, name="points")
    assert points.kept == (1, 3, 4)
    assert [drop.reason for drop in points.dropped] == [
        "points 1 is under 2 (too easy)",
        "points 3 is over 2 (too hard)",
    ]
    counts = difficulty_window(IDS, values=[0, 1, 5, None, 9], low=1, high=None, name="intentions")
    assert counts.kept == (1, 2, 3, 4)
    assert counts.metrics["mean_intentions"] == pytest.approx(15 / 4)


def test_intentions_are_counted_once() -> None:
    said = ["Poetry writing", "poetry-writing ", "Word limit", "", " ??", "写诗", "写诗。"]
    assert distinct_intentions(said) == ["Poetry writing", "Word limit", "写诗"]
