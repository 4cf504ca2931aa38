from __future__ import annotations

import math
import random

import pytest

from alignloop.sampling.best_of_k import (
    Pairing,
    ScoredCandidates,
    best_and_lower,
    build_pairs,
    pass_rate,
    pass_threshold,
    pick_best,
    pick_random,
)


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


def prompt(
    name: str, *candidates: tuple[str, float] | tuple[str, float, bool], rewards: tuple[float, ...] = (), seed: int = 0
) -> ScoredCandidates:
    """Of (text, reward, whether it is truncated), or of rewards alone."""
    given = candidates or [(f"{name}{k}", reward) for k, reward in enumerate(rewards)]
    truncated = tuple(len(c) == 3 and bool(c[2]) for c in given)
    return ScoredCandidates(name, tuple(c[0] for c in given), tuple(c[1] for c in given), truncated, seed=seed)


def gaps(*values: float) -> list[ScoredCandidates]:
    return [prompt(f"p{n}", ("good", gap), ("bad", 0.0)) for n, gap in enumerate(values)]


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([("a", 1.0), ("b", 3.0), ("c", -1.0)], (1, (0, 2))),
        ([("a", 1.0), ("b", 3.0, True), ("c", -1.0, True), ("d", 0.0)], (0, (3,))),
        # the same text scored twice never pairs with itself, whatever float noise says
        ([("a", 1.0), (" a\n", -1.0), ("b", 0.0)], (0, (2,))),
        # ties with the best are no pair, though their texts differ; nor are empty texts
        ([("a", 1.0), ("b", 1.0), ("", -3.0), ("c", 0.0)], (0, (3,))),
        ([("a", 1.0)], "no second candidate that is finished and differs from the best"),
        ([("a", 1.0), ("a ", 0.0)], "no second candidate that is finished and differs from the best"),
        ([("a", 1.0, True), ("b", 0.0, True)], "no candidate is finished and non-empty"),
        ([(" ", 1.0)], "no candidate is finished and non-empty"),
        ([("a", 1.0), ("b", 1.0)], "no gap: best and worst have the same reward 1"),
    ],
)
def test_best_and_what_may_be_rejected_for_it_or_why_there_is_none(candidates: list, expected: object) -> None:
    assert best_and_lower(prompt("p", *candidates)) == expected
    with pytest.raises(ValueError, match="p: rewards"):
        best_and_lower(prompt("p", *candidates, ("z", math.nan)))


def test_strength_is_the_quarter_of_the_gap() -> None:
    # quartiles of 1, 2, 3, 4, 5 are 2, 3, 4; a border belongs to the stronger quarter
    pairs = build_pairs(gaps(1, 5, 2, 4, 3), min_gap_quantile=0.0).pairs
    strengths = ["marginally", "significantly", "slightly", "significantly", ""]
    assert [pair.strength for pair in pairs] == [f"{s}_better" if s else "better" for s in strengths]
    assert [pair.gap for pair in pairs] == [1, 5, 2, 4, 3]


def test_least_gap_and_limit() -> None:
    result = build_pairs([*gaps(1, 5, 2, 4, 3), prompt("alone", ("a", 1.0))], min_gap_quantile=0.5, max_pairs=2)
    assert [pair.prompt_id for pair in result.pairs] == ["p1", "p3"]  # gaps 5 and 4; 3 passes the median but is third
    reasons = {drop.id: drop.reason for drop in result.dropped}
    assert list(reasons) == ["p0", "p2", "p4", "alone"]
    assert "under the least gap 3" in reasons["p0"]
    assert "2 widest" in reasons["p4"]
    assert result.metrics == {"num_in": 6, "num_pairs": 2, "least_gap": 3, "mean_gap": 4.5}
    assert build_pairs([], min_gap_quantile=0.5).pairs == ()
    assert build_pairs(gaps(1, 2), min_gap_quantile=0.0, max_pairs=0).pairs == ()


def test_the_least_gap_is_the_stricter_of_the_two() -> None:
    both = build_pairs(gaps(1, 5, 2, 4, 3), min_gap_quantile=0.5, min_gap=3.5)
    assert [pair.gap for pair in both.pairs] == [5, 4]
    assert both.metrics["least_gap"] == 3.5
    assert {drop.reason for drop in both.dropped} == {f"gap {gap} is under the least gap 3.5" for gap in (1, 2, 3)}
    assert [p.gap for p in build_pairs(gaps(1, 5, 3), min_gap_quantile=0.5, min_gap=1.0).pairs] == [5, 3]
    # Strengths come from all five gaps: dropping the narrow ones makes nobody weaker.
    assert {pair.strength for pair in both.pairs} == {"significantly_better"}
    nothing = build_pairs(gaps(1, 2), min_gap_quantile=0.0, min_gap=3.0)
    assert (nothing.pairs, nothing.metrics["mean_gap"]) == ((), 0.0)


def test_best_against_worst_takes_the_first_of_equals() -> None:
    (pair,) = build_pairs([prompt("p", rewards=(2.0, 0.0, 5.0, 0.0, 5.0))], min_gap_quantile=0.0).pairs
    assert (pair.chosen, pair.rejected, pair.gap) == (2, 1, 5.0)


def test_best_against_a_random_other_by_the_prompts_own_seed() -> None:
    rewards = (3.0, 9.0, 9.0, 1.0, 2.0)

    def rejected(seed: int, *, before: int = 0) -> int:
        prompts = [prompt(f"q{n}", rewards=(1.0, 0.0), seed=n) for n in range(before)]
        prompts.append(prompt("p", rewards=rewards, seed=seed))
        pair = build_pairs(prompts, pairing="best_random", min_gap_quantile=0.0).pairs[-1]
        assert (pair.chosen, pair.gap) == (1, 9.0 - rewards[pair.rejected])
        return pair.rejected

    drawn = [rejected(seed) for seed in range(300)]
    assert set(drawn) == {0, 3, 4}  # never itself, never its equal
    assert all(70 <= drawn.count(k) <= 130 for k in (0, 3, 4))
    assert drawn[:20] == [rejected(seed, before=3) for seed in range(20)]  # other prompts do not matter


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [
        (0.5, [(0, 2, 5.0), (1, 0, 4.0), (0, 1, 6.0)]),  # 6
        (1.0, [(0, 1, 10.0), (1, 0, 4.0), (0, 1, 6.0)]),  # the widest, 10: everybody's widest gap
        (0.0, [(0, 2, 5.0), (1, 0, 4.0), (0, 2, 5.5)]),  # 4
    ],
)
def test_best_against_the_gap_nearest_the_target(quantile: float, expected: list[tuple[int, int, float]]) -> None:
    """Widest gaps 10, 4 and 6, of which the target is a quantile."""
    prompts = [
        prompt("p", rewards=(10.0, 0.0, 5.0, 3.0)),  # gaps 10, 5, 7: to 6, 5 and 7 are as near, the first wins
        prompt("q", rewards=(1.0, 5.0, 4.0)),  # gaps 4, 1
        prompt("r", rewards=(6.0, 0.0, 0.5)),  # gaps 6, 5.5
    ]
    pairs = build_pairs(prompts, pairing="gap", target_gap_quantile=quantile, min_gap_quantile=0.0).pairs
    assert [(pair.chosen, pair.rejected, pair.gap) for pair in pairs] == expected


@pytest.mark.parametrize("pairing", ["best_worst", "best_random", "gap"])
def test_any_pairing_accounts_for_every_prompt_and_never_pairs_like_with_like(pairing: Pairing) -> None:
    draw = random.Random(pairing)
    for trial in range(60):
        of = {
            f"p{n}": prompt(
                f"p{n}",
                *(
                    (draw.choice(["a", " a", "b", "c", "", " "]), float(draw.randint(0, 3)), draw.random() < 0.3)
                    for _ in range(draw.randint(1, 6))
                ),
                seed=trial,
            )
            for n in range(draw.randint(0, 7))
        }
        limit = draw.choice([-1, 0, 2])
        quantile = draw.choice([0.0, 0.5])
        prompts = list(of.values())
        result = build_pairs(prompts, pairing=pairing, min_gap_quantile=quantile, min_gap=0.5, max_pairs=limit)
        assert sorted([pair.prompt_id for pair in result.pairs] + [drop.id for drop in result.dropped]) == sorted(of)
        assert limit < 0 or len(result.pairs) <= limit
        for pair in result.pairs:
            p = of[pair.prompt_id]
            assert p.texts[pair.chosen].strip() != p.texts[pair.rejected].strip() != ""
            assert not p.truncated[pair.chosen]
            assert not p.truncated[pair.rejected]
            assert p.rewards[pair.chosen] - p.rewards[pair.rejected] == pair.gap > 0
            rivals = [r for t, r, cut in zip(p.texts, p.rewards, p.truncated, strict=True) if t.strip() and not cut]
            assert p.rewards[pair.chosen] == max(rivals)
