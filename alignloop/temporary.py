"""Temporary folders that do not outlive their owner for long: the next start clears those of processes that are gone.

    <tmp>/alignloop-<kind>-XXXX        the folder
    <tmp>/alignloop-<kind>-XXXX.lock   locked by its owner; the lock goes with the process, whatever way it ends

The lock is made first and goes last. What has none is nobody's to clear.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "alignloop-"
LOCK = ".lock"


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder of this process's own, for its children's temporary files too."""

    path: Path
    descriptor: int
    """Of the lock file, which is held open."""

    def remove(self) -> None:
        remove_with_lock(self.path)
        self._let_go()

    def keep(self) -> None:
        """Leave the folder to whoever reads it: nothing clears it any more."""
        lock_of(self.path).unlink(missing_ok=True)
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def make_temporary(kind: str) -> TemporaryFolder:
    """A new, empty folder in the system's temporary one; those of processes that are gone are removed first."""
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
    """Remove this user's temporary folders whose owner is gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{LOCK}"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # somebody else's, or gone meanwhile
            continue
        try:
            if os.fstat(descriptor).st_uid == os.getuid() and _hold(lock, descriptor):
                remove_with_lock(Path(str(lock).removesuffix(LOCK)))
        finally:
            os.close(descriptor)


def lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + LOCK)


def remove_with_lock(folder: Path) -> None:
    """Remove a folder, then its lock: for its owner, or where the owner is known to be gone."""
    shutil.rmtree(folder, ignore_errors=True)
    lock_of(folder).unlink(missing_ok=True)


def _hold(lock: Path, descriptor: int) -> bool:
    """Whether this process now holds the lock, and it is still the file of that name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock.stat().st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False
