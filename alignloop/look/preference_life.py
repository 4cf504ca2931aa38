"""The life of a preference: read, held out or in a round's batch, and what of it trained in which stage."""

from __future__ import annotations

from typing import Any

from alignloop.look.life import Life, Step, place, trained_step
from alignloop.look.pruning_steps import dialog_text, pair_steps, prune_steps, twins_of
from alignloop.records import DroppedRow, PreferenceRow, VerdictRow
from alignloop.run_dir.reader import RunReader

HELDOUT_TEXT = "the reward model's accuracy is measured on it; nothing trains on it"


def preference_life(row_id: str, run: RunReader) -> Life:
    """What a run made of a row of the user's, or of one that an annotator made."""
    row, steps = _read(row_id, run)
    batches = [number for number in run.rounds if number and _in_batch(run, number, row_id)]
    for number in run.rounds:
        steps += _round_steps(run, number, row_id, row, batches)
    texts = {} if row is None else {"edited": row.edited or "", "chosen": row.chosen, "rejected": row.rejected}
    text = "" if row is None else dialog_text(row.messages[-1].content, row.best)
    return Life(
        row_id,
        "preference",
        {} if row is None else _facts(row),
        () if row is None else tuple(row.messages),
        {name: said for name, said in texts.items() if said},
        (),
        tuple(steps),
        twins_of(run, steps, row_id=row_id, text=text),
    )


def _facts(row: PreferenceRow) -> dict[str, Any]:
    facts = {
        "source": place(row.source.file, row.source.line),
        "annotator": row.annotator,
        "strength": row.strength or "not said",
    }
    if row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    return facts


def _read(row_id: str, run: RunReader) -> tuple[PreferenceRow | None, list[Step]]:
    """The row, and what reading made of it: to train on, held out, or left to its round's file."""
    for output in ("preferences", "heldout"):
        for row in run.rows(0, "ingest", output, PreferenceRow, mark=row_id):
            if row.id == row_id:
                stage = run.stage(0, "ingest")
                assert stage is not None, "its rows were just read"
                if output == "heldout":
                    return row, [Step(0, stage.dir.name, "held out", HELDOUT_TEXT)]
                return row, [Step(0, stage.dir.name, "read", "to train on"), *_bootstrapped(run, row_id)]
    for number in run.rounds:
        for row in run.rows(number, "collect", "preferences", PreferenceRow, mark=row_id):
            if row.id == row_id:
                return row, []
    return None, _dropped(run, 0, "ingest", row_id)


def _dropped(run: RunReader, number: int, stage: str, row_id: str) -> list[Step]:
    """The step of a row that a stage left out; none where it did not."""
    found = run.stage(number, stage)
    for drop in run.rows(number, stage, "dropped", DroppedRow, mark=row_id):
        if drop.id == row_id and found is not None:
            return [Step(number, found.dir.name, "dropped", f"by {drop.rule}: {drop.reason}", {"rule": drop.rule})]
    return []


def _bootstrapped(run: RunReader, row_id: str) -> list[Step]:
    return trained_step(run, 0, "bootstrap", row_id=row_id, role="SFT target")


def _in_batch(run: RunReader, number: int, row_id: str) -> bool:
    return any(row.id == row_id for row in run.rows(number, "collect", "preferences", PreferenceRow, mark=row_id))


def _round_steps(run: RunReader, number: int, row_id: str, row: PreferenceRow | None, batches: list[int]) -> list[Step]:
    stage = run.stage(number, "collect")
    if number == 0 or stage is None:
        return []
    steps = _collected(run, number, row_id, row, batches)
    if row is None:
        return steps
    steps += reward_steps(run, number, row, batches)
    if number in batches:
        pruned = prune_steps(run, number, row_id)
        steps += pruned or _not_drawn(run, number)
    if any(batch in _window(run, number) for batch in batches):
        steps += pair_steps(run, number, row_id, role="the pair")
    return steps


def _collected(run: RunReader, number: int, row_id: str, row: PreferenceRow | None, batches: list[int]) -> list[Step]:
    stage = run.stage(number, "collect")
    assert stage is not None, "only asked where it is published"
    if number in batches:
        made = row is not None and row.source.file.startswith("round-") and row.source.line is None
        text = f"compared by {row.annotator}" if made and row is not None else "in the round's batch"
        return [Step(number, stage.dir.name, "compared" if made else "in batch", text)]
    return _dropped(run, number, "collect", row_id)


def reward_steps(run: RunReader, number: int, row: PreferenceRow, batches: list[int]) -> list[Step]:
    """`train_reward`, which sees the preferences to date; only the named strengths train."""
    stage = run.stage(number, "train_reward")
    if stage is None or not any(batch <= number for batch in batches):
        return []
    return trained_step(run, number, "train_reward", row_id=row.id, role="a ranking")


def _not_drawn(run: RunReader, number: int) -> list[Step]:
    stage = run.stage(number, "prune")
    if stage is None:
        return []
    wanted = stage.manifest.config.get("human_rows")
    text = f"for SFT: prune.human_rows draws {wanted} of the batch" if wanted is not None else "for SFT"
    return [Step(number, stage.dir.name, "not drawn", text)]


def _window(run: RunReader, number: int) -> range:
    """Rounds whose batches a round's pairs come from."""
    stage = run.stage(number, "build_pairs")
    width = 1 if stage is None else len(stage.manifest.inputs.get("preferences") or [1])
    return range(number - width + 1, number + 1)


def verdict_life(row_id: str, run: RunReader) -> Life:
    """What a judge or a person said of two candidates, and of the preference that came of it."""
    for number in run.rounds:
        for row in run.rows(number, "collect", "verdicts", VerdictRow, mark=row_id):
            if row.id == row_id:
                return _verdict_life(row, number, run)
    raise AssertionError(f"{row_id} was found, and is not there")


def _verdict_life(row: VerdictRow, number: int, run: RunReader) -> Life:
    stage = run.stage(number, "collect")
    assert stage is not None, "its rows were just read"
    votes = f", {len(row.answers)} answers" if row.answers else ""
    said = Step(number, stage.dir.name, "compared", f"by {row.judge}: {row.winner}{votes}", {"winner": row.winner})
    facts: dict[str, Any] = {"judge": row.judge, "winner": row.winner, "first": row.first, "second": row.second}
    texts = {"reason": row.reason, **{f"answer {at}": text for at, text in enumerate(row.answers, start=1)}}
    made = {"first": (row.first, row.second), "second": (row.second, row.first)}.get(row.winner)
    rest: tuple[Step, ...] = ()
    messages: tuple[Any, ...] = ()
    if made is not None:
        facts["preference"] = f"annotated/{made[0]}/{made[1]}"
        life = preference_life(facts["preference"], run)
        rest, messages, texts = life.steps[1:], life.messages, {**life.texts, **texts}
    texts = {name: text for name, text in texts.items() if text}
    return Life(row.id, "verdict", facts, messages, texts, (), (said, *rest), ())
