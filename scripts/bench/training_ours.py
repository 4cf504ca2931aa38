"""alignloop's side of the training benchmark: the trainer itself, with a stopwatch for its progress bar."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignloop.config.training import DpoConfig, RewardConfig, SftConfig
from alignloop.packing.groups import PromptGroup
from alignloop.training import run
from alignloop.training.trainer import train
from scripts.bench.stopwatch import MemoryWatch, StopwatchProgress
from scripts.bench.training_cases import (
    BETA,
    CASES,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    NLL_COEFFICIENT,
    WEIGHT_DECAY,
    Measurement,
    Request,
)

SAVE = "save_checkpoint"
"""Of `alignloop.training.run`: how it writes a checkpoint."""


def measure(request: Request, *, warm_up: Sequence[PromptGroup], groups: Sequence[PromptGroup]) -> Measurement:
    """One optimiser step on `warm_up`, then one timed pass over `groups` from the same start."""
    first_loss, _ = _train(request, warm_up, progress=StopwatchProgress())
    watch, progress = MemoryWatch(), StopwatchProgress()
    _, num_tokens = _train(request, groups, progress=progress)
    return Measurement(
        examples=len(groups),
        seconds=progress.total(),
        tokens=num_tokens,
        memory_mib=watch.above_mib(),
        peak_mib=watch.peak_mib(),
        first_loss=first_loss,
    )


def _train(request: Request, groups: Sequence[PromptGroup], *, progress: StopwatchProgress) -> tuple[float, int]:
    """Loss of the first step, and tokens of all."""
    kind = CASES[request.case].kind
    models = Path(request.work) / request.size
    start = models / ("reward" if kind == "reward" else "policy")
    out_dir = Path(tempfile.mkdtemp(prefix="bench-ours-"))
    try:
        with _saving_not_counted(progress):
            result = train(
                kind,  # type: ignore[arg-type]  # scoring has a module of its own
                groups=groups,
                eval_groups=[],
                checkpoint=start,
                reference=start if kind == "dpo" else None,
                out_dir=out_dir,
                config=_config(request),
                seed=0,
                progress=progress,
            )
        with (out_dir / "train_log.jsonl").open() as log:
            first_loss = json.loads(log.readline())["loss"]
    finally:
        shutil.rmtree(out_dir)
    if result.dropped:
        raise RuntimeError(f"{request.case}: alignloop dropped {len(result.dropped)} rows: {result.dropped[0]}")
    return first_loss, result.num_tokens


def _config(request: Request) -> RewardConfig | SftConfig | DpoConfig:
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "batch_groups": request.amount.batch_groups,
        "rows_per_microbatch": request.setting.rows,
        "max_length": MAX_LENGTH,
        "dtype": "float32",
        "warmup_fraction": 0.0,
    }
    kind = CASES[request.case].kind
    if kind == "reward":
        return RewardConfig(**shared)
    if kind == "sft":
        return SftConfig(**shared)
    # TRL has one mask for both terms: without the formatting mask both sides have the same loss.
    return DpoConfig(**shared, beta=BETA, nll_coefficient=NLL_COEFFICIENT, mask_formatting_tokens=False)


@contextmanager
def _saving_not_counted(progress: StopwatchProgress) -> Iterator[None]:
    """The trainer always keeps its last checkpoint; TRL keeps none here, so writing it stops the watch."""
    save: Callable[..., Any] = getattr(run, SAVE)

    def paused(*args: Any, **kwargs: Any) -> Any:
        with progress.pausing():
            return save(*args, **kwargs)

    setattr(run, SAVE, paused)
    try:
        yield
    finally:
        setattr(run, SAVE, save)
