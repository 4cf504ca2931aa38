"""`train_log.jsonl`: one line a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAST_STEPS = 10


class TrainLog:
    """Appends a line a step; after a resume the lines of steps that are trained again are cut away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        tokens_per_second: float,
        metrics: Mapping[str, float],
    ) -> None:
        row = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": round(tokens_per_second, 1),
            **metrics,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def cut_after(self, step: int) -> None:
        """Keep the lines of the first `step` steps. A line cut short by a kill goes too."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last_means(self) -> dict[str, float]:
        """Means over the last steps of the loss and of the objective's metrics."""
        rows = self.rows()[-LAST_STEPS:]
        skipped = {"step", "learning_rate", "grad_norm", "tokens_per_second"}
        names = [name for name in rows[-1] if name not in skipped] if rows else []
        return {name: sum(row[name] for row in rows) / len(rows) for name in names}

    def first_step_metrics(self) -> dict[str, float]:
        """What step 0 showed, for a run that goes on after it."""
        rows = self.rows()
        return {"step_0_dpo_loss": rows[0]["dpo_loss"]} if rows and "dpo_loss" in rows[0] else {}
