"""A run directory: locked by its run, and of one recipe."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignloop.artifacts import MANIFEST_VERSION, PARTIAL, disk_errors_named, read_manifest, write_text
from alignloop.config import Recipe
from alignloop.errors import RunDirError
from alignloop.yaml_values import dump_yaml

RESOLVED = "resolved.json"
_ROUND = re.compile(r"round-([0-9]{2,6})")
BEFORE_A_RUN = {"run.lock", "rejected_rows.jsonl"}
"""What a directory may hold before its first run begins: preflight has said what is wrong with the data."""
ANY_VALUE = {
    "rounds",
    "name",
    "training",
    "collect.min_annotated",
    "engine.max_restarts",
    "engine.stall_seconds",
    "engine.seconds_per_token",
    "engine.max_num_seqs",
    "engine.kv_cache_gb",
    "engine.gpu_memory_utilization",
    "engine.data_parallel",
    "judge.endpoint",
    "judge.api_key_variable",
    "judge.max_retries",
    "judge.timeout_seconds",
    "judge.concurrency",
}
"""Fields that may change between two calls on one run directory: no result depends on them. (Whether a judge is behind
an endpoint or on the engine does count, and its stage's fingerprint knows.)"""


def round_dir(run_dir: Path, number: int) -> Path:
    """`<run>/round-NN`."""
    return run_dir / f"round-{number:02d}"


def round_numbers(run_dir: Path) -> list[int]:
    """Rounds that have begun, in order; 0 holds what comes before the first. Other names are nobody's round."""
    found = (_ROUND.fullmatch(folder.name) for folder in run_dir.glob("round-*"))
    return sorted({int(match[1]) for match in found if match})


def stage_dirs(run_dir: Path, number: int) -> list[Path]:
    """Published stages of a round, in order."""
    folder = round_dir(run_dir, number)
    if not folder.is_dir():
        return []
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.endswith(PARTIAL) and read_manifest(d))


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory; the lock goes with the process, whatever way it ends.

    Raises:
        RunDirError: another process holds it.
    """
    with disk_errors_named(run_dir):
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = (run_dir / "run.lock").open("a+", encoding="utf-8")
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise RunDirError(
                f"{run_dir}: cannot be used as a run directory ({error.strerror}); choose another"
            ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunDirError(
                f"{run_dir}: in use by process {file.read().strip() or 'unknown'}; wait or choose another --run-dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def enter(run_dir: Path, recipe: Recipe, *, rebuild: bool) -> None:
    """Write what the run is made from, or check that it is still the same.

    Raises:
        RunDirError: the directory is of another recipe, or of a newer version.
    """
    resolved = run_dir / RESOLVED
    known = read_resolved(run_dir)
    if known is None and any(path.name not in BEFORE_A_RUN for path in run_dir.iterdir()):
        raise RunDirError(f"{run_dir}: holds files but no {RESOLVED}: not a run directory; choose another --run-dir")
    wanted = recipe.model_dump(mode="json")
    if known is not None and not rebuild:
        changes = changed_fields(known, wanted)
        if changes:
            raise RunDirError(
                f"{run_dir}: is a run of another recipe:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nPut it back, choose another --run-dir, or pass --rebuild to redo what depends on it."
            )
    write_text(resolved, json.dumps({"run_version": MANIFEST_VERSION, "recipe": wanted}, indent=1) + "\n")
    sparse = recipe.model_dump(mode="json", exclude_defaults=True)
    write_text(run_dir / "recipe.yaml", dump_yaml(sparse))


def read_resolved(run_dir: Path) -> dict[str, Any] | None:
    """The recipe a run directory was made from, as plain values; None where it is none yet."""
    path = run_dir / RESOLVED
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version, recipe = int(values["run_version"]), dict(values["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{path}: cannot be read ({error}); choose another --run-dir") from error
    if version > MANIFEST_VERSION:
        raise RunDirError(
            f"{path}: run_version {version} was written by a newer alignloop (this one knows {MANIFEST_VERSION}): "
            "update alignloop, or choose another --run-dir"
        )
    return recipe


def changed_fields(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """`a.b: old -> new` for every recipe field that differs and may not."""
    changes = []
    for key in sorted({*before, *after}):
        name = f"{prefix}{key}"
        old, new = before.get(key), after.get(key)
        if name in ANY_VALUE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_fields(old, new, f"{name}.")
        else:
            changes.append(f"{name}: {old} -> {new}")
    return changes
