"""Where a model is liked more, or less, than an earlier one, and a benchmark clearly says the opposite.

    measures of a round + its paired differences --disagreements--> a sentence for each earlier model --> flags

A reward that is climbed at the cost of what it stands for (over-optimisation) is one direction; a model that is liked
less and does better is the other: then those who like it do not like what the benchmark asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from alignloop.evaluation.comparing import Difference, RoundDifferences
from alignloop.evaluation.measures import STDERR, TIE
from alignloop.evaluation.report import standing_alone
from alignloop.evaluation.standard_error import NORMAL_95
from alignloop.records import RoundRow

HEADLINES = ("mean", "acc", "exact_match")
"""Names of a task's figure that stands for it, the first that it has."""
JUDGE = "judge_win_rate/"
NEUTRAL = {"reward/gain_over_": 0.0, "win_rate/": TIE, JUDGE: TIE}
"""What a measure's name begins with, before `previous` or `base` -> its value where neither model is liked more."""


class Disagreement(NamedTuple):
    """`measures` are those that say the opposite of the benchmarks; `sentence` has all figures with their intervals."""

    measures: tuple[str, ...]
    sentence: str


def flagged(row: RoundRow, *, differences: Sequence[RoundDifferences], groups: Mapping[str, Sequence[str]]) -> RoundRow:
    """The row with its flags: what `disagreements` finds."""
    found = disagreements(row, differences=differences, groups=groups)
    return row.model_copy(update={"flags": [each.sentence for each in found]})


def disagreements(
    row: RoundRow, *, differences: Sequence[RoundDifferences], groups: Mapping[str, Sequence[str]]
) -> list[Disagreement]:
    """Of a round against the last one that was asked before it and against the base: rewards and win rates on one side
    of neutral beyond their error, while a benchmark's paired difference is on the other beyond its own.

    Only figures that stand for a task count: its parts are many, and one of many falls by chance. Both models' rewards
    come from one reward model, the round's own, on answers to the same prompts: those of two rounds' reward models are
    on two scales and are never compared. `groups` as in the protocol.
    """
    own = {entry.against: entry.differences for entry in differences if entry.round == row.round}
    names = headline_metrics(row.metrics, groups=groups)
    earlier = {"previous": max(own, default=0), "base": 0}
    if earlier["previous"] == 0:  # the base is the last model that was asked: it is compared once
        del earlier["base"]
    found = []
    for rival, since in earlier.items():
        changes = [change for change in own.get(since, []) if change.key in names and change.is_clear]
        liked = _liked(row.measures, rival)
        for is_up in (True, False):
            said = {name: text for name, (up, text) in liked.items() if up == is_up}
            opposite = [_moved(change) for change in changes if (change.difference > 0) != is_up]
            if said and opposite:
                climbed = is_up and not all(name.startswith(JUDGE) for name in said)
                what = "over-optimisation" if climbed else "disagreement"
                sentence = f"{what}: since round {since} {' and '.join(said.values())} while {', '.join(opposite)}"
                found.append(Disagreement(tuple(said), sentence))
    return found


def _liked(measures: Mapping[str, float], rival: str) -> dict[str, tuple[bool, str]]:
    """Measures that are not neutral beyond their error: name -> whether the model is liked more, and in words."""
    found = {}
    for start, neutral in NEUTRAL.items():
        name = start + rival
        value, stderr = measures.get(name), measures.get(name + STDERR)
        if value is None or stderr is None:  # one prompt alone tells no error
            continue
        half = NORMAL_95 * stderr
        if abs(value - neutral) > half:
            found[name] = value > neutral, _words(name, value, half)
    return found


def _words(name: str, value: float, half: float) -> str:
    if not name.startswith("reward/"):
        by = "the judge" if name.startswith(JUDGE) else "reward"
        return f"the win rate by {by} is {value:.3g} ({value - half:.3g} to {value + half:.3g})"
    size = abs(value)
    return f"the reward {'rose' if value > 0 else 'fell'} by {size:.3g} ({size - half:.3g} to {size + half:.3g})"


def _moved(change: Difference) -> str:
    assert change.low is not None, "a clear change has an interval"
    assert change.high is not None, "a clear change has an interval"
    size, low, high = abs(change.difference), *sorted((abs(change.low), abs(change.high)))
    return f"{change.key} {'rose' if change.difference > 0 else 'fell'} by {size:.3f} ({low:.3f} to {high:.3f})"


def headline_metrics(names: Iterable[str], *, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Of `task/metric` names the one that stands for each task, tasks of a group (`mmlu_law` of `mmlu`) aside; `groups`
    as in the protocol."""
    found: dict[str, set[str]] = {}
    for name in names:
        task, _, metric = name.partition("/")
        found.setdefault(task, set()).add(metric)
    tasks = standing_alone(found, groups)
    chosen = [(task, next((name for name in HEADLINES if name in found[task]), None)) for task in tasks]
    return [f"{task}/{metric}" for task, metric in chosen if metric is not None]
