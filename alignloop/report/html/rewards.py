"""How the rewards of a round's picks lie: the best of K against a random candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignloop.report.html import elements
from alignloop.report.html.climb import evenly
from alignloop.report.html.elements import Table, percent
from alignloop.report.html.facts import RoundFacts, RunFacts, json_rows
from alignloop.report.plots import charts
from alignloop.sampling.reward_statistics import bin_edges, bin_shares

MOST_PROMPTS = 20_000
MOST_ROUNDS = 9
NUM_BINS = 24


@dataclass(frozen=True)
class Picks:
    """Rewards of a round's prompts: of the best candidate, and of a random one."""

    entry: RoundFacts
    best: tuple[float, ...]
    random: tuple[float, ...]
    num_prompts: int


def rewards(run: RunFacts) -> str:
    """A histogram a round."""
    having = [entry for entry in run.rounds if entry.stage("select") is not None]
    shown = evenly(having, most=MOST_ROUNDS)
    found = [picks for entry in shown if (picks := picks_of(entry)) is not None]
    notes = [
        "Rewards are each round's own reward model's: the scales of two rounds differ. Upright lines: means.",
    ]
    if len(having) > len(shown):
        notes.append(f"{len(having) - len(shown)} rounds between are left out.")
    large = [picks for picks in found if picks.num_prompts > len(picks.best)]
    if large:
        notes.append(f"Of rounds with more prompts the first {MOST_PROMPTS:,} are drawn.")
    parts = [elements.paragraph(" ".join(notes), kind="note"), elements.grid([_histogram(picks) for picks in found])]
    return elements.section("Rewards: best of K against random", parts if found else [], name="rewards")


def picks_of(entry: RoundFacts) -> Picks | None:
    """The rewards in `selected.jsonl`; None where there are none."""
    stage = entry.stage("select")
    if stage is None:
        return None
    best, random = [], []
    for row in json_rows(stage, "selected", most=MOST_PROMPTS):
        pair = row.get("reward"), row.get("random_reward")
        if all(isinstance(value, int | float) and math.isfinite(value) for value in pair):
            best.append(float(pair[0]))  # type: ignore[arg-type]
            random.append(float(pair[1]))  # type: ignore[arg-type]
    if not best:
        return None
    return Picks(entry, tuple(best), tuple(random), stage.manifest.counts.get("kept", len(best)))


def _histogram(picks: Picks) -> str:
    edges = bin_edges([*picks.best, *picks.random], num_bins=NUM_BINS)
    shares = {"best of K": bin_shares(picks.best, edges), "random": bin_shares(picks.random, edges)}
    means = {"best of K": _mean(picks.best), "random": _mean(picks.random)}
    spec = charts.outlines(
        edges,
        [charts.Outline(name, tuple(found), means[name]) for name, found in shares.items()],
        x_title="reward",
        y_title="% of prompts",
    )
    rows = [
        (f"{low:g} to {high:g}", percent(a), percent(b))
        for low, high, a, b in zip(edges, edges[1:], *shares.values(), strict=False)
    ]
    heads = ("reward", f"best of K, % (mean {means['best of K']:.2f})", f"random, % (mean {means['random']:.2f})")
    title = f"Round {picks.entry.number}: {len(picks.best):,} prompts"
    return elements.figure(title, spec, numbers=Table(heads, tuple(rows)), name=f"rewards-{picks.entry.number}")


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)
