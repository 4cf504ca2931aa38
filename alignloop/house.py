"""Where a run's stages lie, and the line each leaves on the screen."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from alignloop.artifacts import PARTIAL, Manifest, existing_parent, read_manifest
from alignloop.config.training import TrainingConfig
from alignloop.engines.base import Engine
from alignloop.errors import DiskFullError
from alignloop.progress import Progress
from alignloop.stage import ConfigT, InputsT, OutputsT, Place, Stage, run_stage

LINE_WIDTH = 80


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

    def run(self, stage: Stage[ConfigT, InputsT, OutputsT], config: ConfigT, inputs: InputsT) -> OutputsT:
        """Run `stage` as the round's next, or take over what it has published."""
        place = Place(self.dir / f"{len(self._stages) + 1:02d}_{stage.name}", self.number, self.house.seed)
        self._stages.append(place.dir.name)
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
        )
        after = read_manifest(place.dir)
        assert after is not None, f"{place.dir} is not published"
        self.house.progress.say(stage_line(place.dir.name, after, cached=before == after))
        return outputs


def round_dir(run_dir: Path, number: int) -> Path:
    """`<run>/round-NN`."""
    return run_dir / f"round-{number:02d}"


def stage_dirs(run_dir: Path, number: int) -> list[Path]:
    """Published stages of a round, in order."""
    folder = round_dir(run_dir, number)
    if not folder.is_dir():
        return []
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.endswith(PARTIAL) and read_manifest(d))


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
