"""Reward that rises while a benchmark falls."""

from __future__ import annotations

from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.evaluation.measures.over_optimisation import (
    Change,
    flagged,
    flags_of,
    headline_metrics,
    over_optimised,
    unpaired_changes,
)
from alignloop.records import RoundRow


def row(
    number: int, acc: float, *, gain: float = 0.0, stderr: float = 0.1, since_base: float | None = None
) -> RoundRow:
    measures = {"reward/gain_over_previous": gain, "reward/gain_over_previous_stderr": stderr}
    if since_base is not None:
        measures |= {"reward/gain_over_base": since_base, "reward/gain_over_base_stderr": stderr}
    return RoundRow(
        round=number,
        policy=f"round-{number:02d}",
        metrics={"ifeval/mean": acc, "mmlu/acc": 0.5, "ifeval/type/no_comma": 0.1 * number},
        stderr={"ifeval/mean": 0.02, "mmlu/acc": 0.02},
        reward_model={},
        rows={},
        seconds={},
        measures=measures if number else {},
    )


def test_reward_up_and_benchmark_down_is_flagged() -> None:
    """0.6 -> 0.5 with errors of 0.02: -0.1 +- 1.96 * 0.0283 = (-0.155, -0.045)."""
    (flag,) = flags_of([row(0, 0.4), row(1, 0.6), row(2, 0.5, gain=0.5)])
    assert "since round 1" in flag
    assert "rose by 0.5 (0.304 to 0.696)" in flag
    assert "ifeval/mean fell by 0.100 (0.045 to 0.155)" in flag
    assert "mmlu" not in flag


def test_either_alone_is_not() -> None:
    assert flags_of([row(0, 0.4), row(1, 0.6), row(2, 0.6, gain=0.5)]) == []
    assert flags_of([row(0, 0.4), row(1, 0.6), row(2, 0.5, gain=-0.5)]) == []


def test_what_errors_explain_is_not() -> None:
    """A gain of 0.19 with an error of 0.1, a fall of 0.05 with one of 0.0283: both within 1.96 errors."""
    assert flags_of([row(0, 0.4), row(1, 0.6), row(2, 0.5, gain=0.19)]) == []
    assert flags_of([row(0, 0.4), row(1, 0.6), row(2, 0.55, gain=0.5)]) == []


def test_a_slow_fall_is_seen_against_the_base() -> None:
    (flag,) = flags_of([row(0, 0.6), row(1, 0.55), row(2, 0.5, gain=0.1, since_base=0.5)])
    assert "since round 0" in flag


def test_the_first_round_is_compared_once_and_the_base_not_at_all() -> None:
    assert flags_of([row(0, 0.6)]) == []
    (flag,) = flags_of([row(0, 0.6), row(1, 0.4, gain=0.5, since_base=0.5)])
    assert "since round 0" in flag


def test_paired_differences_decide_where_there_are_any() -> None:
    """The same fall, but question by question: clear where errors taken for independent are not."""
    rows = [row(0, 0.4), row(1, 0.6), row(2, 0.56, gain=0.5)]
    assert flags_of(rows) == []
    paired = [Change("ifeval/mean", -0.04, -0.06, -0.02)]
    assert len(flags_of(rows, since_previous=paired)) == 1
    # A part of a task is one of many: it is not looked at unless it is named.
    part = [Change("ifeval/type/no_comma", -0.4, -0.6, -0.2)]
    assert flags_of(rows, since_previous=part) == []
    assert len(flags_of(rows, since_previous=part, metrics=["ifeval/type/no_comma"])) == 1


def test_a_run_s_differences_are_those_of_the_row() -> None:
    fall = Difference(key="ifeval/mean", before=0.6, after=0.56, difference=-0.04, low=-0.06, high=-0.02, num_pairs=9)
    unknown = fall.model_copy(update={"low": None, "high": None})
    rows = [row(0, 0.4), row(1, 0.6)]
    last = row(2, 0.56, gain=0.5)
    assert len(flagged(last, rows, differences=[RoundDifferences(round=2, against=1, differences=[fall])]).flags) == 1
    assert flagged(last, rows, differences=[RoundDifferences(round=1, against=0, differences=[fall])]).flags == []
    assert flagged(last, rows, differences=[RoundDifferences(round=2, against=1, differences=[unknown])]).flags == []


def test_one_prompt_alone_flags_nothing() -> None:
    assert over_optimised(5.0, stderr=None, changes=[Change("a/acc", -0.5, -0.6, -0.4)], since="round 1") is None


def test_unpaired_changes_want_errors_on_both_sides() -> None:
    """ifeval/type has none."""
    assert [change.key for change in unpaired_changes(row(1, 0.6), row(2, 0.5))] == ["ifeval/mean", "mmlu/acc"]


def test_one_figure_stands_for_a_task() -> None:
    names = ["ifeval/mean", "ifeval/prompt_level_strict_acc", "mmlu/acc", "mmlu/acc_norm", "mmlu_law/acc", "qa/em"]
    assert headline_metrics(names) == ["ifeval/mean", "mmlu/acc"]
