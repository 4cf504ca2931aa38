"""A row's life: every step a run's files tell of it, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignloop.look.find import Found, Kind, find
from alignloop.records import DroppedRow, Message
from alignloop.run_dir.reader import RunReader

Verdict = Literal[
    "read", "rejected", "held out", "dropped", "sampled", "scored", "best", "not best", "kept", "not drawn", "in batch",
    "compared", "pair", "no pair", "trained", "not trained",
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What a stage made of the row.

    Attributes:
        stage: its folder's name, for example `07_prune`.
        text: one sentence, for people.
        facts: the same for programs.
    """

    round: int
    stage: str
    verdict: Verdict
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateLine:
    """One of a prompt's K candidates.

    Attributes:
        mark: `best`, `chosen`, `rejected`: what it was taken for; several with commas.
        asked: whether it is the row that the person asked for.
    """

    round: int
    id: str
    reward: float | None
    finish_reason: str
    completion: str
    mark: str = ""
    asked: bool = False


@dataclass(frozen=True)
class TwinPair:
    """A row that was dropped for its likeness to another, and that other.

    Attributes:
        twin_text: empty where the run's files do not hold it.
    """

    round: int
    stage: str
    id: str
    text: str
    twin: str
    twin_text: str
    cosine: float | None
    reason: str


@dataclass(frozen=True)
class Life:
    """A row and what became of it.

    Attributes:
        facts: label -> what is known of the row itself.
        texts: label -> text, in the order to read them.
        trained: where it trained, and as what.
    """

    id: str
    kind: Kind
    facts: dict[str, Any]
    messages: tuple[Message, ...]
    texts: dict[str, str]
    candidates: tuple[CandidateLine, ...]
    steps: tuple[Step, ...]
    twins: tuple[TwinPair, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(
            f"round {step.round} {step.stage}{' as ' + step.facts['role'] if 'role' in step.facts else ''}"
            for step in self.steps
            if step.verdict == "trained"
        )


def lives_of(row_id: str, run_dir: Path) -> list[Life]:
    """The life of the row that `row_id` names; several where one id or one line stands for several rows.

    Args:
        row_id: id of a prompt, candidate, preference, pair or verdict, or the beginning of one that no other has; or
            FILE:LINE of an input file.

    Raises:
        UserError: no such row, or several begin so; no run lies in `run_dir`.
    """
    run = RunReader(run_dir)
    return [_life(found, run) for found in find(row_id, run)]


def _life(found: Found, run: RunReader) -> Life:
    from alignloop.look.preference_life import preference_life, verdict_life
    from alignloop.look.prompt_life import candidate_life, pair_life, prompt_life

    if found.rejected is not None:
        return _rejected_life(found)
    tell = {
        "prompt": prompt_life,
        "candidate": candidate_life,
        "pair": pair_life,
        "preference": preference_life,
        "verdict": verdict_life,
    }
    return tell[found.kind](found.id, run)


def _rejected_life(found: Found) -> Life:
    row = found.rejected
    assert row is not None, "only called for rows that were rejected"
    where = f"field {row.field}: " if row.field else ""
    step = Step(0, "01_ingest", "rejected", f"{where}{row.reason}", {"field": row.field, "reason": row.reason})
    texts = {"as found": row.text} if row.text else {}
    return Life(found.id, "rejected row", {"source": place(row.file, row.line)}, (), texts, (), (step,), ())


def place(file: str, line: int | None) -> str:
    """`FILE, line N`."""
    return file if line is None else f"{file}, line {line}"


def trained_step(run: RunReader, number: int, stage: str, *, row_id: str, role: str, row: str = "") -> list[Step]:
    """The step of a row that a training stage was given; none where the stage is not published.

    Args:
        row_id: what it is called in the stage's rows.
        row: the id it trained under, where that is another row's.
    """
    found = run.stage(number, stage)
    if found is None:
        return []
    facts: dict[str, Any] = {"role": role, **({"row": row} if row else {})}
    wanted = row or row_id
    for drop in run.rows(number, stage, "dropped", DroppedRow, mark=wanted):
        if drop.id == wanted:
            return [Step(number, found.dir.name, "not trained", drop.reason, {**facts, "rule": drop.rule})]
    return [Step(number, found.dir.name, "trained", f"as {role}{f' (row {row})' if row else ''}", facts)]
