"""Where a run's stages lie, and the line each leaves on the screen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alignloop.artifacts import Artifact, Manifest, existing_parent, read_manifest, size_of
from alignloop.config.training import TrainingConfig
from alignloop.engines.base import Engine
from alignloop.errors import DiskFullError
from alignloop.evaluation.comparing import forget_differences
from alignloop.progress import Progress
from alignloop.run_dir.layout import round_dir, stage_folder
from alignloop.run_dir.rounds_file import forget_rounds
from alignloop.run_dir.stage import ConfigT, InputsT, OutputsT, Place, Stage, artifacts_of, package_versions, run_stage
from alignloop.run_dir.verification import Verified

LINE_WIDTH = 80
SMALL = 16_000_000
"""Bytes."""


@dataclass
class House:
    """A run directory with what every stage needs.

    Attributes:
        training: how the training stages use the machine.
        rebuild: redo published stages that no longer match, instead of refusing.
    """

    run_dir: Path
    seed: int
    engine: Engine
    progress: Progress
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rebuild: bool = False
    _said: set[str] = field(default_factory=set)

    @cached_property
    def verified(self) -> Verified:
        """What of the run directory is known to be whole."""
        return Verified(self.run_dir, say=self.progress.say)

    def note_versions(self, stage: str, manifest: Manifest) -> None:
        """Say, once a run, which packages are not those that a stage taken over was made with."""
        now = package_versions()
        changes = [
            f"{name} {manifest.versions.get(name, '(none)')} -> {now.get(name, '(none)')}"
            for name in sorted({*manifest.versions, *now})
            if manifest.versions.get(name) != now.get(name)
        ]
        new = [change for change in changes if change not in self._said]
        if new and manifest.versions:
            self._said.update(new)
            self.progress.say(f"  note: other packages than when {stage} was published: {', '.join(new)}")

    def round(self, number: int) -> RoundHouse:
        """The rooms of one round; round 0 holds what comes before the first."""
        return RoundHouse(house=self, number=number, dir=round_dir(self.run_dir, number))


@dataclass
class RoundHouse:
    """Runs a round's stages in order, each in its numbered folder."""

    house: House
    number: int
    dir: Path
    _stages: list[str] = field(default_factory=list)

    def next_place(self, stage: str) -> Place:
        """Where the round's next stage is published, by its name."""
        folder = self.dir / stage_folder(len(self._stages) + 1, stage)
        self._stages.append(stage)
        house = self.house
        return Place(folder, self.number, house.seed, occurrence=self._stages.count(stage), run_dir=house.run_dir)

    def run(self, stage: Stage[ConfigT, InputsT, OutputsT], config: ConfigT, inputs: InputsT) -> OutputsT:
        """Run `stage` as the round's next, or take over what it has published."""
        place = self.next_place(stage.name)
        before = read_manifest(place.dir)
        if before is None:
            self.house.progress.say(f"  {place.dir.name} ...")
        outputs = run_stage(
            stage,
            config,
            inputs,
            place=place,
            engine=self.house.engine,
            progress=self.house.progress,
            training=self.house.training,
            rebuild=self.house.rebuild,
            before_run=self._begin,
        )
        after = read_manifest(place.dir)
        assert after is not None, f"{place.dir} is not published"
        self._verify(artifacts_of(outputs), was_there=before == after)
        if before == after:
            self.house.note_versions(f"{self.dir.name}/{place.dir.name}", after)
        self.house.progress.say(stage_line(place.dir.name, after, cached=before == after))
        return outputs

    def _verify(self, outputs: Sequence[Artifact], *, was_there: bool) -> None:
        """What is small the run itself reads back; what is large is looked at where a stage takes it."""
        if was_there:
            self.house.verified.require(artifact for artifact in outputs if size_of(artifact.path) <= SMALL)
        else:
            self.house.verified.note(outputs)

    def _begin(self, taken: Sequence[Artifact]) -> None:
        """A stage that runs takes whole files, and what is said of its round, and of all later ones, goes."""
        self.house.verified.require(taken)
        forget_rounds(self.house.run_dir, self.number)
        forget_differences(self.house.run_dir, self.number)


def stage_line(name: str, manifest: Manifest, *, cached: bool) -> str:
    """One line: the stage, its time, its rows, and as many of its metrics as a screen is wide."""
    counts = manifest.counts
    facts = []
    if "in" in counts:
        facts.append(f"{counts['kept']:,} of {counts['in']:,} rows kept")
    facts += [f"{key} {value:.3g}" for key, value in manifest.metrics.items()]
    time = "cached" if cached else f"{sum(manifest.seconds.values()):.1f} s"
    line = f"  {name:<18}{time:>8}  {facts[0] if facts else ''}".rstrip()
    for fact in facts[1:]:
        if len(line) + len(fact) + 2 > LINE_WIDTH:
            break
        line += f", {fact}"
    return line


def require_space(folder: Path, *, needed_bytes: int) -> None:
    """Refuse to start where the disk cannot hold the run.

    Raises:
        DiskFullError: fewer than `needed_bytes` are free.
    """
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed_bytes:
        raise DiskFullError(folder, needed_bytes=needed_bytes, free_bytes=free)
