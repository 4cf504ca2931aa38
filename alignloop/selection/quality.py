"""Quality (The Llama 3 Herd of Models, 4.2.3): rows whose reward lies in the top fraction (the paper: a quarter)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignloop.selection.verdicts import Drop, Pruned, check_finite, pruned


def top_fraction(ids: Sequence[str], *, quality_scores: Sequence[float], fraction: float) -> Pruned:
    """Keep the `ceil(fraction * N)` rows of highest score; ties go to the first.

    Args:
        ids: N row ids.
        quality_scores: N scores on one scale: raw rewards of one reward model, never normalised per prompt.
        fraction: share kept, in [0, 1].

    Raises:
        ValueError: a score that is not finite, or a fraction outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1]")
    assert len(ids) == len(quality_scores), "one score per row"
    check_finite(quality_scores, name="quality_scores")
    # 0.07 * 100 is a hair above 7 in floating point, and ceil would keep an eighth row.
    num_kept = math.ceil(round(fraction * len(ids), 9))
    order = sorted(range(len(ids)), key=lambda index: (-quality_scores[index], index))
    least = quality_scores[order[num_kept - 1]] if num_kept else math.inf
    drops = {
        index: Drop(
            ids[index],
            "quality",
            f"score {quality_scores[index]:.4g} is not in the top {fraction:.0%} (from {least:.4g})",
        )
        for index in order[num_kept:]
    }
    return pruned(ids, drops, metrics={"least_quality_score": least} if num_kept else None)
