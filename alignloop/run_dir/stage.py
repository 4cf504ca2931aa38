"""The interface of every stage: fingerprint inputs and config, skip if published, run, publish.

    run(config, inputs, ctx) -> Outputs

`Inputs` and `Outputs` are frozen dataclasses. Their fields are artifacts, tuples of artifacts, None or plain values; a
stage writes only under `ctx.dir` and never looks up another stage's path.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from alignloop.artifacts import (
    Artifact,
    derive_seed,
    disk_errors_named,
    fingerprint,
    remove_path,
    stage_seed,
    write_text,
)
from alignloop.config.recipe import Recipe
from alignloop.config.training import TrainingConfig
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.errors import DriftError, RunDirError
from alignloop.progress import Progress
from alignloop.run_dir.layout import LOCK, STAGE_FOLDER, round_dir, round_numbers, unpublished
from alignloop.run_dir.manifest import (
    MANIFEST,
    PARTIAL,
    ArtifactRecord,
    Manifest,
    artifacts_of,
    changes_since,
    check_whole,
    describe,
    package_versions,
    publish,
    read_manifest,
    recorded_inputs,
    recorded_outputs,
    redo,
)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Base of every stage's outputs.

    Attributes:
        counts: rows `in`, `kept`, `dropped` and drops by rule; `in == kept + dropped` where all three stand.
        facts: what a reader of the manifest must know of how the result came about, JSON-able.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets besides its config and inputs.

    Attributes:
        dir: the only folder it writes in; its content survives a crash.
        seed: from (run seed, round, stage name, occurrence).
        round: 0 for what comes before the first round.
        engine: starts when first used.
        training: how the training stages use the machine; of it results depend on the layout alone, which is in their
            settings.
        name: the stage's, for dropped rows.
    """

    dir: Path
    seed: int
    round: int
    engine: Engine
    progress: Progress
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seconds: dict[str, float] = field(default_factory=dict)
    name: str = ""

    def artifact(self, name: str) -> Artifact:
        return Artifact.of(self.dir / name)

    def write_rows(self, name: str, rows: Iterable[BaseModel]) -> Artifact:
        dump_jsonl(self.dir / name, rows)
        return self.artifact(name)

    def write_any_rows(self, name: str, rows: Sequence[BaseModel]) -> tuple[Artifact, ...]:
        """As `write_rows`, but no file where there are no rows."""
        return (self.write_rows(name, rows),) if rows else ()

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Count the wall seconds spent inside under `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


ConfigT = TypeVar("ConfigT")
InputsT = TypeVar("InputsT")
OutputsT = TypeVar("OutputsT", bound=Outputs)


@dataclass(frozen=True)
class Stage(Generic[ConfigT, InputsT, OutputsT]):
    """A step of a round; its settings are what it is fingerprinted by. Nothing is made of what a leaf publishes: it is
    done again alone."""

    name: str
    inputs: type[InputsT]
    outputs: type[OutputsT]
    settings: Callable[[Recipe], ConfigT]
    run: Callable[[ConfigT, InputsT, StageContext], OutputsT]
    is_leaf: bool = False


@dataclass(frozen=True)
class Location:
    """Where a stage is published, and what its seed is derived from beside its name. `occurrence` is 1 for the first
    stage of its name in the round; `run_dir` is None where the stage stands alone."""

    dir: Path
    round: int
    run_seed: int
    occurrence: int = 1
    run_dir: Path | None = None

    @property
    def partial(self) -> Path:
        return self.dir.with_name(self.dir.name + PARTIAL)

    def seed(self, stage: str) -> int:
        return stage_seed(self.run_seed, round=self.round, stage=stage, occurrence=self.occurrence)


@dataclass(frozen=True)
class Standing(Generic[ConfigT, InputsT, OutputsT]):
    """A wanted stage, and what is published at its location.

    Attributes:
        described: what its result depends on.
        known: the published manifest; None where there is none.
        changes: the fields in which that was made from something else; empty where it can be taken over.
    """

    stage: Stage[ConfigT, InputsT, OutputsT]
    config: ConfigT
    inputs: InputsT
    location: Location
    described: dict[str, Any]
    known: Manifest | None = None
    changes: tuple[str, ...] = ()

    @property
    def published(self) -> Manifest | None:
        """The manifest of what can be taken over; None where the stage has to run."""
        return None if self.changes else self.known

    def outputs(self, manifest: Manifest) -> OutputsT:
        folder = self.location.dir

        def artifact(record: ArtifactRecord) -> Artifact:
            return Artifact(path=folder.resolve() / record.path, digest=record.digest, rows=record.rows)

        values: dict[str, Any] = {}
        for name, record in manifest.outputs.items():
            values[name] = tuple(artifact(r) for r in record) if isinstance(record, list) else artifact(record)
        try:
            return self.stage.outputs(**values, counts=manifest.counts, metrics=manifest.metrics, facts=manifest.facts)
        except TypeError as error:
            raise RunDirError(
                f"{folder / MANIFEST}: its outputs are not those of {self.stage.name} ({', '.join(values) or 'none'}); "
                f"remove {folder} and run again to redo the stage"
            ) from error


def standing(
    stage: Stage[ConfigT, InputsT, OutputsT], config: ConfigT, inputs: InputsT, *, location: Location
) -> Standing[ConfigT, InputsT, OutputsT]:
    """Whether a stage is published there, made from these things; raises RunDirError where its files were changed or
    never published."""
    folder = location.dir
    described = describe(config, inputs, seed=location.seed(stage.name))
    known = read_manifest(folder)
    if known is None:
        if problem := unpublished(folder):  # else it would be found out after the stage has run
            raise RunDirError(f"{problem}: the run directory was changed from outside. {redo(folder)}")
        return Standing(stage, config, inputs, location, described)
    changes = changes_since(known, described)
    if not changes:
        check_whole(folder, known)
    elif known.seed == derive_seed(location.run_seed, location.round, folder.name):
        before = "an earlier alignloop derived it from the folder's number"
        changes = tuple(f"{each} ({before})" if each.startswith("seed: ") else each for each in changes)
    return Standing(stage, config, inputs, location, described, known, changes)


def run_stage(
    stage: Stage[ConfigT, InputsT, OutputsT],
    config: ConfigT,
    inputs: InputsT,
    *,
    location: Location,
    engine: Engine,
    progress: Progress,
    training: TrainingConfig | None = None,
    rebuild: bool = False,
) -> OutputsT:
    """Run a stage, or take over what it has published; raises as `standing` and `make_stage`."""
    found = standing(stage, config, inputs, location=location)
    if found.published is not None:
        return found.outputs(found.published)
    return found.outputs(make_stage(found, engine=engine, progress=progress, training=training, rebuild=rebuild))


def make_stage(
    found: Standing[ConfigT, InputsT, OutputsT],
    *,
    engine: Engine,
    progress: Progress,
    training: TrainingConfig | None = None,
    rebuild: bool = False,
    before_run: Callable[[Sequence[Artifact]], None] | None = None,
    shared: Callable[[Standing[ConfigT, InputsT, OutputsT]], Manifest | None] = lambda found: None,
) -> Manifest:
    """Run a stage that cannot be taken over, and publish it; `before_run` is called with its input artifacts, before
    anything is changed. Where `shared` publishes it from elsewhere it does not run. Raises DriftError where it is
    published from other config or inputs, and `rebuild` is false."""
    stage, location = found.stage, found.location
    if found.changes and not rebuild:
        raise DriftError(
            f"{location.dir}: published from something else than what this run asks for:\n"
            + "\n".join(f"  - {change}" for change in found.changes)
            + "\nPut it back, choose another --run-dir, or pass --rebuild to redo this stage"
            + (" alone." if stage.is_leaf else " and all after it.")
        )
    if before_run is not None:
        before_run(artifacts_of(found.inputs))
    if found.changes:
        progress.say(f"  {location.dir.name}: done again ({'; '.join(found.changes)})")
        _remove_from(location, alone=stage.is_leaf)
    taken = shared(found)
    if taken is not None:
        return taken
    _open_partial(location, found.described)
    ctx = StageContext(
        name=stage.name,
        dir=location.partial,
        seed=found.described["seed"],
        round=location.round,
        engine=engine,
        progress=progress,
        training=training or TrainingConfig(),
    )
    return _run_and_publish(found, ctx)


def _run_and_publish(found: Standing[ConfigT, InputsT, OutputsT], ctx: StageContext) -> Manifest:
    started, clock = _now(), time.monotonic()
    with disk_errors_named(ctx.dir):
        outputs = found.stage.run(found.config, found.inputs, ctx)
        other = max(0.0, time.monotonic() - clock - sum(ctx.seconds.values()))
        counts = outputs.counts
        if {"in", "kept", "dropped"} <= counts.keys():
            assert counts["in"] == counts["kept"] + counts["dropped"], f"{ctx.name}: rows vanished: {counts}"
        manifest = Manifest(
            stage=ctx.name,
            round=ctx.round,
            fingerprint=fingerprint(found.described),
            config=found.described["config"],
            inputs=recorded_inputs(found.inputs, run_dir=found.location.dir.parent.parent),
            outputs=recorded_outputs(outputs, folder=ctx.dir),
            counts=counts,
            metrics=outputs.metrics,
            facts=outputs.facts,
            seed=ctx.seed,
            versions=package_versions(),
            started=started,
            ended=_now(),
            seconds={**ctx.seconds, "other": other},
        )
        publish(ctx.dir, manifest)
    return manifest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _remove_from(location: Location, *, alone: bool) -> None:
    """Remove a stage and, in a run, unless it is `alone`, later stages of its round and all later rounds; other files
    stay."""
    if location.run_dir is None or alone:
        remove_path(location.dir)
        return
    for number in reversed(round_numbers(location.run_dir)):
        if number > location.round:
            remove_path(round_dir(location.run_dir, number))
    for folder in sorted(location.dir.parent.iterdir(), reverse=True):
        if STAGE_FOLDER.fullmatch(folder.name) and folder.name >= location.dir.name:
            remove_path(folder)


def _open_partial(location: Location, described: dict[str, Any]) -> None:
    """Make the stage's working folder; a crash's leavings stay only where they were made from the same things."""
    mark = location.partial / ".fingerprint"
    wanted = json.dumps({"fingerprint": fingerprint(described)})
    if not (mark.is_file() and mark.read_bytes() == wanted.encode()):
        open_empty(location)
    write_text(mark, wanted)


def open_empty(location: Location) -> Path:
    """Make the stage's working folder, without what a crash has left there and without a mark of whose work it holds:
    nobody goes on with it."""
    partial = location.partial
    # Its owner's lock stays: others would take the folder for nobody's.
    for path in partial.iterdir() if partial.is_dir() else [partial]:
        if path.name != LOCK:
            remove_path(path)
    partial.mkdir(parents=True, exist_ok=True)
    return partial
