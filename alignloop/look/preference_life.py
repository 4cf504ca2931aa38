"""The life of a preference: read, held out or in a round's batch, and what of it trained in which stage."""

from __future__ import annotations

from typing import Any

from alignloop.look.life import Life, Step
from alignloop.look.steps import (
    dialog_text,
    dropped_step,
    pair_steps,
    prune_steps,
    reward_steps,
    step_of,
    trained_step,
    twins_of,
)
from alignloop.records import PreferenceRow, VerdictRow, annotation_id
from alignloop.run_dir.reader import RunReader

HELDOUT_TEXT = "the reward model's accuracy is measured on it; nothing trains on it"


def preference_life(row_id: str, run: RunReader) -> Life:
    """What a run made of a row of the user's, or of one that an annotator made."""
    row, steps = _read(row_id, run)
    batches = batches_of(row_id, run)
    for number in run.rounds:
        steps += _round_steps(run, number, row_id, row, batches)
    if row is None:
        return Life(row_id, "preference", {}, steps=tuple(steps), twins=twins_of(run, steps, row_id=row_id, text=""))
    facts = {"source": str(row.source), "annotator": row.annotator, "strength": row.strength or "not said"}
    if row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    texts = {"edited": row.edited or "", "chosen": row.chosen, "rejected": row.rejected}
    return Life(
        row_id,
        "preference",
        facts,
        tuple(row.messages),
        {name: text for name, text in texts.items() if text},
        steps=tuple(steps),
        twins=twins_of(run, steps, row_id=row_id, text=dialog_text(row.messages, row.best)),
    )


def batches_of(row_id: str, run: RunReader) -> list[int]:
    """The rounds in whose batch a preference is."""
    return [number for number in run.rounds if number and _collected(run, number, row_id) is not None]


def _collected(run: RunReader, number: int, row_id: str) -> PreferenceRow | None:
    return run.row(number, "collect", "preferences", PreferenceRow, row_id)


def _read(row_id: str, run: RunReader) -> tuple[PreferenceRow | None, list[Step]]:
    """The row, and what reading made of it: to train on, held out, or left to its round's file."""
    if row := run.row(0, "ingest", "preferences", PreferenceRow, row_id):
        bootstrapped = trained_step(run, 0, "bootstrap", row_id=row_id, role="SFT target")
        return row, [*step_of(run, 0, "ingest", "read", "to train on"), *bootstrapped]
    if row := run.row(0, "ingest", "heldout", PreferenceRow, row_id):
        return row, step_of(run, 0, "ingest", "held out", HELDOUT_TEXT)
    collected = (_collected(run, number, row_id) for number in run.rounds)
    row = next((row for row in collected if row is not None), None)
    return row, dropped_step(run, 0, "ingest", row_id) if row is None else []


def _round_steps(run: RunReader, number: int, row_id: str, row: PreferenceRow | None, batches: list[int]) -> list[Step]:
    if number == 0 or run.stage(number, "collect") is None:
        return []
    if row is None:
        return dropped_step(run, number, "collect", row_id)
    if number not in batches:
        steps = dropped_step(run, number, "collect", row_id)
    elif row.source.is_round:
        steps = step_of(run, number, "collect", "compared", f"compared by {row.annotator}")
    else:
        steps = step_of(run, number, "collect", "in batch", "in the round's batch")
    steps += reward_steps(run, number, row_id, batches)
    if number in batches:
        steps += prune_steps(run, number, row_id) or _not_drawn(run, number)
    if any(batch in _window(run, number) for batch in batches):
        steps += pair_steps(run, number, row_id, role="the pair")
    return steps


def _not_drawn(run: RunReader, number: int) -> list[Step]:
    stage = run.stage(number, "prune")
    wanted = None if stage is None else stage.manifest.config.get("human_rows")
    text = f"for SFT: prune.human_rows draws {wanted} of the batch" if wanted is not None else "for SFT"
    return step_of(run, number, "prune", "not drawn", text)


def _window(run: RunReader, number: int) -> range:
    """Rounds whose batches a round's pairs come from."""
    stage = run.stage(number, "build_pairs")
    width = 1 if stage is None else len(stage.manifest.inputs.get("preferences") or [1])
    return range(number - width + 1, number + 1)


def verdict_life(row_id: str, run: RunReader) -> Life:
    """What a judge or a person said of two candidates, and of the preference that came of it."""
    number, row = run.where("collect", "verdicts", VerdictRow, row_id)
    votes = f", {len(row.answers)} answers" if row.answers else ""
    steps = step_of(run, number, "collect", "compared", f"by {row.judge}: {row.winner}{votes}", {"winner": row.winner})
    facts: dict[str, Any] = {"judge": row.judge, "winner": row.winner, "first": row.first, "second": row.second}
    texts = {"reason": row.reason, **{f"answer {at}": text for at, text in enumerate(row.answers, start=1)}}
    made = Life("", "preference", {})
    if row.winner in ("first", "second"):
        chosen, rejected = (row.first, row.second) if row.winner == "first" else (row.second, row.first)
        facts["preference"] = annotation_id(chosen, rejected)
        made = preference_life(facts["preference"], run)
    texts = {name: text for name, text in {**made.texts, **texts}.items() if text}
    return Life(row.id, "verdict", facts, made.messages, texts, steps=(*steps, *made.steps[1:]))
