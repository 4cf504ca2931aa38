"""Rows on their way through a round: in, kept, dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignloop.report.html import elements
from alignloop.report.html.climb import evenly
from alignloop.report.html.elements import Cell, Table, count
from alignloop.report.html.facts import RoundFacts, RunFacts, json_rows
from alignloop.report.html.text import cut
from alignloop.report.plots import charts
from alignloop.run_dir.reader import PublishedStage

BY = "dropped_by_"
MOST_DROPPED_ROWS = 50_000
MOST_ROUNDS = 40
REASON_CHARACTERS = 200
SELECT = "not the best of their prompt"
"""Why `select` drops what it drops."""
FUNNELS = {
    "train_reward": "Preferences the reward model is trained on",
    "prune": "SFT rows",
    "build_pairs": "DPO pairs",
}
KINDS = {"build_pairs": ("preference_pairs", "on_policy_pairs")}
"""Counts that together are the rows kept."""


@dataclass(frozen=True)
class Drops:
    """What a stage dropped: rows by rule, and the first reason of each."""

    by_rule: dict[str, int]
    reasons: dict[str, str]


def funnel(run: RunFacts) -> str:
    """A chart a stage that drops, and every stage of every round as a table."""
    rounds = evenly([entry for entry in run.rounds if entry.stages], most=MOST_ROUNDS)
    drops = {stage.dir: drops_of(stage) for entry in rounds for stage in entry.stages if _counted(stage)}
    figures = [_figure(name, title, rounds, drops) for name, title in FUNNELS.items()]
    tables = [_round_table(entry, drops) for entry in rounds]
    left = len(run.rounds) - len(rounds)
    parts = [
        elements.grid([_flow(rounds), *figures]),
        *(elements.details(_title(entry), t) for entry, t in zip(rounds, tables, strict=True) if t),
        elements.paragraph(f"{left} rounds between are left out here.", kind="note") if left > 0 else "",
    ]
    return elements.section("The data, round by round", parts if any(tables) else [], name="funnel")


def drops_of(stage: PublishedStage) -> Drops:
    """From the manifest; rules it does not count, and the reasons, from `dropped.jsonl`."""
    counted = {
        name.removeprefix(BY): number
        for name, number in stage.manifest.counts.items()
        if name.startswith(BY) and number
    }
    if stage.name == "select" and stage.manifest.counts.get("dropped"):
        return Drops({SELECT: stage.manifest.counts["dropped"]}, {})
    written = _written_drops(stage, "dropped")
    return Drops(counted or written.by_rule, written.reasons)


def _written_drops(stage: PublishedStage, output: str) -> Drops:
    seen: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for row in json_rows(stage, output, most=MOST_DROPPED_ROWS):
        rule = str(row.get("rule", "?"))
        seen[rule] += 1
        reasons.setdefault(rule, cut(str(row.get("reason", "")), num_characters=REASON_CHARACTERS))
    return Drops(dict(seen), reasons)


def _flow(rounds: Sequence[RoundFacts]) -> str:
    """How many rows each round takes in and trains on."""
    columns = {
        "preferences": ("collect", ("preferences", "annotated")),
        "candidates": ("sample", ("candidates",)),
        "SFT rows": ("prune", ("kept",)),
        "DPO pairs": ("build_pairs", ("kept",)),
    }
    rows: list[tuple[str | Cell, ...]] = []
    for entry in rounds:
        cells = []
        for stage_name, names in columns.values():
            stage = entry.stage(stage_name)
            found = [stage.manifest.counts[n] for n in names if n in stage.manifest.counts] if stage else []
            cells.append(count(sum(found) if found else None))
        if any(cell.value is not None for cell in cells):
            rows.append((entry.label, *cells))
    if not rows:
        return ""
    lines = [
        charts.Line(name, points)
        for index, name in enumerate(columns, start=1)
        if name != "candidates"
        and (
            points := tuple(
                charts.Point(0 if row[0] == "base" else int(str(row[0])), cell.value)
                for row in rows
                if isinstance(cell := row[index], Cell) and cell.value is not None
            )
        )
    ]
    spec = charts.by_round(lines, y_title="rows", least=0.0) if lines else None
    numbers = Table(("round", *columns), tuple(rows))
    if spec is None:
        return elements.table(numbers, name="flow")
    note = "New preferences a round, best completions after pruning, pairs."
    return elements.figure("Rows that training gets", spec, numbers=numbers, note=note, name="flow")


def _figure(name: str, title: str, rounds: Sequence[RoundFacts], drops: dict[Any, Drops]) -> str:
    """Rows kept and dropped by rule, a bar a round."""
    bars: list[dict[str, Any]] = []
    cells: list[tuple[str, dict[str, int]]] = []
    for entry in rounds:
        stage = entry.stage(name)
        if stage is None or "in" not in stage.manifest.counts:
            continue
        parts = _kept_parts(stage)
        parts |= {f"dropped: {_words(rule)}": number for rule, number in drops[stage.dir].by_rule.items()}
        cells.append((entry.label, parts))
        bars += [{"x": entry.label, "part": part, "value": number} for part, number in parts.items()]
    order = list(dict.fromkeys(part for _, parts in cells for part in parts))
    if not any(bar["value"] for bar in bars):
        return ""
    numbers = Table(
        ("round", *order), tuple((label, *(count(parts.get(part, 0)) for part in order)) for label, parts in cells)
    )
    return elements.figure(
        f"{title}: kept and dropped", charts.stacked(bars, order=order, y_title="rows"), numbers=numbers,
        name=f"funnel-{name}",
    )  # fmt: skip


def _kept_parts(stage: PublishedStage) -> dict[str, int]:
    counts = stage.manifest.counts
    kinds = KINDS.get(stage.name, ())
    if kinds and all(kind in counts for kind in kinds):
        return {f"kept: {_words(kind)}": counts[kind] for kind in kinds}
    return {"kept": counts.get("kept", 0)}


def _round_table(entry: RoundFacts, drops: dict[Any, Drops]) -> str:
    rows: list[tuple[str | Cell, ...]] = []
    for stage in entry.stages:
        if not _counted(stage):
            continue
        counts = stage.manifest.counts
        numbers = (counts.get("in"), counts.get("kept"), counts.get("dropped"))
        rows.append((stage.dir.name, *map(count, numbers), _why(drops[stage.dir])))
        if "prompts_in" in counts:
            numbers = (counts["prompts_in"], counts.get("prompts"), counts.get("prompts_dropped"))
            why = _why(_written_drops(stage, "dropped_prompts"))
            rows.append((f"{stage.dir.name}: prompts", *map(count, numbers), why))
    heads = ("stage", "in", "kept", "dropped", "why (with the first row's reason)")
    return elements.table(Table(heads, tuple(rows)), name=f"stages-{entry.number}") if rows else ""


def _why(drops: Drops) -> str:
    return "; ".join(
        f"{number:,} {_words(rule)}" + (f" ({drops.reasons[rule]})" if drops.reasons.get(rule) else "")
        for rule, number in drops.by_rule.items()
    )


def _title(entry: RoundFacts) -> str:
    return "The base's data" if entry.number == 0 else f"Round {entry.number}, stage by stage"


def _counted(stage: PublishedStage) -> bool:
    return "in" in stage.manifest.counts


def _words(rule: str) -> str:
    return rule.replace("_", " ")
