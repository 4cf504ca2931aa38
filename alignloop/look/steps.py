"""The steps of a row's life that published stages tell of it: dropped, kept, paired, trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignloop.look.life import Outcome, Step, TwinPair
from alignloop.records import DroppedRow, Message, PairRow, PreferenceRow, SelectedRow, SftRow
from alignloop.run_dir.reader import RunReader

PRUNED_FACTS = ("quality_score", "difficulty_score", "topic", "cluster", "judge", "tags")
"""Columns of an SFT row that pruning fills, where it does."""


def step_of(
    run: RunReader, number: int, stage: str, verdict: Outcome, text: str, facts: Mapping[str, Any] | None = None
) -> list[Step]:
    """A stage's step; none where the round has not published it."""
    found = run.stage(number, stage)
    return [] if found is None else [Step(number, found.dir.name, verdict, text, facts or {})]


def dropped_step(
    run: RunReader,
    number: int,
    stage: str,
    row_id: str,
    *,
    output: str = "dropped",
    verdict: Outcome = "dropped",
    with_reason: bool = False,
) -> list[Step]:
    """The step of a row that a stage left out; none where it did not.

    Args:
        with_reason: reason and twin are among the facts.
    """
    drop = run.row(number, stage, output, DroppedRow, row_id)
    if drop is None:
        return []
    facts: dict[str, Any] = {"rule": drop.rule}
    if with_reason:
        facts["reason"] = drop.reason
        facts |= {} if drop.twin is None else {"twin": drop.twin, "cosine": drop.cosine}
    return step_of(run, number, stage, verdict, f"by {drop.rule}: {drop.reason}", facts)


def trained_step(run: RunReader, number: int, stage: str, *, row_id: str, role: str) -> list[Step]:
    """The step of a row that a training stage was to train on; none where the stage is not published."""
    drop = run.row(number, stage, "dropped", DroppedRow, row_id)
    if drop is not None:
        return step_of(run, number, stage, "not trained", drop.reason, {"role": role, "rule": drop.rule})
    return step_of(run, number, stage, "trained", f"as {role}", {"role": role})


def reward_steps(run: RunReader, number: int, row_id: str, batches: list[int]) -> list[Step]:
    """`train_reward`, which sees the preferences to date; only the named strengths train."""
    if not any(batch <= number for batch in batches):
        return []
    return trained_step(run, number, "train_reward", row_id=row_id, role="a ranking")


def prune_steps(run: RunReader, number: int, row_id: str) -> list[Step]:
    """`prune` and, where the row is kept, `train_sft`; none where the row was not put to it."""
    row = run.row(number, "prune", "rows", SftRow, row_id)
    if row is None:
        return dropped_step(run, number, "prune", row_id, with_reason=True)
    # A run may leave any step of pruning out: its column is empty then.
    values = {name: getattr(row, name) for name in PRUNED_FACTS}
    facts = {name: value for name, value in values.items() if value not in (None, [], {}, ())}
    known = ", ".join(f"{name} {_short(value)}" for name, value in facts.items())
    kept = step_of(run, number, "prune", "kept", f"for SFT{': ' + known if known else ''}", facts)
    return [*kept, *trained_step(run, number, "train_sft", row_id=row_id, role="SFT target")]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def pair_steps(run: RunReader, number: int, row_id: str, *, role: str, pair: PairRow | None = None) -> list[Step]:
    """`build_pairs` and, where there is a pair, `train_dpo`.

    Args:
        row_id: a preference's, or a prompt's.
        role: what the row is in its pair.
        pair: the row's, where it has another id than the row.
    """
    pair = pair or run.row(number, "build_pairs", "pairs", PairRow, row_id)
    if pair is None:
        return dropped_step(run, number, "build_pairs", row_id, verdict="no pair", with_reason=True)
    gap = "" if pair.reward_gap is None else f", reward gap {pair.reward_gap:.4g}"
    facts = {"pair": pair.id, "strength": pair.strength, "reward_gap": pair.reward_gap, "role": role,
             "origin": pair.origin}  # fmt: skip
    paired = step_of(run, number, "build_pairs", "pair", f"{pair.strength or 'strength not said'}{gap}", facts)
    return [*paired, *trained_step(run, number, "train_dpo", row_id=pair.id, role=role)]


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
            step.facts["cosine"],
            step.facts["reason"],
        )
        for step in steps
        if "twin" in step.facts
    )


def _text_of(run: RunReader, number: int, row_id: str) -> str:
    """Prompt and completion of a row that was put to `prune`; empty where the run does not hold it."""
    selected = run.row(number, "select", "selected", SelectedRow, row_id)
    if selected is not None:
        return dialog_text(selected.messages, selected.completion)
    for earlier in range(number, 0, -1):
        row = run.row(earlier, "collect", "preferences", PreferenceRow, row_id)
        if row is not None:
            return dialog_text(row.messages, row.best)
    return ""


def dialog_text(messages: list[Message], completion: str) -> str:
    """A prompt's last turn and a completion, one under the other."""
    return f"{messages[-1].content.strip()}\n\n{completion.strip()}"
