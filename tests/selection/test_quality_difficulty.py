from __future__ import annotations

import math

import pytest

from alignloop.selection.difficulty import pass_rate_window
from alignloop.selection.quality import top_fraction

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
