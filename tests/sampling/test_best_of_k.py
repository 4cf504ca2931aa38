from __future__ import annotations

import math
import random

import pytest

from alignloop.sampling.best_of_k import pass_rate, pass_threshold, pick_best, pick_random


@pytest.mark.parametrize(
    ("rewards", "truncated", "empty", "best", "drawn_from"),
    [
        ([0.1, 0.9, 0.5], [], [], 1, {0, 1, 2}),
        ([0.1, 0.9, 0.5], [1], [], 2, {0, 2}),  # the highest broke off
        ([0.1, 0.9, 0.5], [0, 1, 2], [], 1, {0, 1, 2}),  # all broke off: the highest after all
        ([0.5, 0.5], [], [], 0, {0, 1}),
        ([-3.0], [], [], 0, {0}),  # K = 1 selects itself
        ([-3.0], [0], [], 0, {0}),
        ([-9.0, 4.0], [1], [], 0, {0}),
        ([9.0, 1.0, 2.0], [], [0], 2, {1, 2}),  # nothing to train on in the highest
        ([9.0, 1.0], [1], [0], 0, {0}),  # truncated never wins over finished, even so
        ([1.0, 9.0, 2.0], [0, 1, 2], [1], 2, {0, 2}),  # all broke off: of those with text
        ([1.0, 9.0], [], [0, 1], 1, {0, 1}),
        ([5.0, 5.0, 5.0], [0], [1], 2, {2}),
    ],
)
def test_best_and_random_are_picked_from_the_same(
    rewards: list[float], truncated: list[int], empty: list[int], best: int, drawn_from: set[int]
) -> None:
    indices = range(len(rewards))
    flags = {"truncated": [k in truncated for k in indices], "empty": [k in empty for k in indices]}
    assert pick_best(rewards, **flags) == best
    assert {pick_random(**flags, seed=seed) for seed in range(60)} == drawn_from


@pytest.mark.parametrize(
    ("rewards", "num_flags", "message"),
    [
        ([0.0, math.nan], 2, r"rewards\[1\] is"),
        ([0.0, math.inf], 2, r"rewards\[1\] is"),
        ([], 0, "no candidate"),
        ([1.0, 2.0], 1, "2 rewards for 1"),
    ],
)
def test_broken_rewards_are_errors(rewards: list[float], num_flags: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick_best(rewards, truncated=[False] * num_flags, empty=[False] * num_flags)


def test_random_pick_is_even_and_seeded() -> None:
    picks, again = (
        [pick_random(truncated=[False] * 4, empty=[False] * 4, seed=seed) for seed in range(400)] for _ in range(2)
    )
    assert picks == again
    assert all(70 <= picks.count(k) <= 130 for k in range(4))


def test_pass_rate_by_hand() -> None:
    assert pass_threshold([0.0, 1.0, 2.0, 4.0], quantile=0.5) == 1.5  # halfway between 1 and 2
    assert pass_rate([0.0, 1.5, 2.0, 4.0], threshold=1.5) == 0.75  # reaching it is enough
    with pytest.raises(ValueError, match="nan"):
        pass_rate([math.nan], threshold=0.0)


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
        assert pick_best(rewards * 2, truncated=truncated * 2, empty=empty * 2) == best  # the first of equals
