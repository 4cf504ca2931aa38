"""Runs a recipe's stages in its run directory, round by round, and prints a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact, size_of
from alignloop.config.recipe import Recipe
from alignloop.engines.base import Engine
from alignloop.evaluation.comparing import forget_differences
from alignloop.progress import Progress
from alignloop.records import round_name
from alignloop.run_dir.layout import round_dir, stage_folder
from alignloop.run_dir.manifest import Manifest, artifacts_of, package_versions
from alignloop.run_dir.reader import forget_rounds
from alignloop.run_dir.sharing import TAKEN_FROM, take_from
from alignloop.run_dir.stage import (
    ConfigT,
    InputsT,
    Location,
    Outputs,
    OutputsT,
    Stage,
    Standing,
    make_stage,
    standing,
)
from alignloop.run_dir.verification import Verified

LINE_WIDTH = 80
SMALL = 16_000_000
"""Bytes."""


@dataclass
class StageRunner:
    """Runs stages in order, each in its numbered folder of round `number`; 0 holds what comes before the first. With
    `rebuild`, published stages that no longer match are redone instead of refused; what one of the runs `share_with`
    made from the same things is taken over from there."""

    recipe: Recipe
    run_dir: Path
    engine: Engine
    progress: Progress
    rebuild: bool = False
    share_with: tuple[Path, ...] = ()
    number: int = 0
    _names: dict[int, list[str]] = field(default_factory=dict)
    """The stages of each round so far."""
    _noted: set[str] = field(default_factory=set)

    @cached_property
    def verified(self) -> Verified:
        return Verified(self.run_dir, say=self.progress.say)

    def round(self, number: int) -> StageRunner:
        """Begin a round: its stages are numbered from 1."""
        self.number, self._names[number] = number, []
        return self

    def back_to(self, number: int) -> StageRunner:
        """Go on with a round that has ended."""
        self.number = number
        return self

    def run(self, stage: Stage[ConfigT, InputsT, OutputsT], inputs: InputsT) -> OutputsT:
        found = self._standing(stage, inputs)
        self._names[self.number].append(stage.name)
        if found.published is None:
            return self.make(found)
        outputs = found.outputs(found.published)
        self.take_over(found, outputs, found.published)
        return outputs

    def run_due(self, stage: Stage[ConfigT, InputsT, OutputsT], inputs: InputsT, *, is_due: bool) -> OutputsT | None:
        """`run`; of a stage that is not due what an earlier call has published stands, None where there is nothing."""
        if not is_due and self._standing(stage, inputs).published is None:
            return None
        return self.run(stage, inputs)

    def _standing(
        self, stage: Stage[ConfigT, InputsT, OutputsT], inputs: InputsT
    ) -> Standing[ConfigT, InputsT, OutputsT]:
        """Of the round's next stage."""
        names = self._names.setdefault(self.number, [])
        location = Location(
            round_dir(self.run_dir, self.number) / stage_folder(len(names) + 1, stage.name),
            self.number,
            self.recipe.seed,
            occurrence=names.count(stage.name) + 1,
            run_dir=self.run_dir,
        )
        return standing(stage, stage.settings(self.recipe), inputs, location=location)

    def make(self, found: Standing[ConfigT, InputsT, OutputsT]) -> OutputsT:
        """Run a stage that is not published, or published from something else."""
        folder = found.location.dir.name
        if found.known is None:
            self.progress.say(f"  {folder} ...")
        manifest = make_stage(
            found,
            engine=self.engine,
            progress=self.progress,
            training=self.recipe.training,
            rebuild=self.rebuild,
            before_run=self.verified.require if found.stage.is_leaf else self._begin,
            shared=self._shared,
        )
        outputs = found.outputs(manifest)
        self.verified.note(artifacts_of(outputs))
        if TAKEN_FROM in manifest.facts:
            self._note_versions(f"{round_name(self.number)}/{folder}", manifest)
        self.progress.say(stage_line(folder, manifest, cached=False))
        return outputs

    def take_over(self, found: Standing[Any, Any, Any], outputs: Outputs, manifest: Manifest) -> None:
        """Small artifacts are read back; large ones are checked when a stage takes them."""
        folder = found.location.dir.name
        self.verified.require(artifact for artifact in artifacts_of(outputs) if size_of(artifact.path) <= SMALL)
        self._note_versions(f"{round_name(self.number)}/{folder}", manifest)
        self.progress.say(stage_line(folder, manifest, cached=True))

    def _shared(self, found: Standing[Any, Any, Any]) -> Manifest | None:
        return take_from(self.share_with, found, say=self.progress.say)

    def _begin(self, taken: Sequence[Artifact]) -> None:
        """A running stage takes whole files; the lines of its round, and of all later ones, are removed."""
        self.verified.require(taken)
        forget_rounds(self.run_dir, self.number)
        forget_differences(self.run_dir, self.number)

    def _note_versions(self, stage: str, manifest: Manifest) -> None:
        """Once a run, note packages of other versions than a stage taken over was made with."""
        now = package_versions()
        changes = [
            f"{name} {manifest.versions.get(name, '(none)')} -> {now.get(name, '(none)')}"
            for name in sorted({*manifest.versions, *now})
            if manifest.versions.get(name) != now.get(name)
        ]
        new = [change for change in changes if change not in self._noted]
        if new and manifest.versions:
            self._noted.update(new)
            self.progress.say(f"  note: other packages than when {stage} was published: {', '.join(new)}")


def stage_line(name: str, manifest: Manifest, *, cached: bool) -> str:
    """One line: the stage, its time, its rows, and as many of its metrics as a screen is wide."""
    counts = manifest.counts
    taken_from = None if cached else manifest.facts.get(TAKEN_FROM)
    time = "cached" if cached else "shared" if taken_from else f"{sum(manifest.seconds.values()):.1f} s"
    facts = [f"from {Path(taken_from).parent.parent.name}"] if taken_from else []
    if "in" in counts:
        facts.append(f"{counts['kept']:,} of {counts['in']:,} rows kept")
    facts += [f"{key} {value:.3g}" for key, value in manifest.metrics.items()]
    line = f"  {name:<18}{time:>8}  {facts[0] if facts else ''}".rstrip()
    for fact in facts[1:]:
        if len(line) + len(fact) + 2 > LINE_WIDTH:
            break
        line += f", {fact}"
    return line
