"""Artifacts and their digests; files written atomically, and the error where the disk is full."""

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
from pathlib import Path
from threading import Event
from typing import Any

from alignloop.errors import AlignloopError, DataError, DiskFullError

_PIECE = 1 << 20
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Artifact:
    """A file or folder at an absolute path, with the digest of its bytes.

    Attributes:
        digest: `sha256:<hex>` of the file, or of the names and digests of the folder's files.
        rows: number of lines of a `.jsonl`; None for anything else.
    """

    path: Path
    digest: str
    rows: int | None = None

    @classmethod
    def of(cls, path: Path) -> Artifact:
        digest, rows = digest_of(path), None
        if path.suffix == ".jsonl" and path.is_file():
            with path.open("rb") as file:
                rows = sum(1 for _ in file)
        return cls(path=path.resolve(), digest=digest, rows=rows)


def digest_of(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, or of a folder's sorted (name, digest) list; raises DataError where it cannot
    be read."""
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
    """Hashing releases Python's lock, so that large files are read side by side."""
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
    """A stage's own seed, wherever it is published and whatever runs before it; `occurrence` counts from 1 within a
    round."""
    return derive_seed(run_seed, round, stage, occurrence)


def load_json(path: Path) -> Any:
    """The values of a JSON file; raises ValueError, in a few words, where it cannot be read or is not JSON."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # nobody waits for the other end of a pipe
            raise ValueError("is not a file")
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def remove_path(path: Path) -> None:
    """Remove the file, link or folder at a path, if there is one."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def link_or_copy(source: Path, target: Path) -> None:
    """One file at two places, by a hard link; a copy where the disk has none, or is another."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_text(path: Path, text: str) -> None:
    content = text.encode()
    write_whole(path, [content], needed_bytes=len(content))


def write_whole(path: Path, content: Iterable[bytes], *, needed_bytes: int | None = None) -> None:
    """Write a file atomically (temporary file, sync, rename): it is always whole, as it was before, or absent."""
    aside = path.with_name(path.name + ".tmp")
    with disk_errors_named(path, needed_bytes=needed_bytes):
        if not aside.is_dir():  # a pipe would be waited for, a link written through
            aside.unlink(missing_ok=True)
        with aside.open("wb") as file:
            file.writelines(content)
        sync(aside)
        aside.replace(path)


@contextmanager
def disk_errors_named(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an out-of-space error of any library inside into a `DiskFullError` that names the path."""
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
    """Whether writing at `path` failed for want of space: by the error number, not by a text that may quote one."""
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


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
