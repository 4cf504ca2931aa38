"""What annotators make of a prompt's candidates in the round after, and what trains on it."""

from __future__ import annotations

from dataclasses import replace

from alignloop.look.life import Step
from alignloop.look.preference_life import batches_of
from alignloop.look.steps import pair_steps, prune_steps, reward_steps, step_of
from alignloop.records import (
    PreferenceRow,
    VerdictRow,
    candidates_of,
    split_annotation_id,
)
from alignloop.run_dir.reader import RunReader


def compared_steps(run: RunReader, number: int, prompt_id: str, *, candidate: str = "") -> list[Step]:
    """What annotators said in round `number` of candidates of the round before, and what trained on it."""
    start = candidates_of(prompt_id, round=number - 1)
    steps = []
    for verdict in run.rows(number, "collect", "verdicts", VerdictRow, mark=candidate or start):
        is_of = candidate in (verdict.first, verdict.second) if candidate else verdict.first.startswith(start)
        if is_of and verdict.winner in ("tie", "unreadable"):
            text = f"by {verdict.judge}: {verdict.winner} of {verdict.first} and {verdict.second}"
            steps += step_of(run, number, "collect", "compared", text, {"verdict": verdict.id})
    for row in run.rows(number, "collect", "preferences", PreferenceRow, mark=start):
        if compared := _comparison_text(row, start, candidate):
            strength = f", {row.strength}" if row.strength else ""
            edited = ", and edited it" if row.edited else ""
            facts = {"preference": row.id, "strength": row.strength, "annotator": row.annotator}
            text = f"by {row.annotator}: {compared}{strength}{edited}"
            steps += [*step_of(run, number, "collect", "compared", text, facts), *_of_annotation(run, row)]
    return steps


def _comparison_text(row: PreferenceRow, start: str, candidate: str) -> str:
    """In words, what an annotation says; empty where it is of other candidates."""
    chosen, rejected = split_annotation_id(row.id)
    if not chosen.startswith(start):
        return ""
    if candidate == chosen:
        return f"chosen over {rejected}"
    if candidate == rejected:
        return f"rejected for {chosen}"
    return "" if candidate else f"{chosen} chosen over {rejected}"


def _of_annotation(run: RunReader, row: PreferenceRow) -> list[Step]:
    """Where an annotated preference trained: reward models from its round on, SFT and DPO in it."""
    batches = batches_of(row.id, run)
    steps = [step for number in run.rounds for step in reward_steps(run, number, row.id, batches)]
    for number in batches:
        steps += [*prune_steps(run, number, row.id), *pair_steps(run, number, row.id, role="the pair")]
    by_it = [
        replace(step, text=f"{step.text}, by that comparison", facts={**step.facts, "row": row.id}) for step in steps
    ]
    return sorted(by_it, key=lambda step: (step.round, step.stage))
