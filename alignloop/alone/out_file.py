"""The file a verb makes: worked on in a folder beside it, put in place whole, with a manifest of what it is made from.

<out>.work/          outlives a crash, and is gone when the file is there
<out stem>.manifest.json    as a stage's: a second call that would make the same again knows it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignloop.artifacts import (
    MANIFEST,
    Manifest,
    digest_of,
    disk_errors_named,
    fingerprint,
    load_json,
    stage_seed,
    write_text,
)
from alignloop.errors import RunDirError, UserError
from alignloop.run_dir.layout import locked, remove_locked
from alignloop.run_dir.stage import describe, differences

BEFORE_WORK = frozenset({"run.lock", "prompts.jsonl", "unscored.jsonl", ".fingerprint"})
"""What a working folder holds before a stage has made anything of worth in it."""


def check_out(out: Path, *, option: str = "--out") -> Path:
    """`out` as a path at which a file can be made.

    Raises:
        UserError: a folder lies there, or its own folder does not exist or cannot be written in.
    """
    out = out.expanduser()
    if out.is_dir():
        raise UserError(f"{option} {out}: this is a folder; name a file, for example {out / 'candidates.jsonl'}")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{option} {out}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {out}: the folder {folder} cannot be written in; name another")
    return out


def beside(out: Path, what: str) -> Path:
    """`<out's stem>.<what>`, for example `candidates.dropped.jsonl`."""
    return out.with_name(f"{out.stem}.{what}")


def manifest_of(out: Path) -> Path:
    """Where the manifest of `out` lies."""
    return beside(out, MANIFEST)


@contextmanager
def work_dir(out: Path) -> Iterator[Path]:
    """The folder `out` is made in; what a crash left there is taken over.

    It goes where all went well, and where nothing was made in it yet.

    Raises:
        UserError: another process is making the same file.
    """
    folder = out.with_name(out.name + ".work")
    try:
        with locked(folder):
            try:
                yield folder
            except BaseException:
                if not any(file.name not in BEFORE_WORK for file in folder.rglob("*") if file.is_file()):
                    remove_locked(folder)
                raise
            remove_locked(folder)
    except RunDirError as error:
        if "in use by process" in str(error):
            raise UserError(f"--out {out}: {error}".replace("--run-dir", "--out")) from error
        raise


def is_made(out: Path, stage: str, config: Any, inputs: Any, *, run_seed: int) -> bool:
    """Whether `out` is what the stage would make of `config` and `inputs`, and as it was made.

    Args:
        run_seed: what the stage's own seed is made of; it is round 1's.

    Raises:
        UserError: something else lies at `out`, or it was changed since: it is not written over.
    """
    if not out.exists():
        return False
    described = describe(config, inputs, seed=stage_seed(run_seed, round=1, stage=stage))
    known = read_beside(out)
    advice = "name another file, or remove it"
    if known is None or known.stage != stage:
        raise UserError(f"{out} exists and is not what this command made there: {advice}")
    if known.fingerprint != fingerprint(described):
        changes = "\n".join(f"  - {change}" for change in differences(known, described))
        raise UserError(f"{out} exists, made from something else:\n{changes}\nTo have the new one, {advice}")
    records = [entry for entry in known.outputs.values() if not isinstance(entry, list)]
    if digest_of(out) not in {record.digest for record in records}:
        raise UserError(f"{out} exists, made from the same things, but was changed since: {advice}")
    return True


def put(source: Path, out: Path) -> None:
    """Copy a published stage's file to `out`, whole or not at all, its manifest before it."""
    manifest = source.parent / MANIFEST
    write_text(manifest_of(out), manifest.read_text(encoding="utf-8"))
    aside = out.with_name(out.name + ".tmp")
    with disk_errors_named(out, needed_bytes=source.stat().st_size):
        shutil.copyfile(source, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    aside.replace(out)


def read_beside(file: Path) -> Manifest | None:
    """The manifest that tells what a file is made from: its own, or that of the stage in whose folder it lies."""
    for path in (manifest_of(file), file.parent / MANIFEST):
        if path.is_file():
            try:
                return Manifest.of_values(load_json(path))
            except ValueError:
                return None
    return None
