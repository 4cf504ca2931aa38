from __future__ import annotations

import math

import pytest

from alignloop.selection.pairs import ScoredCandidates, best_and_worst, build_pairs


def prompt(name: str, *candidates: tuple[str, float] | tuple[str, float, bool]) -> ScoredCandidates:
    return ScoredCandidates(
        name,
        tuple(c[0] for c in candidates),
        tuple(c[1] for c in candidates),
        tuple(len(c) == 3 and bool(c[2]) for c in candidates),
    )


def test_best_and_worst() -> None:
    assert best_and_worst(prompt("p", ("a", 1.0), ("b", 3.0), ("c", -1.0))) == (1, 2)
    assert best_and_worst(prompt("p", ("a", 1.0), ("b", 3.0, True), ("c", -1.0, True), ("d", 0.0))) == (0, 3)
    cut = prompt("p", ("a", 1.0), ("c", -1.0, True), ("d", 0.0))
    assert best_and_worst(cut, allow_truncated_rejected=True) == (0, 1)
    # the same text scored twice never pairs with itself, whatever float noise says
    assert best_and_worst(prompt("p", ("a", 1.0), (" a\n", -1.0), ("b", 0.0))) == (0, 2)


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
    answer = best_and_worst(prompt("p", *candidates))
    assert isinstance(answer, str)
    assert reason in answer


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="p: rewards"):
        best_and_worst(prompt("p", ("a", math.nan), ("b", 0.0)))


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
