"""Gates stand above rewards: what is picked, paired and counted as passing, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignloop.sampling.best_of_k import eligible, pass_rate, pick_best, pick_random
from alignloop.sampling.pairs import Pairing, PairLimits, PairsResult, ScoredCandidates
from alignloop.sampling.pairs import build_pairs as pair_up

ENDED: dict[str, list[bool]] = {"truncated": [False] * 4, "empty": [False] * 4}


def scored(*rewards: float, failed: tuple[int, ...], name: str = "p") -> ScoredCandidates:
    texts = tuple(f"text {k}" for k in range(len(rewards)))
    return ScoredCandidates(name, texts, rewards, (False,) * len(rewards), (1,) * len(rewards), failed=failed)


def build_pairs(
    prompts: Sequence[ScoredCandidates],
    *,
    min_gap_quantile: float,
    max_gap: float = math.inf,
    pairing: Pairing = "best_worst",
    max_pairs: int = -1,
    pairs_per_prompt: int = 1,
) -> PairsResult:
    limits = PairLimits(min_gap_quantile=min_gap_quantile, max_gap=max_gap)
    return pair_up(prompts, limits=limits, pairing=pairing, max_pairs=max_pairs, pairs_per_prompt=pairs_per_prompt)


def test_the_reward_decides_among_those_that_pass() -> None:
    rewards = [9.0, 2.0, 3.0, 8.0]
    assert eligible(**ENDED, failed=[1, 0, 0, 2]) == [1, 2]
    assert pick_best(rewards, **ENDED, failed=[1, 0, 0, 2]) == 2
    assert {pick_random(**ENDED, failed=[1, 0, 0, 2], seed=seed) for seed in range(20)} == {1, 2}
    # Where none passes, those that fail the fewest; a finished one that fails wins over one that was cut.
    assert pick_best(rewards, **ENDED, failed=[2, 1, 2, 1]) == 3
    assert pick_best(rewards, truncated=[False, True, True, True], empty=[False] * 4, failed=[1, 0, 0, 0]) == 0
    # Nothing fails: as without gates.
    assert pick_best(rewards, **ENDED, failed=[0] * 4) == pick_best(rewards, **ENDED) == 0


def test_what_fails_a_gate_does_not_pass_by_its_reward() -> None:
    assert pass_rate([9.0, 2.0, 3.0, 8.0], threshold=3.0, failed=[1, 0, 0, 0]) == 0.5


def test_a_pair_that_a_gate_tells_apart_has_no_gap_and_is_never_too_narrow() -> None:
    """The rejected one may have the higher reward. Of the other two pairs, gaps 1 and 3, the median drops the first."""
    gated = scored(1.0, 5.0, 0.5, failed=(0, 1, 0), name="gated")
    narrow, wide = scored(2.0, 1.0, failed=(0, 0), name="narrow"), scored(4.0, 1.0, failed=(0, 0), name="wide")
    made = build_pairs([gated, narrow, wide], min_gap_quantile=0.5)
    found = [(pair.prompt_id, pair.chosen, pair.rejected, pair.gap, pair.strength) for pair in made.pairs]
    assert found == [("gated", 0, 1, None, "significantly_better"), ("wide", 0, 1, 3.0, "significantly_better")]
    assert [(row.prompt_id, row.reason) for row in made.dropped] == [("narrow", "gap 1 is under the least gap 2")]
    assert made.metrics == {"num_in": 3.0, "num_pairs": 2.0, "least_gap": 2.0, "mean_gap": 3.0}
    # It counts as the widest; and where gates tell all pairs apart, there is no gap to take a quantile of.
    (kept,) = build_pairs([wide, gated], min_gap_quantile=0.0, max_pairs=1).pairs
    assert kept.prompt_id == "gated"
    alone = build_pairs([gated, scored(1.0, 2.0, failed=(0, 1), name="second")], min_gap_quantile=0.5, max_pairs=1)
    assert alone.metrics == {"num_in": 2.0, "num_pairs": 1.0, "least_gap": 0.0, "mean_gap": 0.0}
    assert alone.dropped[0].reason == "the pair that a gate tells apart is not among the 1 widest"


def test_the_worst_fails_the_most_gates_then_has_the_lowest_reward() -> None:
    (pair,) = build_pairs([scored(3.0, -9.0, 8.0, 7.0, failed=(0, 0, 2, 2))], min_gap_quantile=0.0).pairs
    assert (pair.chosen, pair.rejected) == (0, 3)


def test_the_other_pairings_reach_what_fails() -> None:
    prompt = scored(3.0, 5.0, 2.0, failed=(0, 1, 0))
    (by_gap,) = build_pairs([prompt], min_gap_quantile=0.0, pairing="gap").pairs
    assert (by_gap.chosen, by_gap.rejected, by_gap.gap) == (0, 2, 1.0)  # the widest reward gap is 3 - 2
    (random_one,) = build_pairs([scored(3.0, 5.0, failed=(0, 1))], min_gap_quantile=0.0, pairing="best_random").pairs
    assert (random_one.rejected, random_one.gap) == (1, None)


def test_there_is_no_pair_where_no_candidate_passes() -> None:
    made = build_pairs([scored(3.0, 1.0, failed=(1, 2))], min_gap_quantile=0.0)
    assert (made.pairs, made.dropped[0].reason) == ((), "no candidate passes every gate: the best fails 1")


def test_a_pair_that_a_gate_tells_apart_is_never_too_wide_and_the_second_best_must_pass_too() -> None:
    gated = scored(9.0, 1.0, failed=(0, 1), name="gated")
    made = build_pairs([gated, scored(4.0, 1.0, failed=(0, 0))], min_gap_quantile=0.0, max_gap=2.0)
    assert [pair.prompt_id for pair in made.pairs] == ["gated"]
    assert [(row.prompt_id, row.rule) for row in made.dropped] == [("p", "max_gap")]
    # Of 4, 3 and the failing 2, 1 the best goes with the last; then 3 with 2; of 5, 4, 3 none but the first passes.
    two = build_pairs([scored(4.0, 3.0, 2.0, 1.0, failed=(0, 0, 1, 1))], min_gap_quantile=0.0, pairs_per_prompt=2)
    assert [(pair.chosen, pair.rejected) for pair in two.pairs] == [(0, 3), (1, 2)]
    one = build_pairs([scored(5.0, 4.0, 3.0, 2.0, failed=(0, 1, 1, 1))], min_gap_quantile=0.0, pairs_per_prompt=2)
    assert [(pair.chosen, pair.rejected) for pair in one.pairs] == [(0, 3)]
