"""What the benchmarks do not show: rewards, win rates, divergence, endings, lengths, and the reward model itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from alignloop.evaluation.disagreement import disagreements
from alignloop.report import charts
from alignloop.report.content import COUNT, PERCENT, Details, Figure, FigureUnit, PageSection, Table
from alignloop.report.facts import STDERR, RoundRecord, RunRecord, by_round, evenly, json_rows
from alignloop.report.figures import ERROR_BARS, MOST_COLUMNS, histogram, over_rounds

MOST_OTHERS, MOST_ROWS = 8, 200
"""Of measures that no group knows: at most so many get a chart, so many stand in the table."""
MOST_PROMPTS, MOST_HISTOGRAMS = 20_000, 9
PAIRWISE = "Ties count half; 50 % is as good as the other."
POINTS, REWARD, NATS = FigureUnit("points", scale=100.0, digits=1), FigureUnit("reward"), FigureUnit("nats")


class MeasuredFigure(NamedTuple):
    """Measures that stand in one chart: `keys` maps a name there to a key, or to keys the first of which is present:
    `one|other`."""

    title: str
    unit: FigureUnit
    keys: dict[str, str]
    note: str = ""


FIGURES = (
    MeasuredFigure("Reward model: right on held-out preferences", PERCENT,
        {"accuracy": "heldout/accuracy|heldout_accuracy"},
        "Share of held-out preferences in which the chosen completion has the higher reward; 50 % is chance."),
    MeasuredFigure("Reward model: accuracy by strength", PERCENT,
        {"significant": "heldout/accuracy/significantly_better", "better": "heldout/accuracy/better",
         "slight": "heldout/accuracy/slightly_better", "marginal": "heldout/accuracy/marginally_better"},
        "Of held-out preferences, by how much better people found the chosen one."),
    MeasuredFigure("Reward model: calibration", POINTS,
        {"error": "heldout/calibration_error", "overconfidence": "heldout/overconfidence"},
        "How far its certainty is from how often it is right; 0 is calibrated."),
    MeasuredFigure("Right among the candidates", PERCENT,
        {"random": "truth/random", "picked": "truth/pick", "best there is": "truth/oracle"},
        "Of the K that the round samples for a prompt, by measure.truth: a random one, the reward model's pick, any."),
    MeasuredFigure("Reward: right candidates above wrong ones", PERCENT, {"in order": "truth/pair_accuracy"},
        "Of the pairs of a right and a wrong candidate of a prompt; mean over prompts that have both. 50 % is chance."),
    MeasuredFigure("Rewards by the round's own reward model", REWARD,
        {"best of K": "reward/best_of_k|mean_reward_best", "random pick": "reward/random|mean_reward_random",
         "new policy": "reward/policy_heldout"},
        "Compare within a round, not between rounds: each has a reward model of its own."),
    MeasuredFigure("Rewards by the first round's reward model", REWARD,
        {"best of K": "first_reward/best_of_k", "random pick": "first_reward/random",
         "new policy": "first_reward/policy_heldout"},
        "One scale for all rounds. K and the picks are the round's own."),
    MeasuredFigure("Reward gained on the same prompts", REWARD,
        {"over the last": "reward/gain_over_previous", "over the base": "reward/gain_over_base"},
        "By the round's own reward model, on the same held-out prompts."),
    MeasuredFigure("Win rate of the round's model, by reward", PERCENT,
        {"over the last": "win_rate/previous", "at equal length": "win_rate/previous_length_controlled",
         "over the base": "win_rate/base", "over it at equal length": "win_rate/base_length_controlled"}, PAIRWISE),
    MeasuredFigure("Win rate of the round's model, by the judge", PERCENT,
        {"over the last": "judge_win_rate/previous", "at equal length": "judge_win_rate/previous_length_controlled",
         "over the base": "judge_win_rate/base", "over it at equal length": "judge_win_rate/base_length_controlled"},
        PAIRWISE),
    MeasuredFigure("Log-probability of chosen completions", NATS,
        {"reference": "chosen_logprob/reference", "policy": "chosen_logprob/policy"},
        "Of held-out preferences, by the DPO reference and by the round's policy."),
    MeasuredFigure("Drift of the chosen log-probability", NATS, {"drift": "chosen_logprob/drift"}),
    MeasuredFigure("Log-probability of the end of turn", NATS,
        {"chosen": "end_of_turn_logprob/chosen", "rejected": "end_of_turn_logprob/rejected"},
        "By the round's policy, where the chosen and the rejected completions of held-out preferences end."),
    MeasuredFigure("Distance from the base (KL)", FigureUnit("nats a token"),
        {"k1": "kl_to_base", "k3": "kl_to_base_k3"},
        "On the policy's own completions. Two estimates of one distance: where they are far apart, trust k1."),
    MeasuredFigure("How completions end", PERCENT,
        {"stopped": "stop_rate|ifeval_dev/stop_rate|ifeval/stop_rate", "truncated": "truncation_rate",
         "in mid-sentence": "abrupt_end_rate", "empty": "empty_rate"},
        "Of greedy completions of held-out prompts. In mid-sentence: stopped, and no sentence had ended."),
    MeasuredFigure("Repetition", PERCENT, {"anywhere": "repetition_rate", "at the end": "tail_repetition_rate"},
        "Of greedy completions: the mean share of 4-word sequences that stood before; the share whose last one did."),
    MeasuredFigure("Length of completions", FigureUnit("tokens"),
        {"tokens": "mean_tokens|ifeval_dev/mean_tokens|ifeval/mean_tokens"}),
)  # fmt: skip
_BIN = re.compile(r"(?:^|/)reliability/")
_SIDE = re.compile(
    r"(?:_ties|_unreadable|/pairs(?:/.*)?|/(?:previous|base)_heldout|/best_over_random|_completion|heldout/loss)$|^first_|^truth/"
)
"""What goes with a figure that has a chart; it stands in the table."""


def measures(run: RunRecord) -> PageSection:
    """Every measure as a chart over the rounds, the known ones by topic."""
    known = {key for figure in FIGURES for keys in figure.keys.values() for key in keys.split("|")}
    others = [key for key in _names(run.finished) if key not in known and not _SIDE.search(key)]
    specs = [*FIGURES, *(MeasuredFigure(key, FigureUnit(), {key: key}) for key in others[:MOST_OTHERS])]
    figures: list[Figure | None] = []
    opposite = _said_otherwise(run)
    for spec in specs:
        keys = measured_keys(spec, run.finished)
        sentences = dict.fromkeys(sentence for key in keys.values() for sentence in opposite.get(key, ()))
        note = " ".join(filter(None, [spec.note, *sentences]))
        series = {label: by_round(run.finished, key) for label, key in keys.items()}
        name = "measure-" + "+".join(keys.values())
        figures.append(over_rounds(spec.title, series, spec.unit, name=name, note=note))
    return PageSection(
        "measures",
        "Measures",
        "What the benchmarks don't show",
        note=f"Measured each round beside the benchmarks. {ERROR_BARS}",
        figures=tuple(filter(None, [*figures, _reliability(run)])),
        details=_every_measure(run),
    )


def _said_otherwise(run: RunRecord) -> dict[str, list[str]]:
    """By measure, a sentence for each round in which it says the opposite of a benchmark."""
    found: dict[str, list[str]] = {}
    for entry in run.finished:
        if entry.row is None:
            continue
        groups = {} if entry.evaluation is None else entry.evaluation.protocol.groups
        for each in disagreements(entry.row, differences=run.differences, groups=groups):
            for name in each.measures:
                found.setdefault(name, []).append(f"Round {entry.number}, {each.sentence}.")
    return found


def measured_keys(figure: MeasuredFigure, rounds: Sequence[RoundRecord]) -> dict[str, str]:
    """Name in the chart -> the first of its keys that one of the rounds has; without what none has."""
    found = {label: _first_measured(keys.split("|"), rounds) for label, keys in figure.keys.items()}
    return {label: key for label, key in found.items() if key}


def _first_measured(keys: Sequence[str], rounds: Sequence[RoundRecord]) -> str:
    return next((key for key in keys if any(entry.figure(key) is not None for entry in rounds)), "")


def rewards(run: RunRecord) -> PageSection:
    """How the rewards of a round's picks lie, the best of K against a random candidate: a histogram a round."""
    selects = [(entry, stage) for entry in run.rounds if (stage := entry.stage("select")) is not None]
    # A round that picks at random has no best to draw.
    having = [(entry, stage) for entry, stage in selects if stage.manifest.config.get("pick") != "random"]
    shown = evenly(having, most=MOST_HISTOGRAMS)
    notes = ["Rewards are each round's own reward model's: the scales of two rounds differ. Upright lines: means."]
    if len(having) > len(shown):
        notes.append(f"{len(having) - len(shown)} rounds between are left out.")
    figures = []
    is_cut = False
    for entry, stage in shown:
        rows = json_rows(stage, "selected", most=MOST_PROMPTS)
        picks = [(row.get("reward"), row.get("random_reward")) for row in rows]
        numbers = [(float(b), float(r)) for b, r in picks if isinstance(b, int | float) and isinstance(r, int | float)]
        finite = [pair for pair in numbers if math.isfinite(sum(pair))]
        if finite:
            best, random = zip(*finite, strict=True)
            title = f"Round {entry.number}: {len(finite):,} prompts"
            figures.append(histogram(title, {"best of K": best, "random": random}, name=f"rewards-{entry.number}"))
            is_cut |= stage.manifest.counts.get("kept", 0) > len(finite)
    if is_cut:
        notes.append(f"Of rounds with more prompts the first {MOST_PROMPTS:,} are drawn.")
    title = "Rewards: best of K against random"
    return PageSection("rewards", "Rewards", title, note=" ".join(notes), figures=tuple(figures))


def _every_measure(run: RunRecord) -> tuple[Details, ...]:
    rounds = evenly(run.finished, most=MOST_COLUMNS)
    names = [name for name in _names(run.finished) if any(name in entry.measures for entry in rounds)][:MOST_ROWS]
    exact = FigureUnit(digits=4)
    rows = [(name, *(exact.cell(entry.figure(name)) for entry in rounds)) for name in names]
    heads = ("measure", *(entry.label for entry in rounds))
    return (Details("Every measure", Table.of(heads, rows, name="measures")),) if rows else ()


def _reliability(run: RunRecord) -> Figure | None:
    """How often the last reward model is right against how sure it is; None where it was not measured."""
    entry, bins = next(((e, bins) for e in reversed(run.finished) if (bins := _bins(e.measures))), (None, []))
    if entry is None:
        return None
    points = [(100 * sure, 100 * right) for sure, right, _ in bins]
    low = 50.0 if all(min(point) >= 50.0 for point in points) else 0.0
    rows = ((PERCENT.cell(sure), PERCENT.cell(right), COUNT.cell(num)) for sure, right, num in bins)
    return Figure(
        f"Reward model of round {entry.number}: reliability",
        charts.against_diagonal(points, x_title="how sure, %", y_title="how often right, %", low=low),
        Table.of(("sure, %", "right, %", "pairs"), rows, name="reliability"),
        "On the line the reward model is right as often as it says.",
    )


def _bins(values: dict[str, float]) -> list[tuple[float, float, float | None]]:
    """How sure, how often right and the count of each bin of a reliability curve, which measures name
    `<bin>/confidence`, `<bin>/accuracy`, `<bin>/count`."""
    names = {key.rpartition("/")[0] for key in values if _BIN.search(key)}
    whole = [name for name in names if f"{name}/confidence" in values and f"{name}/accuracy" in values]
    found = [(values[f"{n}/confidence"], values[f"{n}/accuracy"], values.get(f"{n}/count")) for n in whole]
    return sorted(found, key=lambda of_bin: of_bin[0])


def _names(rounds: Sequence[RoundRecord]) -> list[str]:
    """Measures of any round, standard errors and the bins of curves aside."""
    names = dict.fromkeys(key for entry in rounds for key in entry.measures)
    return [name for name in names if not name.endswith(STDERR) and not _BIN.search(name)]
