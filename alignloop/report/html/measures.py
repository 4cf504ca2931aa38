"""What the benchmarks do not show: rewards, win rates, divergence, endings, lengths, and the reward model itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.report.html import elements
from alignloop.report.html.climb import BARS, MOST_COLUMNS, evenly
from alignloop.report.html.elements import MISSING, Cell, Table, count, percent, with_error
from alignloop.report.html.facts import STDERR, RoundFacts, RunFacts
from alignloop.report.html.series import line, measure, metric, present, table_of
from alignloop.report.plots import charts

MOST_OTHERS, MOST_ROWS = 8, 200
"""Measures that no group knows: so many get a chart, so many stand in the table."""


@dataclass(frozen=True)
class Group:
    """Measures that stand in one chart: name in the chart -> key, or keys the first of which is there."""

    title: str
    keys: dict[str, tuple[str, ...]]
    y_title: str = ""
    is_share: bool = False
    is_signed: bool = False
    """A share that may be below 0."""
    note: str = ""


GROUPS = (
    Group(
        "Reward model: right on held-out preferences",
        {"accuracy": ("heldout/accuracy", "heldout_accuracy")},
        "%",
        is_share=True,
        note="Share of held-out preferences in which the chosen completion has the higher reward; 50 % is chance.",
    ),
    Group(
        "Reward model: accuracy by strength",
        {
            "significant": ("heldout/accuracy/significantly_better",),
            "better": ("heldout/accuracy/better",),
            "slight": ("heldout/accuracy/slightly_better",),
            "marginal": ("heldout/accuracy/marginally_better",),
        },
        "%",
        is_share=True,
        note="Of held-out preferences, by how much better people found the chosen one.",
    ),
    Group(
        "Reward model: calibration",
        {"error": ("heldout/calibration_error",), "overconfidence": ("heldout/overconfidence",)},
        "points",
        is_share=True,
        is_signed=True,
        note="How far its certainty is from how often it is right; 0 is calibrated.",
    ),
    Group(
        "Rewards by the round's own reward model",
        {
            "best of K": ("reward/best_of_k", "mean_reward_best"),
            "random pick": ("reward/random", "mean_reward_random"),
            "new policy": ("reward/policy_heldout",),
        },
        "reward",
        note="Compare within a round, not between rounds: each has a reward model of its own.",
    ),
    Group(
        "Rewards by the first round's reward model",
        {
            "best of K": ("first_reward/best_of_k",),
            "random pick": ("first_reward/random",),
            "new policy": ("first_reward/policy_heldout",),
        },
        "reward",
        note="One scale for all rounds. K and the picks are the round's own.",
    ),
    Group(
        "Reward gained on the same prompts",
        {"over the last": ("reward/gain_over_previous",), "over the base": ("reward/gain_over_base",)},
        "reward",
        note="By the round's own reward model, on the same held-out prompts.",
    ),
    Group(
        "Win rate of the round's model, by reward",
        {"over the last": ("win_rate/previous",), "over the base": ("win_rate/base",)},
        "%",
        is_share=True,
        note="Ties count half; 50 % is as good as the other.",
    ),
    Group(
        "Win rate of the round's model, by the judge",
        {
            "over the last": ("judge_win_rate/previous",),
            "over the base": ("judge_win_rate/base",),
        },
        "%",
        is_share=True,
        note="Ties count half; 50 % is as good as the other.",
    ),
    Group(
        "Log-probability of chosen completions",
        {"reference": ("chosen_logprob/reference",), "policy": ("chosen_logprob/policy",)},
        "nats",
        note="Of held-out preferences, by the DPO reference and by the round's policy.",
    ),
    Group("Drift of the chosen log-probability", {"drift": ("chosen_logprob/drift",)}, "nats"),
    Group(
        "Distance from the base (KL)",
        {"k1": ("kl_to_base",), "k3": ("kl_to_base_k3",)},
        "nats a token",
        note="On the policy's own completions. Two estimates of one distance: where they are far apart, trust k1.",
    ),
    Group(
        "How completions end",
        {
            "stopped": ("stop_rate", "ifeval/stop_rate"),
            "truncated": ("truncation_rate",),
            "repetitive": ("repetition_rate",),
            "empty": ("empty_rate",),
        },
        "%",
        is_share=True,
        note="Of greedy completions of held-out prompts.",
    ),
    Group("Length of completions", {"tokens": ("mean_tokens", "ifeval/mean_tokens")}, "tokens"),
)
_BIN = re.compile(r"(?:^|/)reliability/")
_SIDE = re.compile(
    r"(?:_ties|_unreadable|/pairs(?:/.*)?|/(?:previous|base)_heldout|/best_over_random|_completion|heldout/loss)$|^first_"
)
"""What goes with a figure that has a chart; it stands in the table."""


def measures(run: RunFacts) -> str:
    """Every measure as a chart over the rounds, the known ones by topic."""
    shown: set[str] = set()
    figures = []
    for group in GROUPS:
        figures.append(_group(run.finished, group))
        shown |= {key for keys in group.keys.values() for key in keys}
    rest = [key for key in _names(run.finished) if key not in shown and not _SIDE.search(key)]
    figures += [_group(run.finished, Group(key, {key: (key,)})) for key in rest[:MOST_OTHERS]]
    figures.append(reliability(run))
    found = elements.grid(figures)
    if not found:
        return ""
    parts = [elements.paragraph(f"Measured each round beside the benchmarks. {BARS}", kind="note"), found]
    return elements.section("What the benchmarks don't show", [*parts, _everything(run)], name="measures")


def _everything(run: RunFacts) -> str:
    """Every measure of every round, as it was published."""
    rounds = evenly(run.finished, most=MOST_COLUMNS)
    names = [name for name in _names(run.finished) if any(name in entry.measures for entry in rounds)][:MOST_ROWS]
    if not names:
        return ""
    rows: list[tuple[str | Cell, ...]] = []
    for name in names:
        values = [measure(name)(entry) for entry in rounds]
        rows.append(
            (
                name,
                *(Cell(MISSING) if v is None else with_error(v.value, v.stderr, scale=1.0, digits=4) for v in values),
            )
        )
    heads = ("measure", *(entry.label for entry in rounds))
    return elements.details("Every measure", elements.table(Table(heads, tuple(rows)), name="measures"))


def reliability(run: RunFacts) -> str:
    """How often the last reward model is right against how sure it is; nothing where it was not measured."""
    entry = next((e for e in reversed(run.finished) if _bins(e)), None)
    if entry is None:
        return ""
    bins = _bins(entry)
    points = [charts.Point(100 * b.confidence, 100 * b.accuracy) for b in bins]
    rows = tuple((f"{100 * b.confidence:.1f}", percent(b.accuracy), count(b.count)) for b in bins)
    low = 50.0 if min(min(p.x, p.y) for p in points) >= 50.0 else 0.0
    spec = charts.against_diagonal(points, x_title="how sure, %", y_title="how often right, %", low=low, high=100.0)
    note = "On the line the reward model is right as often as it says."
    return elements.figure(
        f"Reward model of round {entry.number}: reliability",
        spec,
        numbers=Table(("sure, %", "right, %", "pairs"), rows),
        note=note,
        name="reliability",
    )


@dataclass(frozen=True)
class _Bin:
    confidence: float
    accuracy: float
    count: float | None


def _bins(entry: RoundFacts) -> list[_Bin]:
    """The bins of a reliability curve, as flat measures name them: `<bin>/confidence`, `/accuracy`, `/count`."""
    names = {key.rpartition("/")[0] for key in entry.measures if _BIN.search(key) and key.endswith("/confidence")}
    found = [
        _Bin(
            entry.measures[f"{name}/confidence"],
            entry.measures[f"{name}/accuracy"],
            entry.measures.get(f"{name}/count"),
        )
        for name in names
        if f"{name}/accuracy" in entry.measures
    ]
    return sorted(found, key=lambda each: each.confidence)


def _group(rounds: Sequence[RoundFacts], group: Group) -> str:
    chosen = {label: key for label, keys in group.keys.items() if (key := _first(rounds, keys)) is not None}
    values = {label: metric(key) if key.startswith("ifeval/") else measure(key) for label, key in chosen.items()}
    scale = 100.0 if group.is_share else 1.0
    lines = present([line(label, rounds, value, scale=scale) for label, value in values.items()])
    if not lines:
        return ""
    bounded = group.is_share and not group.is_signed
    spec = charts.by_round(
        lines, y_title=group.y_title, least=0.0 if bounded else None, most=100.0 if bounded else None
    )
    numbers = table_of(rounds, list(values.items()), as_percent=group.is_share)
    name = "measure-" + "+".join(chosen.values())
    return elements.figure(group.title, spec, numbers=numbers, note=group.note, name=name)


def _first(rounds: Sequence[RoundFacts], keys: Sequence[str]) -> str | None:
    for key in keys:
        for entry in rounds:
            known = entry.row is not None and (key in entry.row.metrics or key in entry.row.reward_model)
            if known or key in entry.measures:
                return key
    return None


def _names(rounds: Sequence[RoundFacts]) -> list[str]:
    """Measures of any round, standard errors and the bins of curves aside."""
    names = dict.fromkeys(key for entry in rounds for key in entry.measures)
    return [name for name in names if not name.endswith(STDERR) and not _BIN.search(name)]
