"""Digests of prompts as they were rendered: what a template writes by itself, such as a date, is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class RenderedPrompts:
    """SHA-256 over the token ids of each task's prompts, in the order they were noted."""

    def __init__(self) -> None:
        self._digests: dict[str, hashlib._Hash] = {}
        self._last: tuple[str, object] | None = None

    def note(self, task: str, ids: Sequence[int]) -> None:
        """Take a prompt's ids in; the same object twice in a row (a question's options) is one prompt."""
        if self._last is not None and self._last[0] == task and self._last[1] is ids:
            return
        self._last = (task, ids)
        self._digests.setdefault(task, hashlib.sha256()).update(f"{' '.join(map(str, ids))}\n".encode())

    def digest(self, task: str) -> str | None:
        """Of a task's prompts; None where none was noted."""
        found = self._digests.get(task)
        return None if found is None else found.hexdigest()
