"""Artifacts, digests, manifests, and their atomic publication.

A stage works in `<stage>.partial/`, which outlives a crash. Publishing writes `manifest.json` there last, syncs
and renames the folder to `<stage>/`: a folder without the suffix is always whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, ValidationError

from alignloop.errors import AlignloopError, DataError, DiskFullError, RunDirError

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
_PIECE = 1 << 20
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Artifact:
    """A file or folder with the digest of its bytes.

    Attributes:
        path: absolute.
        digest: `sha256:<hex>` of the file, or of the names and digests of the folder's files.
        rows: number of lines of a `.jsonl`; None for anything else.
    """

    path: Path
    digest: str
    rows: int | None = None

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Describe what lies at `path` now."""
        digest, rows = digest_of(path), None
        if path.suffix == ".jsonl" and path.is_file():
            with path.open("rb") as file:
                rows = sum(1 for _ in file)
        return cls(path=path.resolve(), digest=digest, rows=rows)


def digest_of(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, or of a folder's sorted (name, digest) list.

    Raises:
        DataError: no file or folder lies there, or it cannot be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            return "sha256:" + _file_digest(path)
        if not stat.S_ISDIR(kind):
            raise DataError(f"{path}: is neither a file nor a folder")
        total = hashlib.sha256()
        for inner, digest in _file_digests(files_of(path)):
            total.update(f"{inner.relative_to(path).as_posix()}\0sha256:{digest}\n".encode())
        return "sha256:" + total.hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file or folder") from error
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file_digests(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each file with its digest: reading and hashing leave Python's lock alone, so that large ones go side by side."""
    stop = Event()
    with ThreadPoolExecutor(max_workers=4) as pool:
        try:
            yield from zip(files, pool.map(lambda file: _file_digest(file, stop), files), strict=True)
        finally:
            stop.set()  # an interrupted call must not wait for the rest of a checkpoint


def _file_digest(path: Path, stop: Event | None = None) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (piece := file.read(_PIECE)) and not (stop is not None and stop.is_set()):
            total.update(piece)
    return total.hexdigest()


def size_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in files_of(path))


def fingerprint(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(run_seed: int, *parts: object) -> int:
    """A seed in [0, 2**31) from the run's seed and what it is for (round, stage, prompt id)."""
    text = "\0".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def stage_seed(run_seed: int, *, round: int, stage: str, occurrence: int = 1) -> int:
    """A stage's own seed: wherever it is published, and whatever runs before it.

    Args:
        stage: its name.
        occurrence: 1 for the first stage of this name in its round.
    """
    return derive_seed(run_seed, round, stage, occurrence)


def _inside(path: str) -> str:
    """A path that can lie in a stage's folder."""
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
        """From what was read.

        Raises:
            ValueError: it is not a manifest, or was changed since it was written.
        """
        manifest = cls.model_validate(values)
        if manifest.digest not in (None, _digest_of_values(values)):
            raise ValueError("its values are not those that were written: its digest is another")
        return manifest

    def text(self) -> str:
        """As it is written, with its digest."""
        values = json.loads(self.model_dump_json(exclude={"digest"}))
        return self.model_copy(update={"digest": _digest_of_values(values)}).model_dump_json(indent=1) + "\n"


def _digest_of_values(values: dict[str, Any]) -> str:
    """Of a manifest's values as JSON has them, its digest left out."""
    others = {name: value for name, value in values.items() if name != "digest"}
    return "sha256:" + hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def load_json(path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        ValueError: it cannot be read, or is not JSON; in a few words.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # nobody waits for the other end of a pipe
            raise ValueError("is not a file")
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a published stage; None where nothing is published.

    Raises:
        RunDirError: it cannot be read, was written by a newer version, is not a manifest, or was changed since it was
            written.
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
    """What a stage published at `path`, as its manifest has it.

    Raises:
        RunDirError: no stage did.
    """
    manifest = read_manifest(path.parent)
    for record in [] if manifest is None else manifest.records:
        if record.path == path.name:
            return Artifact(path=path.resolve(), digest=record.digest, rows=record.rows)
    raise RunDirError(f"{path}: is gone, or was published by no stage; run again: it is made anew")


def check_whole(folder: Path, manifest: Manifest) -> None:
    """Compare the sizes of a published stage's outputs with those in its manifest.

    Raises:
        RunDirError: something was removed, cut short or written over since.
    """
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
    """Turn a finished `<stage>.partial` into `<stage>`: manifest last, everything synced, one rename."""
    for file in partial.rglob("*"):
        if file.is_file():
            _sync(file)
    write_text(partial / MANIFEST, manifest.text())
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    partial.rename(final)
    _sync(final.parent)
    return final


def remove_path(path: Path) -> None:
    """Remove the file, link or folder that lies at a path, where one does."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    content = text.encode()
    write_whole(path, [content], needed_bytes=len(content))


def write_whole(path: Path, content: Iterable[bytes], *, needed_bytes: int | None = None) -> None:
    """Write a file atomically: aside, sync, rename. At any moment it is whole, as it was before, or not there."""
    aside = path.with_name(path.name + ".tmp")
    with disk_errors_named(path, needed_bytes=needed_bytes):
        if not aside.is_dir():  # a pipe would be waited for, a link written through
            aside.unlink(missing_ok=True)
        with aside.open("wb") as file:
            file.writelines(content)
        _sync(aside)
        aside.replace(path)


@contextmanager
def disk_errors_named(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the want of space, met by any library inside, into a `DiskFullError` that names the path."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_out_of_space(error, path):
            raise
        named = getattr(error, "filename", None)
        where = Path(named) if isinstance(named, str) else path
        disk = os.statvfs(existing_parent(where))
        reason = "the disk is full"
        if getattr(error, "errno", None) == errno.EDQUOT:
            reason = "the disk quota is used up"
        elif disk.f_files and not disk.f_favail:
            reason = "the file system can hold no more files"
        free = disk.f_bavail * disk.f_frsize
        raise DiskFullError(where, needed_bytes=needed_bytes, free_bytes=free, reason=reason) from error


def is_out_of_space(error: BaseException, path: Path) -> bool:
    """Whether writing at `path` failed for want of space: by the system's number, not by a text that may quote one."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, OSError) and cause.errno in OUT_OF_SPACE for cause in causes):
        return True
    if isinstance(error, AlignloopError) or getattr(error, "errno", None) is not None:
        return False
    if any(str(error).endswith(f"(os error {number})") for number in OUT_OF_SPACE):  # so libraries in Rust end theirs
        return True
    # torch.save and numpy say only that they wrote less than they should have.
    return isinstance(error, RuntimeError | OSError) and shutil.disk_usage(existing_parent(path)).free < 2**20


def existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
