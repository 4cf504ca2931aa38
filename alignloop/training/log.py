"""`train_log.jsonl`: one line a step; and the trackers that are told the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignloop.artifacts import write_text
from alignloop.training.job import TrainJob
from alignloop.training.step import StepResult
from alignloop.training.trackers import Trackers, open_trackers

LAST_STEPS = 10
HELD_OUT = "eval_"


class TrainLog:
    """Appends a line a step; after a resume the lines of steps that are trained again are cut away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def cut_after(self, step: int) -> None:
        """Keep the lines of the first `step` steps. A line cut short by a kill goes too."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last_means(self) -> dict[str, float]:
        """Means over the last steps of the loss and of the objective's metrics."""
        rows = self.rows()[-LAST_STEPS:]
        skipped = {"step", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens"}
        names = [name for name in rows[-1] if name not in skipped and not name.startswith(HELD_OUT)] if rows else []
        return {name: sum(row[name] for row in rows) / len(rows) for name in names}

    def held_out(self, steps: Sequence[int]) -> tuple[dict[str, float], ...]:
        """The metrics on held-out groups after each of these steps, without their prefix."""
        rows = {row["step"]: row for row in self.rows()}
        return tuple(
            {name.removeprefix(HELD_OUT): value for name, value in rows[step].items() if name.startswith(HELD_OUT)}
            for step in steps
        )

    def first_step_metrics(self) -> dict[str, float]:
        """What step 0 showed."""
        rows = self.rows()
        return {"step_0_dpo_loss": rows[0]["dpo_loss"]} if rows and "dpo_loss" in rows[0] else {}


class StepTeller:
    """Writes each step into the log and tells it to the recipe's trackers.

    Args:
        first: steps done before; what the log has of later ones is cut away.
        active: False in every process but the first.
    """

    def __init__(self, job: TrainJob, log: TrainLog, *, first: int, active: bool) -> None:
        self._job, self._log, self._first, self._active = job, log, first, active
        self._trackers: Trackers | None = None

    def __enter__(self) -> Self:
        if self._active:
            self._log.cut_after(self._first)
            job = self._job
            self._trackers = open_trackers(
                job.training.trackers,
                out_dir=job.out_dir,
                run_name=job.run_name,
                config=job.config.model_dump(mode="json"),
                say=job.progress.say,
            )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._trackers is not None:
            self._trackers.close()

    def tell(self, step: int, result: StepResult, *, learning_rate: float, held_out: Mapping[str, float]) -> None:
        """What step `step`, counted from 1, showed, and what was measured after it."""
        if not self._active:
            return
        values = {
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_second": round(result.tokens_per_second, 1),
            "num_tokens": result.num_tokens,
            **result.metrics,
            **{f"{HELD_OUT}{name}": value for name, value in held_out.items()},
        }
        self._log.append(step, values)
        if self._trackers is not None:
            self._trackers.log(step, values)
