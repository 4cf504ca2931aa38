"""What a run would do: a dry pass over its rounds, which looks at every stage as the run does."""

from __future__ import annotations

import shutil
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from alignloop.artifacts import Artifact, existing_parent
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import resolve_base
from alignloop.config.load import sound_part
from alignloop.engines.base import Engine
from alignloop.errors import RecipeError
from alignloop.evaluation.comparing import Measured, read_measured
from alignloop.loop.check import Checked, check
from alignloop.loop.estimate import Estimator, Expected
from alignloop.loop.round_inputs import waiting
from alignloop.loop.rounds import Ending, ask_best, best_round, gate_metrics, gated, run_rounds, sampling_policy
from alignloop.progress import QuietProgress
from alignloop.records import RoundRow
from alignloop.report.rounds import round_row
from alignloop.run_dir.layout import require_same
from alignloop.run_dir.manifest import NO_ARTIFACTS, Manifest
from alignloop.run_dir.reader import all_published
from alignloop.run_dir.stage import ConfigT, InputsT, Outputs, OutputsT, Standing
from alignloop.stages import base, evaluate
from alignloop.stages.facts import Findings, ProblemsError
from alignloop.stages.runner import StageRunner

State = Literal["published", "to do", "begun", "drift", "waits"]
NOT_MADE = "not made yet"
"""Digest of a stage's missing output."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of one round.

    Attributes:
        name: its folder's name.
        state: `published`: taken over; `begun`: goes on where it stopped; `drift`: published from something else;
            `waits`: for people, see `changes`.
        changes: under `drift`, what differs: empty where only an earlier stage's result will; under `waits`, what is
            asked and where.
        seconds: what it took, where it is published.
        reference: digest of DPO's reference model, where that exists.
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
    recipe: Recipe
    run_dir: Path
    checked: Checked
    stages: tuple[PlannedStage, ...]
    free_bytes: int

    @property
    def drifted(self) -> bool:
        return any(stage.state == "drift" for stage in self.stages)


def recipe_or_problems(source: str, *, overrides: Sequence[str], rounds: int | None) -> Recipe:
    """The recipe; where it is wrong, raises UserError with all problems of the recipe, its files and its base."""
    more = [*overrides] if rounds is None else [*overrides, f"rounds={rounds}"]
    try:
        return load_recipe(source, overrides=more)
    except RecipeError as error:
        sound = sound_part(source, overrides=more)
        if sound is None:
            raise
        alone = Findings()
        with alone.collecting():
            check(sound)
        if not alone.problems:
            raise
        raise ProblemsError([*error.problems, *alone.problems]) from error


def make_plan(recipe: Recipe, *, run_dir: Path, rebuild: bool = False) -> Plan:
    """What `run` would do now; loads no model and writes nothing. With `rebuild`, stages that no longer match are
    planned anew. Raises UserError with everything that is wrong in recipe, files, base and run directory."""
    findings = Findings()
    with findings.collecting():
        require_same(run_dir, recipe, rebuild=rebuild)
    checked: Checked | None = None
    with findings.collecting():
        checked = check(recipe)
    findings.raise_problems()
    assert checked is not None, "no problem, but nothing checked"
    stages = planned_stages(recipe, run_dir, checked, rebuild=rebuild)
    free = shutil.disk_usage(existing_parent(run_dir)).free
    return Plan(recipe, run_dir, checked, tuple(stages), free)


def planned_stages(recipe: Recipe, run_dir: Path, checked: Checked, *, rebuild: bool = False) -> list[PlannedStage]:
    stages = DryRunner(
        recipe,
        run_dir,
        cast(Engine, None),  # no stage runs, so nothing asks for one
        QuietProgress(),
        rebuild=rebuild,
        had_template=bool(checked.base.had_template),
        estimator=Estimator(recipe, checked),
    )

    measured: dict[int, Measured] = {}

    def ended(number: int, ending: Ending, earlier: list[RoundRow]) -> RoundRow:
        """As in the run, as far as its benchmarks are published."""
        row, evaluation = round_row(run_dir, number, policy=ending.policy, stderr={}), ending.evaluation
        if not gate_metrics(recipe) or evaluation is None or not all(each.metrics for each in (row, *earlier)):
            return row
        measured[number] = read_measured(evaluation.report.path, evaluation.samples.path, name=f"round {number}")
        return gated(row, earlier, recipe, measured=measured) if earlier else row

    rows = run_rounds(stages, base_inputs=_base_inputs(recipe, run_dir), ended=ended, choose=_policy)
    if _all_asked(recipe, rows):
        best = best_round(rows, recipe.best_metric)
        if not any(stage.round == best.round and stage.name.endswith(evaluate.TEST.name) for stage in stages.planned):
            ask_best(stages, best)
    return sorted(stages.planned, key=lambda stage: stage.round)


def _base_inputs(recipe: Recipe, run_dir: Path) -> base.Inputs:
    """The base, unread where nothing was made of it yet: digesting a large one takes minutes."""
    if all_published(run_dir, [0], stage="base"):
        return base.inputs(recipe)
    folder = Path(resolve_base(recipe.base)).expanduser()
    return base.Inputs(Artifact(folder, NOT_MADE), base.template_input(recipe))


def _policy(recipe: Recipe, rows: Sequence[RoundRow], policies: Mapping[int, Artifact]) -> Artifact:
    is_known = recipe.sample.policy != "best" and not gate_metrics(recipe)
    if is_known or _all_asked(recipe, rows):
        return sampling_policy(recipe, rows, policies)
    return Artifact(policies[0].path / "best", NOT_MADE)


def _all_asked(recipe: Recipe, rows: Sequence[RoundRow]) -> bool:
    """Whether the benchmarks that the rounds are to have are published."""
    return all(recipe.best_metric in row.metrics for row in rows if recipe.evaluates(row.round))


@dataclass
class DryRunner(StageRunner):
    """Looks at every stage instead of running it; unpublished outputs are stood in for."""

    had_template: bool = False
    estimator: Estimator | None = None
    planned: list[PlannedStage] = field(default_factory=list)

    def make(self, found: Standing[ConfigT, InputsT, OutputsT]) -> OutputsT:
        # What only follows from an earlier stage's drift is not listed again.
        changes = tuple(change for change in found.changes if not change.endswith(NOT_MADE))
        waits = self._waits() if found.stage.name == "collect" and not found.changes else ()
        state: State = "to do"
        if found.changes and not self.rebuild:
            state = "drift"
        elif waits:
            state = "waits"
        elif not found.changes and found.location.partial.is_dir():
            state = "begun"
        self._note(found, state, changes=changes or waits)
        return self._stand_in(found)

    def take_over(self, found: Standing[Any, Any, Any], outputs: Outputs, manifest: Manifest) -> None:
        self._note(found, "published", seconds=sum(manifest.seconds.values()))

    def _note(self, found: Standing[Any, Any, Any], state: State, **more: Any) -> None:
        expected = Expected() if self.estimator is None else self.estimator.of(found.stage.name, number=self.number)
        reference: Artifact | None = getattr(found.inputs, "reference", None)
        digest = None if reference is None or reference.digest == NOT_MADE else reference.digest
        name = found.location.dir.name
        self.planned.append(PlannedStage(self.number, name, state, expected, reference=digest, **more))

    def _waits(self) -> tuple[str, ...]:
        wait = waiting(self.recipe.model_dump(mode="json"), self.run_dir, self.number)
        return () if wait is None else (wait.line, f"read   {wait.files.questions}", f"write  {wait.files.answers}")

    def _stand_in(self, found: Standing[Any, Any, OutputsT]) -> OutputsT:
        values: dict[str, Any] = {}
        for name, kind in typing.get_type_hints(found.stage.outputs).items():
            if name not in NO_ARTIFACTS:
                artifact = Artifact(found.location.dir.absolute() / name, NOT_MADE)
                values[name] = (artifact,) if typing.get_origin(kind) is tuple else artifact
        return found.stage.outputs(**values, metrics={"had_template": float(self.had_template)})
