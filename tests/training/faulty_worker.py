"""The training worker, with faults: a job's `run_name` says which."""

from __future__ import annotations

from typing import Any

import torch

from alignloop.training import loop, model, worker

MOST_TOKENS = 48
"""What `crowded` has memory for, in its second process."""

POISONED_CALL = 6
"""Of `poisoned`: a call a step, and one that evaluates after step 3."""


def main() -> None:
    run_here, forward = loop.run_here, model.TokenLogprobs.forward
    current: dict[str, Any] = {}

    def noted(job: Any, *, processes: Any) -> Any:
        current.update(fault=job.run_name if processes.rank == 1 else "", calls=0)
        model._cpu_has_bfloat16 = lambda: job.run_name == "bfloat16"
        return run_here(job, processes=processes)

    def faulty(self: Any, batch: Any) -> torch.Tensor:
        current["calls"] += 1
        if current["fault"] == "crowded" and batch.input_ids.numel() > MOST_TOKENS:
            raise torch.OutOfMemoryError("out of memory")
        factor = float("nan") if current["fault"] == "poisoned" and current["calls"] == POISONED_CALL else 1.0
        return forward(self, batch) * factor

    loop.run_here = noted
    model.TokenLogprobs.forward = faulty  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    main()
