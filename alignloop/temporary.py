"""Temporary folders that do not outlive their owner for long: the next start clears those of processes that are gone.

    <tmp>/alignloop-<kind>-XXXX        the folder
    <tmp>/alignloop-<kind>-XXXX.lock   locked by its owner; the lock goes with the process, whatever way it ends

The lock is made first and goes last. What has none is nobody's to clear. Before its maker holds it, another start may
take it for abandoned and remove it: the maker notices, and makes another.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "alignloop-"
LOCK = ".lock"
KINDS = ("engine", "log", "training")
_LOCK_NAME = re.compile(rf"{PREFIX}({'|'.join(KINDS)})-[a-z0-9_]{{8}}{re.escape(LOCK)}")
"""With the suffix that `tempfile` makes: a person's own `alignloop-...` has another."""


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder of this process, also for its children's temporary files."""

    path: Path
    descriptor: int
    """Of the lock file, which stays open."""

    def remove(self) -> None:
        remove_with_lock(self.path)
        self._let_go()

    def keep(self) -> None:
        """Nothing clears the folder any more: somebody is to read it."""
        lock_of(self.path).unlink(missing_ok=True)
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def make_temporary(kind: str) -> TemporaryFolder:
    """A new, empty folder in the system's temporary one, of a kind in KINDS; those of ended processes are removed
    first."""
    assert kind in KINDS, kind
    clear_abandoned()
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f"{PREFIX}{kind}-", suffix=LOCK)
        folder = Path(name.removesuffix(LOCK))
        with suppress(FileExistsError):
            if _hold(Path(name), descriptor):
                folder.mkdir(mode=0o700)
                return TemporaryFolder(folder, descriptor)
        os.close(descriptor)


def clear_abandoned() -> None:
    """Remove this user's temporary folders whose owner has ended; only what `make_temporary` can have made."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{LOCK}"):
        if not _LOCK_NAME.fullmatch(lock.name):
            continue
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # somebody else's, a link, or gone meanwhile
            continue
        try:
            folder = lock.with_name(lock.name.removesuffix(LOCK))
            is_lock = _is_own(os.fstat(descriptor), stat.S_ISREG) and os.fstat(descriptor).st_size == 0
            if is_lock and _may_go(folder) and _hold(lock, descriptor):
                remove_with_lock(folder)
        finally:
            os.close(descriptor)


def _may_go(folder: Path) -> bool:
    """Whether a real folder of this user is there, or nothing: its owner ended before it made one."""
    try:
        return _is_own(folder.lstat(), stat.S_ISDIR)
    except FileNotFoundError:
        return True


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return status.st_uid == os.getuid() and is_kind(status.st_mode)


def lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + LOCK)


def remove_with_lock(folder: Path) -> None:
    """For its owner, or where the owner is known to have ended: the folder goes first, then its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    lock_of(folder).unlink(missing_ok=True)


def _hold(lock: Path, descriptor: int) -> bool:
    """Whether this process now holds the lock, and the file of that name is still the same."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(lock.lstat(), os.fstat(descriptor))
    except OSError:
        return False
