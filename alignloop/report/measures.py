"""What the benchmarks do not show: rewards, win rates, divergence, endings, lengths, and the reward model itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from alignloop.report.content import COUNT, PERCENT, POINTS, Details, Figure, Section, Table, Unit, present
from alignloop.report.facts import STDERR, RoundRecord, RunRecord, Value, evenly, json_rows, measure, metric
from alignloop.report.figures import ERROR_BARS, MOST_COLUMNS, Series, histogram, over_rounds
from alignloop.report.plots import charts

MOST_OTHERS, MOST_ROWS = 8, 200
"""Measures that no group knows: so many get a chart, so many stand in the table."""
MOST_PROMPTS, MOST_HISTOGRAMS = 20_000, 9
PAIRWISE = "Ties count half; 50 % is as good as the other."
REWARD, NATS = Unit("reward"), Unit("nats")
EXACT = Unit(digits=4)


@dataclass(frozen=True)
class Group:
    """Measures that stand in one chart.

    Attributes:
        keys: name in the chart -> key, or keys the first of which is there.
    """

    title: str
    keys: dict[str, tuple[str, ...]]
    unit: Unit = field(default_factory=Unit)
    note: str = ""


GROUPS = (
    Group(
        "Reward model: right on held-out preferences",
        {"accuracy": ("heldout/accuracy", "heldout_accuracy")},
        PERCENT,
        "Share of held-out preferences in which the chosen completion has the higher reward; 50 % is chance.",
    ),
    Group(
        "Reward model: accuracy by strength",
        {
            "significant": ("heldout/accuracy/significantly_better",),
            "better": ("heldout/accuracy/better",),
            "slight": ("heldout/accuracy/slightly_better",),
            "marginal": ("heldout/accuracy/marginally_better",),
        },
        PERCENT,
        "Of held-out preferences, by how much better people found the chosen one.",
    ),
    Group(
        "Reward model: calibration",
        {"error": ("heldout/calibration_error",), "overconfidence": ("heldout/overconfidence",)},
        POINTS,
        "How far its certainty is from how often it is right; 0 is calibrated.",
    ),
    Group(
        "Rewards by the round's own reward model",
        {
            "best of K": ("reward/best_of_k", "mean_reward_best"),
            "random pick": ("reward/random", "mean_reward_random"),
            "new policy": ("reward/policy_heldout",),
        },
        REWARD,
        "Compare within a round, not between rounds: each has a reward model of its own.",
    ),
    Group(
        "Rewards by the first round's reward model",
        {
            "best of K": ("first_reward/best_of_k",),
            "random pick": ("first_reward/random",),
            "new policy": ("first_reward/policy_heldout",),
        },
        REWARD,
        "One scale for all rounds. K and the picks are the round's own.",
    ),
    Group(
        "Reward gained on the same prompts",
        {"over the last": ("reward/gain_over_previous",), "over the base": ("reward/gain_over_base",)},
        REWARD,
        "By the round's own reward model, on the same held-out prompts.",
    ),
    Group(
        "Win rate of the round's model, by reward",
        {"over the last": ("win_rate/previous",), "over the base": ("win_rate/base",)},
        PERCENT,
        PAIRWISE,
    ),
    Group(
        "Win rate of the round's model, by the judge",
        {"over the last": ("judge_win_rate/previous",), "over the base": ("judge_win_rate/base",)},
        PERCENT,
        PAIRWISE,
    ),
    Group(
        "Log-probability of chosen completions",
        {"reference": ("chosen_logprob/reference",), "policy": ("chosen_logprob/policy",)},
        NATS,
        "Of held-out preferences, by the DPO reference and by the round's policy.",
    ),
    Group("Drift of the chosen log-probability", {"drift": ("chosen_logprob/drift",)}, NATS),
    Group(
        "Distance from the base (KL)",
        {"k1": ("kl_to_base",), "k3": ("kl_to_base_k3",)},
        Unit("nats a token"),
        "On the policy's own completions. Two estimates of one distance: where they are far apart, trust k1.",
    ),
    Group(
        "How completions end",
        {
            "stopped": ("stop_rate", "ifeval/stop_rate"),
            "truncated": ("truncation_rate",),
            "repetitive": ("repetition_rate",),
            "empty": ("empty_rate",),
        },
        PERCENT,
        "Of greedy completions of held-out prompts.",
    ),
    Group("Length of completions", {"tokens": ("mean_tokens", "ifeval/mean_tokens")}, Unit("tokens")),
)
_BIN = re.compile(r"(?:^|/)reliability/")
_SIDE = re.compile(
    r"(?:_ties|_unreadable|/pairs(?:/.*)?|/(?:previous|base)_heldout|/best_over_random|_completion|heldout/loss)$|^first_"
)
"""What goes with a figure that has a chart; it stands in the table."""


def value_of(key: str) -> Value:
    return metric(key) if key.startswith("ifeval/") else measure(key)


def first_measured(rounds: Sequence[RoundRecord], keys: Sequence[str]) -> str | None:
    """The first of the keys that one of the rounds has; None where none has any."""
    return next((key for key in keys if any(_has(entry, key) for entry in rounds)), None)


def measures(run: RunRecord) -> Section:
    """Every measure as a chart over the rounds, the known ones by topic."""
    known = {key for group in GROUPS for keys in group.keys.values() for key in keys}
    others = [key for key in _names(run.finished) if key not in known and not _SIDE.search(key)]
    groups = [*GROUPS, *(Group(key, {key: (key,)}) for key in others[:MOST_OTHERS])]
    figures = present([*(_group(run.finished, group) for group in groups), _reliability(run)])
    note = f"Measured each round beside the benchmarks. {ERROR_BARS}"
    title = "What the benchmarks don't show"
    return Section("measures", "Measures", title, note=note, figures=figures, details=_everything(run))


def rewards(run: RunRecord) -> Section:
    """How the rewards of a round's picks lie, the best of K against a random candidate: a histogram a round."""
    having = [entry for entry in run.rounds if entry.stage("select") is not None]
    shown = evenly(having, most=MOST_HISTOGRAMS)
    notes = ["Rewards are each round's own reward model's: the scales of two rounds differ. Upright lines: means."]
    if len(having) > len(shown):
        notes.append(f"{len(having) - len(shown)} rounds between are left out.")
    figures = []
    is_cut = False
    for entry in shown:
        picks = list(_picks(entry))
        if picks:
            best, random = zip(*picks, strict=True)
            title = f"Round {entry.number}: {len(picks):,} prompts"
            figures.append(histogram(title, {"best of K": best, "random": random}, name=f"rewards-{entry.number}"))
            stage = entry.stage("select")
            is_cut |= stage is not None and stage.manifest.counts.get("kept", 0) > len(picks)
    if is_cut:
        notes.append(f"Of rounds with more prompts the first {MOST_PROMPTS:,} are drawn.")
    title = "Rewards: best of K against random"
    return Section("rewards", "Rewards", title, note=" ".join(notes), figures=tuple(figures))


def _picks(entry: RoundRecord) -> Iterator[tuple[float, float]]:
    """Of each prompt of a round the reward of the best candidate and of a random one."""
    for row in json_rows(entry.stage("select"), "selected", most=MOST_PROMPTS):
        best, random = row.get("reward"), row.get("random_reward")
        if isinstance(best, int | float) and isinstance(random, int | float) and math.isfinite(best + random):
            yield float(best), float(random)


def _group(rounds: Sequence[RoundRecord], group: Group) -> Figure | None:
    found = {label: first_measured(rounds, keys) for label, keys in group.keys.items()}
    keys = {label: key for label, key in found.items() if key is not None}
    series = [Series(label, rounds, value_of(key)) for label, key in keys.items()]
    return over_rounds(group.title, series, group.unit, name="measure-" + "+".join(keys.values()), note=group.note)


def _everything(run: RunRecord) -> tuple[Details, ...]:
    """Every measure of every round, as it was published."""
    rounds = evenly(run.finished, most=MOST_COLUMNS)
    names = [name for name in _names(run.finished) if any(name in entry.measures for entry in rounds)][:MOST_ROWS]
    rows = [(name, *(EXACT.cell(measure(name)(entry)) for entry in rounds)) for name in names]
    heads = ("measure", *(entry.label for entry in rounds))
    return (Details("Every measure", Table.of(heads, rows, name="measures")),) if rows else ()


def _reliability(run: RunRecord) -> Figure | None:
    """How often the last reward model is right against how sure it is; None where it was not measured."""
    for entry in reversed(run.finished):
        bins = _bins(entry.measures)
        if bins:
            points = [charts.Point(100 * sure, 100 * right) for sure, right, _ in bins]
            low = 50.0 if all(min(point.x, point.y) >= 50.0 for point in points) else 0.0
            axes = {"x_title": "how sure, %", "y_title": "how often right, %"}
            return Figure(
                f"Reward model of round {entry.number}: reliability",
                charts.against_diagonal(points, **axes, low=low, high=100.0),
                Table.of(
                    ("sure, %", "right, %", "pairs"),
                    ((PERCENT.cell(sure), PERCENT.cell(right), COUNT.cell(num)) for sure, right, num in bins),
                    name="reliability",
                ),
                "On the line the reward model is right as often as it says.",
            )
    return None


def _bins(values: dict[str, float]) -> list[tuple[float, float, float | None]]:
    """How sure, how often right and the count of each bin of a reliability curve, which measures name
    `<bin>/confidence`, `<bin>/accuracy`, `<bin>/count`."""
    names = {key.rpartition("/")[0] for key in values if _BIN.search(key)}
    whole = [name for name in names if f"{name}/confidence" in values and f"{name}/accuracy" in values]
    found = [(values[f"{n}/confidence"], values[f"{n}/accuracy"], values.get(f"{n}/count")) for n in whole]
    return sorted(found, key=lambda of_bin: of_bin[0])


def _has(entry: RoundRecord, key: str) -> bool:
    return key in entry.metrics or key in entry.measures or (entry.row is not None and key in entry.row.reward_model)


def _names(rounds: Sequence[RoundRecord]) -> list[str]:
    """Measures of any round, standard errors and the bins of curves aside."""
    names = dict.fromkeys(key for entry in rounds for key in entry.measures)
    return [name for name in names if not name.endswith(STDERR) and not _BIN.search(name)]
