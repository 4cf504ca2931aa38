"""The round's page walked without running a stage: what is published, what would run, what no longer matches."""

from __future__ import annotations

import shutil
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from alignloop.artifacts import PARTIAL, Artifact, existing_parent
from alignloop.config import Recipe
from alignloop.config.bundled import resolve_base
from alignloop.engines.base import Engine
from alignloop.loop.gate import gated
from alignloop.loop.house import House, RoundHouse
from alignloop.loop.round import run_round
from alignloop.loop.round_inputs import waiting
from alignloop.loop.run import base_inputs, from_outside, next_start, prepare, sampling_policy, template_input
from alignloop.plan.estimate import NOTHING, Estimator, Expected
from alignloop.preflight import Checked, check
from alignloop.preflight.findings import Findings
from alignloop.progress import QuietProgress
from alignloop.records import RoundRow
from alignloop.report.rounds import round_row
from alignloop.run_dir.layout import require_same, round_dir
from alignloop.run_dir.reader import all_published
from alignloop.run_dir.stage import ConfigT, InputsT, OutputsT, Stage, outputs_of, standing
from alignloop.stages import base

State = Literal["published", "to do", "begun", "drift", "waits"]
NOT_MADE = "not made yet"
"""Digest of what a stage has still to make."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of one round.

    Attributes:
        name: its folder's name.
        state: `published`: taken over; `begun`: goes on where it stopped; `drift`: published from something else;
            `waits`: for people, see `changes`.
        changes: what differs, where the state is `drift`; empty where only an earlier stage's result will. What is
            asked and where, where it is `waits`.
        seconds: what it took, where it is published.
        reference: digest of DPO's reference model, where that is made already.
    """

    round: int
    name: str
    state: State
    expected: Expected
    changes: tuple[str, ...] = ()
    seconds: float | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Plan:
    """A whole run, stage by stage."""

    recipe: Recipe
    run_dir: Path
    checked: Checked
    stages: tuple[PlannedStage, ...]
    free_bytes: int

    @property
    def drifted(self) -> bool:
        """Whether `run` would refuse without `--rebuild`."""
        return any(stage.state == "drift" for stage in self.stages)


def make_plan(recipe: Recipe, *, run_dir: Path, rebuild: bool = False) -> Plan:
    """What `run` would do now. Loads no model and writes nothing.

    Args:
        rebuild: stages that no longer match are planned to be done again.

    Raises:
        UserError: with everything that is wrong in recipe, files, base and run directory.
    """
    findings = Findings()
    with findings.collecting():
        require_same(run_dir, recipe, rebuild=rebuild)
    checked: Checked | None = None
    with findings.collecting():
        checked = check(recipe)
    findings.raise_problems()
    assert checked is not None, "no problem, but nothing checked"
    stages = _walk(recipe, run_dir, checked)
    if rebuild:
        stages = [replace(stage, state="to do") if stage.state == "drift" else stage for stage in stages]
    free = shutil.disk_usage(existing_parent(run_dir)).free
    return Plan(recipe, run_dir, checked, tuple(stages), free)


def _walk(recipe: Recipe, run_dir: Path, checked: Checked) -> list[PlannedStage]:
    # A plan starts no engine: no stage runs, so nothing asks for one.
    house = House(run_dir=run_dir, seed=recipe.seed, engine=cast(Engine, None), progress=QuietProgress())
    estimator = Estimator(recipe, checked)
    metrics = {"had_template": float(bool(checked.base.had_template))}
    zero = PlannedRound(house, 0, round_dir(run_dir, 0), estimator=estimator, base_metrics=metrics)
    prepared = prepare(zero, recipe, base_inputs=_base_inputs(recipe, run_dir))
    start, stages = prepared.start, list(zero.planned)
    rows = [round_row(run_dir, 0, policy=prepared.base, stderr={})]
    policies = {0: start.policy}
    for number in range(1, recipe.rounds + 1):
        if number > 1:
            start = replace(start, policy=_policy(recipe, rows, policies, run_dir))
        waits = _waiting_lines(recipe, run_dir, number)
        room = PlannedRound(house, number, round_dir(run_dir, number), estimator=estimator, waits=waits)
        start = replace(start, outside=from_outside(recipe, run_dir, number))
        end = run_round(room, recipe, start)
        policies[number] = end.policy
        rows.append(_gated(round_row(run_dir, number, policy=end.policy, stderr={}), rows, recipe))
        stages += room.planned
        start = next_start(recipe, start, end, passed=rows[-1].gated is None)
    return stages


def _base_inputs(recipe: Recipe, run_dir: Path) -> base.Inputs:
    """The base, unread where nothing was made of it yet: digesting a large one takes minutes."""
    if all_published(run_dir, [0], stage="base"):
        return base_inputs(recipe)
    return base.Inputs(Artifact(Path(resolve_base(recipe.base)).expanduser(), NOT_MADE), template_input(recipe))


def _waiting_lines(recipe: Recipe, run_dir: Path, number: int) -> tuple[str, ...]:
    wait = waiting(recipe.model_dump(mode="json"), run_dir, number)
    return () if wait is None else (wait.line, f"read   {wait.files.questions}", f"write  {wait.files.answers}")


def _policy(recipe: Recipe, rows: list[RoundRow], policies: Mapping[int, Artifact], run_dir: Path) -> Artifact:
    if all(recipe.best_metric in row.metrics for row in rows):
        return sampling_policy(recipe, rows, policies)
    return Artifact(run_dir / "best", NOT_MADE)


def _gated(row: RoundRow, earlier: list[RoundRow], recipe: Recipe) -> RoundRow:
    """As the run has it, as far as its benchmarks are published."""
    measured = all(row.metrics for row in (row, *earlier))
    return gated(row, earlier, recipe) if measured else row


@dataclass
class PlannedRound(RoundHouse):
    """Looks at every stage instead of running it; what is not published yet is stood in for."""

    estimator: Estimator | None = None
    base_metrics: dict[str, float] = field(default_factory=dict)
    planned: list[PlannedStage] = field(default_factory=list)
    waits: tuple[str, ...] = ()

    def run(self, stage: Stage[ConfigT, InputsT, OutputsT], config: ConfigT, inputs: InputsT) -> OutputsT:
        place = self.next_place(stage.name)
        folder = place.dir
        found = standing(stage.name, config, inputs, place=place)
        reference = _digest(getattr(inputs, "reference", None))
        expected = self.estimator.of(stage.name, number=self.number) if self.estimator else NOTHING
        if found.published is not None:
            seconds = sum(found.published.seconds.values())
            self._note(folder.name, "published", expected, seconds=seconds, reference=reference)
            return outputs_of(stage, folder, found.published)
        if found.changes:
            # What only follows from an earlier stage's drift is not listed again.
            changes = [change for change in found.changes if not change.endswith(NOT_MADE)]
            self._note(folder.name, "drift", expected, changes=tuple(changes), reference=reference)
        else:
            begun = folder.with_name(folder.name + PARTIAL).is_dir()
            state: State = "begun" if begun else "to do"
            if self.waits and stage.name == "collect":
                state = "waits"
            changes = list(self.waits) if state == "waits" else []
            self._note(folder.name, state, expected, changes=tuple(changes), reference=reference)
        return _stand_in(stage, folder, metrics=self.base_metrics if stage.name == "base" else {})

    def _note(self, name: str, state: State, expected: Expected, **more: Any) -> None:
        self.planned.append(PlannedStage(self.number, name, state, expected, **more))


def _digest(artifact: Artifact | None) -> str | None:
    return None if artifact is None or artifact.digest == NOT_MADE else artifact.digest


def _stand_in(stage: Stage[Any, Any, OutputsT], folder: Path, *, metrics: dict[str, float]) -> OutputsT:
    """Outputs whose artifacts are not made yet."""
    values: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(stage.outputs).items():
        if name in ("counts", "metrics", "facts"):
            continue
        artifact = Artifact(folder.absolute() / name, NOT_MADE)
        values[name] = (artifact,) if typing.get_origin(kind) is tuple else artifact
    return stage.outputs(**values, metrics=metrics)
