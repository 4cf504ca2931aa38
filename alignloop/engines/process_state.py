"""Whether other processes are stopped or work, as /proc tells: for whoever waits for an engine or for a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SAID_SECONDS = 30.0
"""A process without a sign of life is said after this time at the latest."""
_LIFE_SECONDS = 0.02
_LIFE_SHARE = 0.005
"""An idle Python process wakes its threads now and then: so much processor time, and share of the time, is no work."""
_PARENT, _GROUP, _USER_TICKS, _SYSTEM_TICKS = 1, 2, 11, 12
"""Places in what `_stat` gives."""


class SignsOfLife:
    """Processor time that processes use, as the sign that they work."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._used = processor_seconds(pids) or 0.0
        self.last = 0.0
        """When there was one, in the seconds that `look` is called with."""

    def look(self, pids: Sequence[int], *, waited: float) -> None:
        """Note whether there has been one since the last."""
        used = processor_seconds(pids)
        if used is None:  # not to be known on this system
            self.last = waited
        elif used < self._used or used - self._used >= max(_LIFE_SECONDS, _LIFE_SHARE * (waited - self.last)):
            self._used, self.last = used, waited


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    return _stat(pid)[:1] == ["T"]


def stopped_line(pid: int) -> str:
    """In words, with the way out."""
    return f"is stopped (`kill -CONT {pid}` lets it go on)"


def processor_seconds(pids: Sequence[int]) -> float | None:
    """Processor time that processes have used so far, together; None where the system does not tell."""
    found = [fields for pid in pids if len(fields := _stat(pid)) > _SYSTEM_TICKS]
    if not found:
        return None
    ticks = sum(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS]) for fields in found)
    return ticks / os.sysconf("SC_CLK_TCK")


def group_members(leader: int) -> list[int]:
    """The processes of the group that `leader` leads, itself among them."""
    return [pid for pid in _all() if pid == leader or _stat(pid)[_GROUP : _GROUP + 1] == [str(leader)]]


def descendants(ancestor: int) -> list[int]:
    """The processes that `ancestor` has started, and those that they have, whatever group they are of."""
    children: dict[str, list[int]] = {}
    for pid in _all():
        for parent in _stat(pid)[_PARENT : _PARENT + 1]:
            children.setdefault(parent, []).append(pid)
    found, open_ = list[int](), [ancestor]
    while open_:
        of_one = children.get(str(open_.pop()), [])
        found += of_one
        open_ += of_one
    return found


def _all() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
