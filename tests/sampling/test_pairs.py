from __future__ import annotations

import math
import random

import pytest

from alignloop.sampling.pairs import Pairing, ScoredCandidates, best_and_lower, build_pairs


def prompt(name: str, *candidates: tuple[str, float] | tuple[str, float, bool]) -> ScoredCandidates:
    return ScoredCandidates(
        name,
        tuple(c[0] for c in candidates),
        tuple(c[1] for c in candidates),
        tuple(len(c) == 3 and bool(c[2]) for c in candidates),
    )


def test_best_and_what_may_be_rejected_for_it() -> None:
    assert best_and_lower(prompt("p", ("a", 1.0), ("b", 3.0), ("c", -1.0))) == (1, (0, 2))
    assert best_and_lower(prompt("p", ("a", 1.0), ("b", 3.0, True), ("c", -1.0, True), ("d", 0.0))) == (0, (3,))
    # the same text scored twice never pairs with itself, whatever float noise says
    assert best_and_lower(prompt("p", ("a", 1.0), (" a\n", -1.0), ("b", 0.0))) == (0, (2,))
    # ties with the best are no pair, though their texts differ; nor are empty texts
    assert best_and_lower(prompt("p", ("a", 1.0), ("b", 1.0), ("", -3.0), ("c", 0.0))) == (0, (3,))


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ((("a", 1.0),), "no second candidate"),
        ((("a", 1.0), ("a ", 0.0)), "no second candidate"),
        ((("a", 1.0, True), ("b", 0.0, True)), "no candidate is finished"),
        ((("a", 1.0), ("b", 1.0)), "no gap"),
        (((" ", 1.0),), "no candidate is finished"),
    ],
)
def test_prompts_without_a_pair(candidates: tuple[tuple[str, float], ...], reason: str) -> None:
    answer = best_and_lower(prompt("p", *candidates))
    assert isinstance(answer, str)
    assert reason in answer


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="p: rewards"):
        best_and_lower(prompt("p", ("a", math.nan), ("b", 0.0)))


def gaps(*values: float) -> list[ScoredCandidates]:
    return [prompt(f"p{n}", ("good", gap), ("bad", 0.0)) for n, gap in enumerate(values)]


def test_strength_is_the_quarter_of_the_gap() -> None:
    # quartiles of 1, 2, 3, 4, 5 are 2, 3, 4; a border belongs to the stronger quarter
    pairs = build_pairs(gaps(1, 5, 2, 4, 3), min_gap_quantile=0.0).pairs
    assert [pair.strength for pair in pairs] == [
        "marginally_better",
        "significantly_better",
        "slightly_better",
        "significantly_better",
        "better",
    ]
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


def three(name: str, rewards: tuple[float, ...], *, seed: int = 0) -> ScoredCandidates:
    texts = tuple(f"{name}{k}" for k in range(len(rewards)))
    return ScoredCandidates(name, texts, rewards, (False,) * len(rewards), seed=seed)


def test_best_against_worst_takes_the_first_of_equals() -> None:
    (pair,) = build_pairs([three("p", (2.0, 0.0, 5.0, 0.0, 5.0))], min_gap_quantile=0.0).pairs
    assert (pair.chosen, pair.rejected, pair.gap) == (2, 1, 5.0)


def test_best_against_a_random_other_by_the_prompts_own_seed() -> None:
    def rejected(seed: int, *, before: int = 0) -> int:
        prompts = [three(f"q{n}", (1.0, 0.0), seed=n) for n in range(before)]
        prompts.append(three("p", (3.0, 9.0, 9.0, 1.0, 2.0), seed=seed))
        pair = build_pairs(prompts, pairing="best_random", min_gap_quantile=0.0).pairs[-1]
        assert pair.chosen == 1
        assert pair.gap == 9.0 - (3.0, 9.0, 9.0, 1.0, 2.0)[pair.rejected]
        return pair.rejected

    drawn = [rejected(seed) for seed in range(300)]
    assert set(drawn) == {0, 3, 4}  # never itself, never its equal
    assert all(70 <= drawn.count(k) <= 130 for k in (0, 3, 4))
    assert drawn[:20] == [rejected(seed, before=3) for seed in range(20)]  # other prompts do not matter


def test_best_against_the_gap_nearest_the_target() -> None:
    # Widest gaps 10, 4 and 6: their median is 6.
    prompts = [
        three("p", (10.0, 0.0, 5.0, 3.0)),  # gaps 10, 5, 7: 5 and 7 are as near, the first wins
        three("q", (1.0, 5.0, 4.0)),  # gaps 4, 1
        three("r", (6.0, 0.0, 0.5)),  # gaps 6, 5.5
    ]
    pairs = build_pairs(prompts, pairing="gap", target_gap_quantile=0.5, min_gap_quantile=0.0).pairs
    assert [(pair.chosen, pair.rejected, pair.gap) for pair in pairs] == [(0, 2, 5.0), (1, 0, 4.0), (0, 1, 6.0)]
    # The quantile 1 is the widest, 10: everybody's widest gap. The quantile 0 is 4.
    widest = build_pairs(prompts, pairing="gap", target_gap_quantile=1.0, min_gap_quantile=0.0).pairs
    assert [pair.gap for pair in widest] == [10.0, 4.0, 6.0]
    narrow = build_pairs(prompts, pairing="gap", target_gap_quantile=0.0, min_gap_quantile=0.0).pairs
    assert [pair.gap for pair in narrow] == [5.0, 4.0, 5.5]


def test_the_least_gap_is_the_stricter_of_the_two() -> None:
    both = build_pairs(gaps(1, 5, 2, 4, 3), min_gap_quantile=0.5, min_gap=3.5)
    assert [pair.gap for pair in both.pairs] == [5, 4]
    assert both.metrics["least_gap"] == 3.5
    assert {drop.reason for drop in both.dropped} == {f"gap {gap} is under the least gap 3.5" for gap in (1, 2, 3)}
    assert [p.gap for p in build_pairs(gaps(1, 5, 3), min_gap_quantile=0.5, min_gap=1.0).pairs] == [5, 3]
    # Strengths come from all five gaps: dropping the narrow ones makes nobody weaker.
    assert [pair.strength for pair in both.pairs] == ["significantly_better", "significantly_better"]
    nothing = build_pairs(gaps(1, 2), min_gap_quantile=0.0, min_gap=3.0)
    assert (nothing.pairs, nothing.metrics["mean_gap"]) == ((), 0.0)


@pytest.mark.parametrize("pairing", ["best_worst", "best_random", "gap"])
def test_any_pairing_accounts_for_every_prompt_and_never_pairs_like_with_like(pairing: Pairing) -> None:
    draw = random.Random(pairing)
    for trial in range(60):
        prompts = []
        for n in range(draw.randint(0, 7)):
            num = draw.randint(1, 6)
            prompts.append(
                ScoredCandidates(
                    f"p{n}",
                    tuple(draw.choice(["a", " a", "b", "c", "", " "]) for _ in range(num)),
                    tuple(float(draw.randint(0, 3)) for _ in range(num)),
                    tuple(draw.random() < 0.3 for _ in range(num)),
                    seed=trial,
                )
            )
        limit = draw.choice([-1, 0, 2])
        result = build_pairs(
            prompts, pairing=pairing, min_gap_quantile=draw.choice([0.0, 0.5]), min_gap=0.5, max_pairs=limit
        )
        of = {prompt.prompt_id: prompt for prompt in prompts}
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
