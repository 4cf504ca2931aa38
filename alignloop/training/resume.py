"""Resume points inside a stage: killed at any step, training goes on from the last one and ends in the same bytes.

A point holds whole tensors by name, whatever they were split over, so that any number of processes can go on from it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignloop.training.checkpoints import written_aside

STATE_FILE = "state.pt"
STATE_VERSION = 2


@dataclass(frozen=True)
class ResumePoints:
    """The resume points of one training stage.

    Attributes:
        directory: holds one `step-000200` at a time.
        key: digest of all that the trained weights depend on; points of another key are not used.
    """

    directory: Path
    key: str

    def save(self, step: int, *, model: dict[str, Any], optimizer: dict[str, Any], rows: int) -> None:
        """Write the point after `step` steps, then drop the older ones."""
        older = self._points()
        state = {
            "version": STATE_VERSION,
            "key": self.key,
            "step": step,
            "rows": rows,
            "model": model,
            "optimizer": optimizer,
        }
        with written_aside(self.directory / f"step-{step:06d}") as partial:
            torch.save(state, partial / STATE_FILE)
        for path in older:
            if path.name != f"step-{step:06d}":
                shutil.rmtree(path)

    def load(self) -> dict[str, Any] | None:
        """The latest point of this key, on the CPU, or None."""
        for path in reversed(self._points()):
            # Mapped into memory: every process of a stage reads all of it.
            file = path / STATE_FILE
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if state["version"] == STATE_VERSION and state["key"] == self.key:
                return state
        return None

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _points(self) -> list[Path]:
        complete = self.directory.glob("step-*")
        return sorted(path for path in complete if path.suffix != ".partial" and (path / STATE_FILE).is_file())
