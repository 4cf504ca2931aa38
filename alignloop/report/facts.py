"""A run as its report needs it: read from published files alone, every part of it optional."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from alignloop.errors import DataError, RunDirError
from alignloop.evaluation.comparing import RoundDifferences, read_differences
from alignloop.evaluation.report import EvalReport, read_report
from alignloop.records import RoundRow
from alignloop.report.rounds import seconds_by_activity
from alignloop.run_dir.reader import HOW_TO_BEGIN, PublishedStage, RunReader, read_rounds

T = TypeVar("T")
STDERR = "_stderr"
"""What ends the name of a measure's standard error."""


class Number(NamedTuple):
    value: float
    stderr: float | None = None


ByRound = Mapping[int, Number | None]
"""A figure by the round's number; None where the round does not have it."""


@dataclass(frozen=True)
class RoundRecord:
    """A round, finished or not.

    Attributes:
        row: its line of `rounds.jsonl`; None where it is not finished.
        evaluation: with the test tasks, where it was asked them; None where it has none, or one that cannot be read.
        measures: value by name, standard errors too (`name_stderr`); empty where nothing was measured.
    """

    number: int
    stages: tuple[PublishedStage, ...]
    row: RoundRow | None
    evaluation: EvalReport | None = None
    measures: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str) -> PublishedStage | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def label(self) -> str:
        return round_label(self.number)

    @property
    def metrics(self) -> dict[str, float]:
        """The benchmarks' figures; none where the round is not finished."""
        return {} if self.row is None else self.row.metrics

    @property
    def groups(self) -> dict[str, list[str]]:
        """The benchmarks' groups with their tasks, as far as its evaluation can be read."""
        return {} if self.evaluation is None else self.evaluation.protocol.groups

    @property
    def seconds(self) -> dict[str, float]:
        return seconds_by_activity(stage.manifest for stage in self.stages)

    def figure(self, key: str) -> Number | None:
        """A benchmark's figure, or one beside them: of the stage `measure`, or of the reward model's own stages."""
        if self.row is not None and key in self.row.metrics:
            value, stderr = self.row.metrics[key], self.row.stderr.get(key)
        else:
            of_reward_model = {} if self.row is None else self.row.reward_model
            value, stderr = self.measures.get(key, of_reward_model.get(key, math.nan)), self.measures.get(key + STDERR)
        if not math.isfinite(value):
            return None
        return Number(value, stderr if stderr is not None and math.isfinite(stderr) else None)


@dataclass(frozen=True)
class RunRecord:
    """A run: its `recipe` as resolved, plain values; all `rounds` that have published a stage, in order; its
    `differences`, empty without a differences.json; `notes` on what could not be read."""

    dir: Path
    recipe: dict[str, Any]
    rounds: tuple[RoundRecord, ...]
    differences: tuple[RoundDifferences, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.dir.resolve().name

    @property
    def finished(self) -> tuple[RoundRecord, ...]:
        """Rounds with a line in `rounds.jsonl`; the base's first."""
        return tuple(entry for entry in self.rounds if entry.row is not None)

    @property
    def num_done(self) -> int:
        """The last finished round; 0 where only the base is measured, or nothing."""
        return max((entry.number for entry in self.finished), default=0)

    @property
    def seconds(self) -> float:
        return sum(sum(entry.seconds.values()) for entry in self.rounds)

    @property
    def best(self) -> RoundRecord | None:
        """The round with the highest `best_metric` that no gate holds back; the later one of equals."""
        metric = str(self.recipe.get("best_metric", ""))
        able = [e for e in self.finished if metric in e.metrics and (e.row is None or e.row.gated is None)]
        return max(able, key=lambda e: (e.metrics[metric], e.number)) if able else None

    @property
    def shown(self) -> RoundRecord | None:
        """The round that stands for the run: the best, or else the last."""
        return self.best or (self.finished[-1] if self.finished else None)


def read_run(run_dir: Path) -> RunRecord:
    """Look at a run directory without touching anything; RunDirError where there is no run or one of a newer version,
    or a manifest is damaged."""
    run = RunReader(run_dir, hint=HOW_TO_BEGIN)
    notes: list[str] = []
    rows = {row.round: row for row in read_rounds(run_dir)}
    rounds = [
        _round(number, run.stages.get(number, []), rows.get(number), notes)
        for number in sorted({*rows, *run.rounds})
        if run.stages.get(number) or number in rows
    ]
    try:
        differences = tuple(read_differences(run_dir))
    except RunDirError as error:
        notes.append(f"{str(error).splitlines()[0]}; left out")
        differences = ()
    return RunRecord(run_dir, run.recipe, tuple(rounds), differences, tuple(notes))


def by_round(rounds: Sequence[RoundRecord], key: str) -> ByRound:
    return {entry.number: entry.figure(key) for entry in rounds}


def evenly(rounds: Sequence[T], *, most: int) -> list[T]:
    """At most so many rounds, the first and the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[round(index * (len(rounds) - 1) / (most - 1))] for index in range(most)]


def round_label(number: int) -> str:
    return "base" if number == 0 else str(number)


def json_rows(stage: PublishedStage | None, output: str, *, most: int) -> Iterator[dict[str, Any]]:
    """The objects in a stage's output, at most so many lines a file. A broken line is passed over."""
    for path in stage.files(output) if stage is not None else ():
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


def _round(number: int, stages: Sequence[PublishedStage], row: RoundRow | None, notes: list[str]) -> RoundRecord:
    evaluation: EvalReport | None = None
    measures = {} if row is None else dict(row.measures)
    for stage in stages:
        for path in stage.files("report") if stage.name in ("evaluate", "evaluate_test") else ():
            try:
                evaluation = _with_test(evaluation, read_report(path))
            except DataError as error:
                notes.append(str(error).splitlines()[0])
        for path in stage.files("measures") if stage.name == "measure" else ():
            measures |= _measures(path, notes)
    return RoundRecord(number, tuple(stages), row, evaluation, measures)


def _with_test(dev: EvalReport | None, test: EvalReport) -> EvalReport:
    """Benchmarks that were asked in two stages as one report; each keeps its own protocol."""
    if dev is None:
        return test
    protocol = {name: {**getattr(dev.protocol, name), **getattr(test.protocol, name)} for name in ("tasks", "groups")}
    figures = {name: {**getattr(dev, name), **getattr(test, name)} for name in ("metrics", "stderr", "counts")}
    return dev.model_copy(update={**figures, "protocol": dev.protocol.model_copy(update=protocol)})


def _measures(path: Path, notes: list[str]) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        values = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        notes.append(f"{path}: not JSON ({error}); left out")
        return {}
    items = values.items() if isinstance(values, dict) else ()
    return {str(key): float(value) for key, value in items if isinstance(value, int | float)}
