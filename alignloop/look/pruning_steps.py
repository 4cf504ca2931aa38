"""What `prune` and `build_pairs` made of a row: kept, or dropped by which rule, why, and for the sake of which twin."""

from __future__ import annotations

from typing import Any

from alignloop.look.life import Step, TwinPair, trained_step
from alignloop.records import DroppedRow, PairRow, PreferenceRow, SelectedRow, SftRow
from alignloop.run_dir.reader import RunReader

PRUNED_FACTS = ("quality_score", "difficulty_score", "topic", "cluster", "judge", "tags")
"""Columns of an SFT row that pruning fills, where it does."""


def prune_steps(run: RunReader, number: int, row_id: str) -> list[Step]:
    """`prune` and, where the row is kept, `train_sft`; none where the row was not put to it."""
    found = run.stage(number, "prune")
    if found is None:
        return []
    for row in run.rows(number, "prune", "rows", SftRow, mark=row_id):
        if row.id == row_id:
            facts = _known(row)
            told = ", ".join(f"{name} {_short(value)}" for name, value in facts.items())
            kept = Step(number, found.dir.name, "kept", f"for SFT{': ' + told if told else ''}", facts)
            return [kept, *trained_step(run, number, "train_sft", row_id=row_id, role="SFT target")]
    for drop in run.rows(number, "prune", "dropped", DroppedRow, mark=row_id):
        if drop.id == row_id:
            return [_dropped(number, found.dir.name, drop)]
    return []


def _known(row: SftRow) -> dict[str, Any]:
    # What pruning does not fill has no place here: a run may leave any of its steps out.
    values = {name: getattr(row, name, None) for name in PRUNED_FACTS}
    return {name: value for name, value in values.items() if value not in (None, [], {}, ())}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _dropped(number: int, stage: str, drop: DroppedRow) -> Step:
    facts: dict[str, Any] = {"rule": drop.rule, "reason": drop.reason}
    if drop.twin is not None:
        facts |= {"twin": drop.twin, "cosine": getattr(drop, "cosine", None)}
    return Step(number, stage, "dropped", f"by {drop.rule}: {drop.reason}", facts)


def pair_steps(run: RunReader, number: int, row_id: str, *, role: str, pair_id: str = "") -> list[Step]:
    """`build_pairs` and, where there is a pair, `train_dpo`.

    Args:
        row_id: a preference's, or a prompt's.
        role: what the row is in its pair.
        pair_id: the pair's, where it is another than `row_id`; it is looked for by what it begins with.
    """
    found = run.stage(number, "build_pairs")
    if found is None:
        return []
    wanted = pair_id or row_id
    for row in run.rows(number, "build_pairs", "pairs", PairRow, mark=wanted):
        if row.id == row_id or (pair_id and row.id.startswith(pair_id)):
            return [
                _paired(number, found.dir.name, row, role),
                *trained_step(run, number, "train_dpo", row_id=row.id, role=role),
            ]
    for drop in run.rows(number, "build_pairs", "dropped", DroppedRow, mark=row_id):
        if drop.id == row_id:
            facts = {"rule": drop.rule, "reason": drop.reason}
            return [Step(number, found.dir.name, "no pair", f"by {drop.rule}: {drop.reason}", facts)]
    return []


def _paired(number: int, stage: str, row: PairRow, role: str) -> Step:
    gap = "" if row.reward_gap is None else f", reward gap {row.reward_gap:.4g}"
    strength = "strength not said" if row.strength is None else row.strength
    facts = {"pair": row.id, "strength": row.strength, "reward_gap": row.reward_gap, "role": role}
    return Step(number, stage, "pair", f"{strength}{gap}", {**facts, "origin": row.origin})


def twins_of(run: RunReader, steps: list[Step], *, row_id: str, text: str) -> tuple[TwinPair, ...]:
    """The near twins a row lost to, with the texts of both."""
    return tuple(
        TwinPair(
            step.round,
            step.stage,
            row_id,
            text,
            step.facts["twin"],
            _text_of(run, step.round, step.facts["twin"]),
            step.facts.get("cosine"),
            step.facts["reason"],
        )
        for step in steps
        if step.facts.get("twin")
    )


def _text_of(run: RunReader, number: int, row_id: str) -> str:
    """Prompt and completion of a row that was put to `prune`; empty where the run does not hold it."""
    for selected in run.rows(number, "select", "selected", SelectedRow, mark=row_id):
        if selected.id == row_id:
            return dialog_text(selected.messages[-1].content, selected.completion)
    for earlier in range(number, 0, -1):
        for row in run.rows(earlier, "collect", "preferences", PreferenceRow, mark=row_id):
            if row.id == row_id:
                return dialog_text(row.messages[-1].content, row.best)
    return ""


def dialog_text(prompt: str, completion: str) -> str:
    """A prompt's last turn and a completion, one under the other."""
    return f"{prompt.strip()}\n\n{completion.strip()}"
