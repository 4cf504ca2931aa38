"""Rewards and win rates that say the opposite of a benchmark, worked by hand."""

from __future__ import annotations

from functools import partial

import pytest

from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.evaluation.disagreement import disagreements, flagged, headline_metrics
from alignloop.records import RoundRow


def row(number: int, *, gain: float = 0.0, since_base: float | None = None, **win_rates: float) -> RoundRow:
    """Gains known to 0.1, win rates (`win_rate/base` as `win_rate__base`) to 0.05: one standard error."""
    measures = {"reward/gain_over_previous": gain, "reward/gain_over_previous_stderr": 0.1}
    if since_base is not None:
        measures |= {"reward/gain_over_base": since_base, "reward/gain_over_base_stderr": 0.1}
    for name, value in win_rates.items():
        measures |= {name.replace("__", "/"): value, f"{name.replace('__', '/')}_stderr": 0.05}
    return RoundRow(
        round=number,
        policy=f"round-{number:02d}",
        metrics={"ifeval/mean": 0.5, "mmlu/acc": 0.5, "ifeval/type/no_comma": 0.1 * number},
        stderr={},
        reward_model={},
        rows={},
        seconds={},
        measures=measures,
    )


def changes(number: int, *by: tuple[int, str, float]) -> list[RoundDifferences]:
    """Of a round: (against, key, difference), known to 0.05 on either side."""
    return [
        RoundDifferences(
            round=number,
            against=against,
            differences=[
                Difference(
                    key=key, before=0.6, after=0.6 + by, difference=by, low=by - 0.05, high=by + 0.05, num_pairs=9
                )
            ],
        )
        for against, key, by in by
    ]


_flagged = partial(flagged, groups={})


def test_reward_up_and_benchmark_down_is_over_optimisation() -> None:
    (flag,) = _flagged(row(2, gain=0.5), differences=changes(2, (1, "ifeval/mean", -0.1))).flags
    assert flag == (
        "over-optimisation: since round 1 the reward rose by 0.5 (0.304 to 0.696) while ifeval/mean fell by 0.100 "
        "(0.050 to 0.150)"
    )
    since_both = changes(2, (1, "ifeval/mean", 0.0), (0, "ifeval/mean", -0.1))
    slow = _flagged(row(2, gain=0.1, since_base=0.5), differences=since_both)
    assert [flag[:36] for flag in slow.flags] == ["over-optimisation: since round 0 the"]
    first = _flagged(row(1, gain=0.5, since_base=0.5), differences=changes(1, (0, "ifeval/mean", -0.2)))
    assert len(first.flags) == 1  # the last round is the base: it is compared once


def test_liked_less_and_doing_better_is_said_too_and_all_that_say_it_stand_in_one_sentence() -> None:
    """Win rates are held against 0.5: 0.35 + 1.96 * 0.05 is below it; the judge's 0.58 is within its error."""
    liked_less = row(2, gain=-0.5, win_rate__previous=0.35, judge_win_rate__previous=0.58)
    (found,) = disagreements(liked_less, differences=changes(2, (1, "ifeval/mean", 0.1)), groups={})
    assert found.measures == ("reward/gain_over_previous", "win_rate/previous")
    assert found.sentence == (
        "disagreement: since round 1 the reward fell by 0.5 (0.304 to 0.696) and the win rate by reward is 0.35 "
        "(0.252 to 0.448) while ifeval/mean rose by 0.100 (0.050 to 0.150)"
    )


def test_a_judge_alone_is_not_over_optimised() -> None:
    liked = row(2, judge_win_rate__base=0.8)
    since = changes(2, (1, "ifeval/mean", 0.0), (0, "ifeval/mean", -0.1))
    (found,) = disagreements(liked, differences=since, groups={})
    assert found.measures == ("judge_win_rate/base",)
    assert found.sentence.startswith("disagreement: since round 0 the win rate by the judge is 0.8 (0.702 to 0.898) ")


def test_the_last_round_that_was_asked_is_the_previous_one() -> None:
    """Of a semi-online run: round 10 stands against round 5, and the measures say `previous` of it."""
    since = changes(10, (5, "ifeval/mean", -0.1), (0, "ifeval/mean", 0.0))
    (found,) = disagreements(row(10, gain=0.5), differences=since, groups={})
    assert found.sentence.startswith("over-optimisation: since round 5 the reward rose")


def test_measures_may_say_both_and_each_is_held_against_what_says_the_opposite() -> None:
    split = row(2, gain=0.5, judge_win_rate__previous=0.3)
    fell, rose = changes(2, (1, "ifeval/mean", -0.1)), changes(2, (1, "mmlu/acc", 0.1))
    both = fell[0].model_copy(update={"differences": [*fell[0].differences, *rose[0].differences]})
    over, under = _flagged(split, differences=[both]).flags
    assert over.startswith("over-optimisation: since round 1 the reward rose by 0.5 ")
    assert over.endswith("while ifeval/mean fell by 0.100 (0.050 to 0.150)")
    assert under.startswith("disagreement: since round 1 the win rate by the judge is 0.3 ")
    assert under.endswith("while mmlu/acc rose by 0.100 (0.050 to 0.150)")


@pytest.mark.parametrize(
    ("gain", "change"),
    [
        (0.5, (2, 1, "ifeval/mean", 0.1)),  # both rose
        (-0.5, (2, 1, "ifeval/mean", -0.1)),  # both fell
        (0.19, (2, 1, "ifeval/mean", -0.1)),  # the reward rose within 1.96 errors of 0.1
        (-0.19, (2, 1, "ifeval/mean", 0.1)),
        (0.5, (2, 1, "ifeval/mean", -0.04)),  # what fell did so within its error
        (0.5, (2, 1, "ifeval/type/no_comma", -0.4)),  # a part of a task is one of many
        (0.5, (1, 0, "ifeval/mean", -0.1)),  # of another round
    ],
)
def test_agreement_and_what_errors_explain_are_not_flagged(gain: float, change: tuple[int, int, str, float]) -> None:
    number, *by = change
    found = _flagged(row(2, gain=gain, win_rate__previous=0.5), differences=changes(number, tuple(by)))  # type: ignore[arg-type]
    assert found.flags == []


def test_without_an_error_or_an_interval_nothing_is_flagged() -> None:
    falls = changes(2, (1, "ifeval/mean", -0.1))
    alone = row(2, gain=5.0)
    del alone.measures["reward/gain_over_previous_stderr"]
    assert _flagged(alone, differences=falls).flags == []
    unknown = falls[0].differences[0].model_copy(update={"low": None, "high": None})
    falls = [falls[0].model_copy(update={"differences": [unknown]})]
    assert _flagged(row(2, gain=0.5), differences=falls).flags == []


def test_one_figure_stands_for_a_task() -> None:
    names = ["ifeval/mean", "ifeval/prompt_level_strict_acc", "mmlu/acc", "mmlu/acc_norm", "mmlu_law/acc", "qa/em"]
    assert headline_metrics(names, groups={"mmlu": ["mmlu_law"]}) == ["ifeval/mean", "mmlu/acc"]


def test_a_group_is_known_by_the_protocol_and_not_by_a_name_s_beginning() -> None:
    names = ["ifeval/mean", "ifeval_dev/mean", "all/acc", "half/acc", "half_law/acc", "sums/acc"]
    groups = {"all": ["half_law", "sums"], "half": ["half_law"], "tag": ["ifeval", "ifeval_dev"]}
    # `tag` reports nothing by itself; `half` and its task are in `all`.
    assert headline_metrics(names, groups=groups) == ["ifeval/mean", "ifeval_dev/mean", "all/acc"]
    assert headline_metrics(names[3:5], groups=groups) == ["half/acc"]
