"""Learning rate and checkpoint steps as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def learning_rate(step: int, *, num_steps: int, peak: float, warmup_fraction: float, final_fraction: float) -> float:
    """Linear warm-up, then cosine from `peak` to `final_fraction * peak` at the last step.

    Args:
        step: 0-based.
    """
    num_warmup = int(warmup_fraction * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    progress = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1.0 - final_fraction) * cosine)


def checkpoint_steps(num_steps: int, *, num_checkpoints: int, span: float) -> tuple[int, ...]:
    """Steps (1-based) after which a checkpoint is kept: evenly spaced over the last `span`, both ends included.

    Fewer where the span has fewer steps than checkpoints.
    """
    if num_checkpoints == 1:
        return (num_steps,)
    first = num_steps * (1.0 - span)
    gap = (num_steps - first) / (num_checkpoints - 1)
    return tuple(sorted({max(1, round(num_steps - i * gap)) for i in range(num_checkpoints)}))
