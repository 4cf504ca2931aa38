"""On-policy pairs by hand: which two of a prompt's candidates, and which limit drops them."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from alignloop.sampling.pairs import (
    Pairing,
    PairLimits,
    PairsResult,
    ScoredCandidates,
    best_and_lower,
    not_widest,
    of_share,
)
from alignloop.sampling.pairs import build_pairs as pair_up


def build_pairs(
    prompts: list[ScoredCandidates],
    *,
    pairing: Pairing = "best_worst",
    target_gap_quantile: float = 0.5,
    pairs_per_prompt: int = 1,
    max_pairs: int = -1,
    **limits: Any,
) -> PairsResult:
    return pair_up(
        prompts,
        limits=PairLimits(**limits),
        pairing=pairing,
        target_gap_quantile=target_gap_quantile,
        pairs_per_prompt=pairs_per_prompt,
        max_pairs=max_pairs,
    )


def prompt(
    name: str,
    *candidates: tuple[str, float] | tuple[str, float, bool],
    rewards: tuple[float, ...] = (),
    num_tokens: tuple[int, ...] = (),
    seed: int = 0,
) -> ScoredCandidates:
    """Of (text, reward, whether it is truncated), or of rewards alone; one token each where none are named."""
    given = candidates or [(f"{name}{k}", reward) for k, reward in enumerate(rewards)]
    texts, scores = tuple(c[0] for c in given), tuple(c[1] for c in given)
    truncated = tuple(len(c) == 3 and bool(c[2]) for c in given)
    return ScoredCandidates(name, texts, scores, truncated, num_tokens or (1,) * len(given), seed=seed)


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
def test_best_and_what_may_be_rejected_for_it_or_why_there_is_none(candidates: list[Any], expected: object) -> None:
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
    reasons = {drop.prompt_id: drop.reason for drop in result.dropped}
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


@pytest.mark.parametrize("pairing", ["best_worst", "best_random", "gap", "best_mean_minus_2_sigma"])
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
        assert sorted(
            [pair.prompt_id for pair in result.pairs] + [drop.prompt_id for drop in result.dropped]
        ) == sorted(of)
        assert limit < 0 or len(result.pairs) <= limit
        for pair in result.pairs:
            p = of[pair.prompt_id]
            assert p.texts[pair.chosen].strip() != p.texts[pair.rejected].strip() != ""
            assert not p.truncated[pair.chosen]
            assert not p.truncated[pair.rejected]
            assert p.rewards[pair.chosen] - p.rewards[pair.rejected] == pair.gap > 0
            rivals = [r for t, r, cut in zip(p.texts, p.rewards, p.truncated, strict=True) if t.strip() and not cut]
            assert p.rewards[pair.chosen] == max(rivals)


def rip() -> list[ScoredCandidates]:
    """Gap, reward of the rejected, tokens of the rejected: (5, 0, 10), (1, 3, 2), (4, 2, 20), (2, 1, 30)."""
    of = ((5.0, 0.0, 10), (4.0, 3.0, 2), (6.0, 2.0, 20), (3.0, 1.0, 30))
    return [prompt(f"p{n}", rewards=two, num_tokens=(9, length)) for n, (*two, length) in enumerate(of)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # The median of the gaps 1, 2, 4, 5 is 3, of the rewards 1.5, of the lengths 2, 10, 20, 30 it is 15.
        ({"max_gap_quantile": 0.5}, {"p0": "max_gap", "p2": "max_gap"}),
        ({"min_rejected_reward_quantile": 0.5}, {"p0": "min_rejected_reward", "p3": "min_rejected_reward"}),
        ({"min_rejected_length_quantile": 0.5}, {"p0": "min_rejected_length", "p1": "min_rejected_length"}),
        ({"max_gap": 4.0}, {"p0": "max_gap"}),
        ({"min_rejected_reward": 2.0}, {"p0": "min_rejected_reward", "p3": "min_rejected_reward"}),
        ({"min_rejected_length": 20}, {"p0": "min_rejected_length", "p1": "min_rejected_length"}),
        # The stricter of a number and its quantile holds.
        ({"max_gap": 1.5, "max_gap_quantile": 0.5}, {"p0": "max_gap", "p2": "max_gap", "p3": "max_gap"}),
        (
            {"min_rejected_length": 25, "min_rejected_length_quantile": 0.5},
            dict.fromkeys(("p0", "p1", "p2"), "min_rejected_length"),
        ),
    ],
)
def test_each_limit_of_rip_by_itself(limits: dict[str, Any], expected: dict[str, str]) -> None:
    result = build_pairs(rip(), **limits)
    assert {drop.prompt_id: drop.rule for drop in result.dropped} == expected
    assert [pair.prompt_id for pair in result.pairs] == [f"p{n}" for n in range(4) if f"p{n}" not in expected]


def test_the_limits_of_rip_together_drop_a_pair_by_the_first_it_breaks() -> None:
    result = build_pairs(
        rip(), max_gap_quantile=0.75, min_rejected_reward_quantile=0.5, min_rejected_length_quantile=0.5
    )
    assert [pair.prompt_id for pair in result.pairs] == ["p2"]
    assert {drop.prompt_id: (drop.rule, drop.reason) for drop in result.dropped} == {
        "p0": ("max_gap", "gap 5 is over the widest gap 4.25"),  # a quarter of the way from 4 to 5
        "p1": ("min_rejected_length", "the rejected has 2 tokens, under the least 15"),
        "p3": ("min_rejected_reward", "the rejected has the reward 1, under the least 1.5"),
    }
    assert result.metrics == {
        "num_in": 4,
        "num_pairs": 1,
        "least_gap": 1,
        "mean_gap": 4,
        "widest_gap": 4.25,
        "least_rejected_reward": 1.5,
        "least_rejected_length": 15,
    }
    # What a limit has dropped is not among the widest of the rest.
    assert [pair.prompt_id for pair in build_pairs(rip(), max_gap=4.5, max_pairs=1).pairs] == ["p2"]


def test_the_rejected_nearest_two_standard_deviations_under_the_mean() -> None:
    """Of 14 rewards with mean -14 / 14 = -1 and variance 140 / 14 - 1 = 9: to -1 - 2 * 3 = -7 comes -6, and not -10."""
    rewards = (2.0, *(0.0,) * 11, -6.0, -10.0)
    (pair,) = build_pairs([prompt("p", rewards=rewards)], pairing="best_mean_minus_2_sigma").pairs
    assert (pair.chosen, pair.rejected, pair.gap) == (0, 12, 8.0)
    # Truncated candidates do not count: they would move mean and deviation (here to -10).
    cut = prompt("p", *((f"t{k}", reward) for k, reward in enumerate(rewards)), ("cut", -30.0, True))
    (pair,) = build_pairs([cut], pairing="best_mean_minus_2_sigma").pairs
    assert pair.rejected == 12
    # Of two, 4 and 0: 2 - 2 * 2 = -2 is nearest to the lower.
    (pair,) = build_pairs([prompt("q", rewards=(0.0, 4.0))], pairing="best_mean_minus_2_sigma").pairs
    assert (pair.chosen, pair.rejected) == (1, 0)


def test_more_pairs_of_a_prompt_go_on_with_what_is_left() -> None:
    five = prompt("p", rewards=(5.0, 1.0, 4.0, 2.0, 3.0))
    pairs = build_pairs([five], pairs_per_prompt=3).pairs
    # 3 is left alone. The quarters of the gaps 4 and 2 are 3.5, 3 and 2.5.
    assert [(p.chosen, p.rejected, p.gap, p.place, p.strength) for p in pairs] == [
        (0, 1, 4.0, 0, "significantly_better"),
        (2, 3, 2.0, 1, "marginally_better"),
    ]
    assert build_pairs([five]).pairs[0].place == 0
    result = build_pairs([five, prompt("q", rewards=(1.0,))], pairs_per_prompt=3, min_gap=3.0)
    assert [(p.prompt_id, p.place) for p in result.pairs] == [("p", 0)]
    assert [(d.prompt_id, d.rule, d.pair and d.pair.place) for d in result.dropped] == [
        ("p", "min_gap", 1),
        ("q", "pairs", None),
    ]


def test_no_text_stands_in_two_pairs_of_a_prompt() -> None:
    twice = prompt("p", ("a", 5.0), ("b", 1.0), ("a ", 4.5), (" b", 1.5), ("c", 3.0), ("d", 2.0))
    pairs = build_pairs([twice], pairs_per_prompt=9).pairs
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(0, 1), (4, 5)]


@pytest.mark.parametrize(
    ("num_on_policy", "num_preferences", "share", "expected"),
    [
        (30, 10, 0.5, (10, 10)),  # on-policy pairs give way
        (10, 40, 0.25, (10, 30)),  # 10 of 40 are a quarter
        (25, 30, 0.4, (20, 30)),  # 20 of 50
        (3, 2, 0.5, (2, 2)),
        (1, 100, 0.9, (1, 1)),  # at least one of each
        (100, 1, 0.1, (1, 1)),
        (5, 0, 0.5, (5, 0)),  # a side without pairs: the share gives way
        (0, 5, 0.5, (0, 5)),
    ],
)
def test_a_share_keeps_all_of_the_scarcer_side(
    num_on_policy: int, num_preferences: int, share: float, expected: tuple[int, int]
) -> None:
    assert of_share(num_on_policy, num_preferences, share=share) == expected


def test_which_gaps_are_not_among_the_widest() -> None:
    assert not_widest([1.0, 3.0, 3.0, 2.0], most=2) == [0, 3]
    assert not_widest([1.0, 1.0], most=1) == [1]  # of equals the first is in
    assert not_widest([1.0], most=-1) == []
