"""What a run directory holds, as the page needs it: read from published files alone, every part of it optional."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from alignloop.errors import DataError, RunDirError
from alignloop.evaluation.comparing import RoundDifferences, read_differences
from alignloop.evaluation.report import EvalReport, read_report
from alignloop.records import RoundRow
from alignloop.run_dir.reader import HOW_TO_BEGIN, PublishedStage, RunReader
from alignloop.run_dir.rounds_file import read_rounds

STDERR = "_stderr"
"""What ends the name of a measure's standard error."""


@dataclass(frozen=True)
class RoundFacts:
    """A round, finished or not.

    Attributes:
        row: its line of `rounds.jsonl`; None where it is not finished.
        evaluation: None where it has none, or one that cannot be read.
        measures: value by name, standard errors too (`name_stderr`); empty where nothing was measured.
    """

    number: int
    stages: tuple[PublishedStage, ...]
    row: RoundRow | None
    evaluation: EvalReport | None = None
    measures: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str) -> PublishedStage | None:
        """The round's stage of this name; None where it is not published."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def label(self) -> str:
        return "base" if self.number == 0 else str(self.number)

    @property
    def flags(self) -> tuple[str, ...]:
        return () if self.row is None else tuple(getattr(self.row, "flags", ()))

    @property
    def gated(self) -> str | None:
        """Why the round's policy is not used; None where it is."""
        return None if self.row is None else getattr(self.row, "gated", None)


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes:
        recipe: as resolved, plain values.
        rounds: all that have published a stage, in order.
        differences: of `differences.json`; none where there is no such file.
        notes: what could not be read.
    """

    dir: Path
    recipe: dict[str, Any]
    rounds: tuple[RoundFacts, ...]
    differences: tuple[RoundDifferences, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.dir.resolve().name

    @property
    def finished(self) -> tuple[RoundFacts, ...]:
        """Rounds with a line in `rounds.jsonl`; the base's first."""
        return tuple(entry for entry in self.rounds if entry.row is not None)

    @property
    def rows(self) -> tuple[RoundRow, ...]:
        return tuple(entry.row for entry in self.rounds if entry.row is not None)

    @property
    def best(self) -> RoundFacts | None:
        """The round with the highest `best_metric` that no gate holds back; the later one of equals."""
        metric = str(self.recipe.get("best_metric", ""))
        able = [e for e in self.finished if e.row is not None and metric in e.row.metrics and e.gated is None]
        return max(able, key=lambda e: (e.row.metrics[metric], e.number)) if able else None  # type: ignore[union-attr]


def read_run(run_dir: Path) -> RunFacts:
    """Look at a run directory without touching anything.

    Raises:
        RunDirError: there is no run there, or one of a newer version, or a manifest is damaged.
    """
    run = RunReader(run_dir, hint=HOW_TO_BEGIN)
    notes: list[str] = []
    rows = {row.round: row for row in read_rounds(run_dir)}
    rounds = []
    for number in sorted({*rows, *run.rounds}):
        stages = run.stages.get(number, [])
        if stages or number in rows:
            rounds.append(_round(number, stages, rows.get(number), notes))
    return RunFacts(
        dir=run_dir,
        recipe=run.recipe,
        rounds=tuple(rounds),
        differences=_differences(run_dir, notes),
        notes=tuple(notes),
    )


def json_rows(stage: PublishedStage | None, output: str, *, most: int) -> Iterator[dict[str, Any]]:
    """Rows of a stage's output, at most so many of a file; none where there is none. A broken line is passed over."""
    for path in () if stage is None else stage.files(output):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            for line in islice(file, most):
                try:
                    value = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(value, dict):
                    yield value


def _round(number: int, stages: Sequence[PublishedStage], row: RoundRow | None, notes: list[str]) -> RoundFacts:
    evaluation, measures = None, dict(getattr(row, "measures", {}))
    for stage in stages:
        if stage.name == "evaluate":
            try:
                evaluation = next(map(read_report, stage.files("report")), None)
            except DataError as error:
                notes.append(str(error).splitlines()[0])
        elif stage.name == "measure":
            for file in stage.files("measures"):
                measures = {**measures, **_numbers(_json(file, notes))}
    return RoundFacts(number, tuple(stages), row, evaluation, measures)


def _differences(run_dir: Path, notes: list[str]) -> tuple[RoundDifferences, ...]:
    try:
        return tuple(read_differences(run_dir))
    except RunDirError as error:
        notes.append(f"{str(error).splitlines()[0]}; left out")
        return ()


def _json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        notes.append(f"{path}: not JSON ({error}); left out")
        return None


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {str(key): float(value) for key, value in values.items() if isinstance(value, int | float)}
