from __future__ import annotations

import math

import pytest

from alignloop.selection.difficulty import distinct_intentions, intentions_window, pass_rate_window, points_window
from alignloop.selection.quality import Rating, places, top_fraction, top_or_best_rated

IDS = ["a", "b", "c", "d", "e"]


def test_top_fraction_by_hand() -> None:
    result = top_fraction(IDS, quality_scores=[0.1, 3.0, 2.0, 3.0, -1.0], fraction=0.4)
    assert result.kept == (1, 3)
    assert [drop.id for drop in result.dropped] == ["a", "c", "e"]
    assert result.metrics["least_quality_score"] == 3.0
    assert "score 2 is not in the top 40% (from 3)" in result.dropped[1].reason


def test_ties_go_to_the_first_and_something_is_kept() -> None:
    assert top_fraction(IDS, quality_scores=[1.0] * 5, fraction=0.25).kept == (0, 1)  # ceil(1.25)
    assert top_fraction(["x"], quality_scores=[-5.0], fraction=0.01).kept == (0,)
    assert top_fraction(IDS, quality_scores=[1.0] * 5, fraction=1.0).dropped == ()
    assert top_fraction(IDS, quality_scores=[1.0] * 5, fraction=0.0).kept == ()
    assert top_fraction([], quality_scores=[], fraction=0.5).kept == ()
    hundred = [str(n) for n in range(100)]
    assert len(top_fraction(hundred, quality_scores=list(map(float, range(100))), fraction=0.07).kept) == 7


def test_bad_scores_are_errors() -> None:
    with pytest.raises(ValueError, match=r"quality_scores\[1\] is nan"):
        top_fraction(["a", "b"], quality_scores=[0.0, math.nan], fraction=0.5)
    with pytest.raises(ValueError, match="fraction is 2"):
        top_fraction(["a"], quality_scores=[0.0], fraction=2)


def test_pass_rate_window() -> None:
    result = pass_rate_window(IDS, pass_rates=[0.0, 0.1, 0.5, 1.0, None], min_pass_rate=0.1, max_pass_rate=0.9)
    assert result.kept == (1, 2, 4)
    assert ["too hard" in result.dropped[0].reason, "too easy" in result.dropped[1].reason] == [True, True]
    assert result.metrics["mean_pass_rate"] == pytest.approx(0.4)
    assert pass_rate_window(IDS, pass_rates=[0.0, 1.0, 0.5, 1.0, None], min_pass_rate=0, max_pass_rate=1).dropped == ()
    with pytest.raises(ValueError, match="nothing would be kept"):
        pass_rate_window(IDS, pass_rates=[None] * 5, min_pass_rate=0.9, max_pass_rate=0.1)
    with pytest.raises(ValueError, match="nan"):
        pass_rate_window(["a"], pass_rates=[math.nan], min_pass_rate=0, max_pass_rate=1)


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


def test_without_a_judge_either_is_the_top_fraction() -> None:
    scores = [0.1, 3.0, 2.0, 3.0, -1.0]
    plain = top_fraction(IDS, quality_scores=scores, fraction=0.4)
    either = top_or_best_rated(IDS, rewards=scores, ratings=[None] * 5, fraction=0.4)
    assert (either.kept, either.dropped) == (plain.kept, plain.dropped)
    with pytest.raises(ValueError, match="nan"):
        top_or_best_rated(["a"], rewards=[math.nan], ratings=[None], fraction=0.5)


def test_places_are_shares_of_what_is_not_higher() -> None:
    assert places([5.0, -1.0, 5.0, 2.0]) == {-1.0: 0.25, 2.0: 0.5, 5.0: 1.0}


def test_points_and_intentions_have_windows_of_their_own() -> None:
    points = points_window(IDS, points=[1, 2, 3, None, 2], min_points=2, max_points=2)
    assert points.kept == (1, 3, 4)
    assert [drop.reason for drop in points.dropped] == [
        "points 1 is under 2 (too easy)",
        "points 3 is over 2 (too hard)",
    ]
    counts = intentions_window(IDS, counts=[0, 1, 5, None, 9], min_intentions=1, max_intentions=None)
    assert counts.kept == (1, 2, 3, 4)
    assert counts.metrics["mean_intentions"] == pytest.approx(15 / 4)
    with pytest.raises(ValueError, match="min_points 3 is above max_points 2"):
        points_window(IDS, points=[1] * 5, min_points=3, max_points=2)


def test_intentions_are_counted_once() -> None:
    said = ["Poetry writing", "poetry-writing ", "Word limit", "", " ??", "写诗", "写诗。"]
    assert distinct_intentions(said) == ["Poetry writing", "Word limit", "写诗"]
