"""Whether published files still hold the bytes that were published.

A manifest names the digest of every output. Before a stage runs, what it takes is compared with its digest, once: what
a file looked like then (inode, size, times) is remembered in `<run>/verified.json`, and only one that looks otherwise
is read again. `verify_run` reads everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from alignloop.artifacts import Artifact, digest_of, files_of, fingerprint, load_json, size_of, write_text
from alignloop.errors import DataError, RunDirError
from alignloop.progress import Progress
from alignloop.run_dir.layout import STAGE_FOLDER, round_dir, round_numbers, unpublished
from alignloop.run_dir.manifest import PARTIAL, redo
from alignloop.run_dir.reader import published_stages

VERIFIED = "verified.json"
WORTH_SAYING = 2_000_000_000
"""Bytes that take seconds to read."""


class _KnownArtifact(BaseModel):
    digest: str
    looks: str


class Verified:
    """The artifacts of a run directory that are known to be whole; `say` is called where much has to be read."""

    def __init__(self, run_dir: Path, *, say: Callable[[str], None] = lambda line: None) -> None:
        self._run_dir = run_dir.resolve()
        self._say = say
        self._known = _read(self._run_dir / VERIFIED)

    def require(self, artifacts: Iterable[Artifact]) -> None:
        """Read those of this run whose inode, size or times changed since they were last found whole; raises
        RunDirError where one does not hold the published bytes."""
        named = {name: artifact for artifact in artifacts if (name := self._name(artifact)) is not None}
        unknown = {name: artifact for name, artifact in named.items() if not self._is_known(name, artifact)}
        size = sum(size_of(artifact.path) for artifact in unknown.values() if artifact.path.exists())
        if size >= WORTH_SAYING:
            self._say(f"  reading {size / 1e9:.1f} GB that is taken over: is it what was published?")
        for name, artifact in unknown.items():
            looks = _looks(artifact.path)
            if problem := damage(artifact.path, artifact.digest):
                folder = self._run_dir / Path(*Path(name).parts[:2])
                raise RunDirError(f"{problem}. {redo(folder)}")
            self._known[name] = _KnownArtifact(digest=artifact.digest, looks=looks)
        if unknown:
            self._save()

    def note(self, artifacts: Sequence[Artifact]) -> None:
        """Take these as whole: they have just been written and read."""
        for artifact in artifacts:
            if name := self._name(artifact):
                self._known[name] = _KnownArtifact(digest=artifact.digest, looks=_looks(artifact.path))
        self._save()

    @contextmanager
    def linking(self, artifact: Artifact) -> Iterator[None]:
        """Allow links to its files inside: they change one of the files' times, and nothing else."""
        before = _looks(artifact.path, changed=False)
        yield
        if _looks(artifact.path, changed=False) == before and self._name(artifact) in self._known:
            self.note([artifact])

    def _is_known(self, name: str, artifact: Artifact) -> bool:
        known = self._known.get(name)
        return known is not None and known.digest == artifact.digest and known.looks == _looks(artifact.path)

    def _name(self, artifact: Artifact) -> str | None:
        """Its path in the run directory, also through rounds and stages that are links to another disk; None elsewhere:
        a user's file, whose digest is taken anew in every call."""
        folders = [*self._run_dir.glob("round-*"), *self._run_dir.glob("round-*/*")]
        for folder in (self._run_dir, *(folder for folder in folders if folder.is_symlink())):
            with suppress(OSError, RuntimeError, ValueError):  # a link to itself; it lies elsewhere
                inner = artifact.path.relative_to(folder.resolve())
                return (folder / inner).relative_to(self._run_dir).as_posix()
        return None

    def _save(self) -> None:
        values = {name: known.model_dump() for name, known in sorted(self._known.items())}
        write_text(self._run_dir / VERIFIED, json.dumps(values, indent=1) + "\n")


def damage(path: Path, digest: str) -> str | None:
    """What is wrong with an artifact, in words; None where it has the bytes of its digest."""
    try:
        found = digest_of(path)
    except DataError as error:
        return str(error)
    if found == digest:
        return None
    return f"{path}: is damaged: its bytes are not those that were published ({found[:19]}..., not {digest[:19]}...)"


def verify_run(run_dir: Path, *, progress: Progress) -> tuple[int, list[str]]:
    """Read every output of every published stage; their number, and a line for each damaged one or unpublished folder.

    Raises:
        RunDirError: a manifest cannot be read.
    """
    outputs = [
        (stage.dir / record.path, record)
        for number in round_numbers(run_dir)
        for stage in published_stages(run_dir, number)
        for record in stage.manifest.records
    ]
    found = [
        problem
        for number in round_numbers(run_dir)
        for folder in _entries(round_dir(run_dir, number))
        if STAGE_FOLDER.fullmatch(folder.name) and not folder.name.endswith(PARTIAL)
        if (problem := unpublished(folder))
    ]
    with progress.task("reading", total=len(outputs), unit="files") as advance:
        for path, record in outputs:
            if problem := damage(path, record.digest):
                found.append(problem)
            advance(1)
    return len(outputs), found


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _looks(path: Path, *, changed: bool = True) -> str:
    """Inode, size and times of a file or of a folder's files: no two contents look the same by accident. `changed`
    includes ctime, the time of the last change of any kind, which no program can set."""
    found: list[Any] = []
    for file in files_of(path) if path.is_dir() else [path]:
        try:
            status = file.stat()
        except OSError:
            continue
        times = [status.st_mtime_ns, *([status.st_ctime_ns] if changed else [])]
        found.append([file.relative_to(path).as_posix(), status.st_ino, status.st_size, *times])
    return fingerprint(found)


def _read(path: Path) -> dict[str, _KnownArtifact]:
    """What an earlier call remembered; empty where it cannot be read: then all files are read again."""
    try:
        values = load_json(path)
        return {str(name): _KnownArtifact.model_validate(value) for name, value in values.items()}
    except (ValueError, AttributeError, ValidationError):
        return {}
