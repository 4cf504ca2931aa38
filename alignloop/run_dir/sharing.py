"""Stages taken over from other run directories, where they were made from the same things.

standing of a stage that has to run --fingerprint--> the same stage of another run, whole by its digests
    --hard links, or copies--> published here, with inputs of this run and the fact `taken_from`

A fingerprint names all that a stage's result depends on (settings, digests of what it takes, seed): what another run
published under it is what this run would make. What cannot be taken over is said, and made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignloop.artifacts import disk_errors_named, files_of, fingerprint, link_or_copy
from alignloop.errors import RunDirError
from alignloop.run_dir.manifest import Manifest, publish, read_manifest, recorded_inputs
from alignloop.run_dir.reader import folders_of
from alignloop.run_dir.stage import Standing, open_empty
from alignloop.run_dir.verification import damage

TAKEN_FROM = "taken_from"
"""The manifest's fact: the folder of the stage that was taken over, from this run directory."""


def take_from(runs: Sequence[Path], found: Standing[Any, Any, Any], *, say: Callable[[str], None]) -> Manifest | None:
    """Publish a stage as one of `runs` published it from the same things; None where none did, or not whole."""
    for folder, known in _candidates(runs, found, say):
        if problem := _unfit(folder, known, found):
            say(f"  not shared: {problem}")
            continue
        location = found.location
        run_dir = location.dir.parent.parent
        partial = open_empty(location)
        with disk_errors_named(partial):
            for record in known.records:
                _link(folder / record.path, partial / record.path)
        taken_from = os.path.relpath(folder.resolve(), run_dir.resolve())
        manifest = known.model_copy(
            update={
                "inputs": recorded_inputs(found.inputs, run_dir=run_dir),
                "facts": {**known.facts, TAKEN_FROM: Path(taken_from).as_posix()},
            }
        )
        publish(partial, manifest)
        return manifest
    return None


def _candidates(
    runs: Sequence[Path], found: Standing[Any, Any, Any], say: Callable[[str], None]
) -> Iterator[tuple[Path, Manifest]]:
    """Stages of the same fingerprint. It holds the round, through the seed: other rounds need not be looked at."""
    wanted = fingerprint(found.described)
    for run in runs:
        for folder in folders_of(run, found.location.round, found.stage.name):
            try:
                known = read_manifest(folder)
            except RunDirError as error:
                say(f"  not shared: {error}")
                continue
            if known is not None and known.fingerprint == wanted:
                yield folder, known


def _unfit(folder: Path, known: Manifest, found: Standing[Any, Any, Any]) -> str | None:
    """Why it cannot be taken over; reads all its files."""
    try:
        found.outputs(known)
    except RunDirError:
        return f"{folder}: another version of alignloop published it, with other outputs"
    problems = (damage(folder / record.path, record.digest) for record in known.records)
    return next((problem for problem in problems if problem is not None), None)


def _link(source: Path, target: Path) -> None:
    for file in files_of(source) if source.is_dir() else [source]:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file.resolve(), place)
