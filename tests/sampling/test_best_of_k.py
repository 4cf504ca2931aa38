from __future__ import annotations

import math
import random

import pytest

from alignloop.sampling.best_of_k import pass_rate, pass_threshold, pick_best, pick_random


@pytest.mark.parametrize(
    ("rewards", "truncated", "best"),
    [
        ([0.1, 0.9, 0.5], [False, False, False], 1),
        ([0.1, 0.9, 0.5], [False, True, False], 2),  # the highest broke off
        ([0.1, 0.9, 0.5], [True, True, True], 1),  # all broke off: the highest after all
        ([0.5, 0.5], [False, False], 0),
        ([-3.0], [False], 0),  # K = 1 selects itself
        ([-3.0], [True], 0),
        ([-9.0, 4.0], [False, True], 0),
    ],
)
def test_pick_best(rewards: list[float], truncated: list[bool], best: int) -> None:
    assert pick_best(rewards, truncated=truncated, empty=[False] * len(rewards)) == best


def test_broken_rewards_are_errors() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"rewards\[1\] is"):
            pick_best([0.0, bad], truncated=[False, False], empty=[False, False])
    with pytest.raises(ValueError, match="no candidate"):
        pick_best([], truncated=[], empty=[])


def test_random_pick_is_even_and_seeded() -> None:
    picks = [pick_random(truncated=[False] * 4, empty=[False] * 4, seed=seed) for seed in range(400)]
    assert picks == [pick_random(truncated=[False] * 4, empty=[False] * 4, seed=seed) for seed in range(400)]
    assert all(70 <= picks.count(k) <= 130 for k in range(4))
    assert pick_random(truncated=[True], empty=[False], seed=9) == 0


def test_random_pick_leaves_out_what_broke_off_as_best_of_k_does() -> None:
    picks = {pick_random(truncated=[True, False, True, False], empty=[False] * 4, seed=seed) for seed in range(40)}
    assert picks == {1, 3}
    assert {pick_random(truncated=[True, True], empty=[False] * 2, seed=seed) for seed in range(40)} == {0, 1}


def test_pass_rate_by_hand() -> None:
    assert pass_threshold([0.0, 1.0, 2.0, 4.0], quantile=0.5) == 1.5  # halfway between 1 and 2
    assert pass_rate([0.0, 1.5, 2.0, 4.0], threshold=1.5) == 0.75  # reaching it is enough
    with pytest.raises(ValueError, match="nan"):
        pass_rate([math.nan], threshold=0.0)


@pytest.mark.parametrize(
    ("rewards", "truncated", "empty", "best", "drawn_from"),
    [
        ([9.0, 1.0, 2.0], [False] * 3, [True, False, False], 2, {1, 2}),  # nothing to train on in the highest
        ([9.0, 1.0], [False, True], [True, False], 0, {0}),  # truncated never wins over finished, even so
        ([1.0, 9.0, 2.0], [True] * 3, [False, True, False], 2, {0, 2}),  # all broke off: of those with text
        ([1.0, 9.0], [False, False], [True, True], 1, {0, 1}),
        ([5.0, 5.0, 5.0], [True, False, False], [False, True, False], 2, {2}),
    ],
)
def test_empty_candidates(
    rewards: list[float], truncated: list[bool], empty: list[bool], best: int, drawn_from: set[int]
) -> None:
    assert pick_best(rewards, truncated=truncated, empty=empty) == best
    assert {pick_random(truncated=truncated, empty=empty, seed=seed) for seed in range(60)} == drawn_from


def test_the_best_beats_every_random_pick_and_copies_change_nothing() -> None:
    draw = random.Random(0)
    for _ in range(200):
        k = draw.randint(1, 8)
        rewards = [float(draw.randint(0, 4)) for _ in range(k)]
        truncated = [draw.random() < 0.4 for _ in range(k)]
        empty = [draw.random() < 0.2 for _ in range(k)]
        best = pick_best(rewards, truncated=truncated, empty=empty)
        picked = pick_random(truncated=truncated, empty=empty, seed=draw.randint(0, 9))
        assert rewards[best] >= rewards[picked]
        assert not truncated[best] or all(truncated)
        twice = pick_best(rewards * 2, truncated=truncated * 2, empty=empty * 2)
        assert twice == best  # the first of equals
    with pytest.raises(ValueError, match="2 rewards for 1"):
        pick_best([1.0, 2.0], truncated=[False], empty=[False])
