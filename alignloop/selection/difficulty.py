"""Difficulty by pass rate: prompts all K candidates solve teach little, those none solves may be noise."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.selection.verdicts import Drop, Pruned, check_finite, pruned


def pass_rate_window(
    ids: Sequence[str], *, pass_rates: Sequence[float | None], min_pass_rate: float, max_pass_rate: float
) -> Pruned:
    """Keep rows whose pass rate lies in [min, max]; rows without one (people's) are kept.

    Args:
        ids: N row ids.
        pass_rates: N shares of a prompt's K candidates that passed, in [0, 1].

    Raises:
        ValueError: a rate that is not finite, or an empty window.
    """
    if min_pass_rate > max_pass_rate:
        raise ValueError(f"min_pass_rate {min_pass_rate} is above max_pass_rate {max_pass_rate}: nothing would be kept")
    known = [rate for rate in pass_rates if rate is not None]
    check_finite(known, name="pass_rates")
    drops: dict[int, Drop] = {}
    for index, (row_id, rate) in enumerate(zip(ids, pass_rates, strict=True)):
        if rate is None or min_pass_rate <= rate <= max_pass_rate:
            continue
        why = (
            f"under {min_pass_rate:.3g} (too hard)" if rate < min_pass_rate else f"over {max_pass_rate:.3g} (too easy)"
        )
        drops[index] = Drop(row_id, "difficulty", f"pass rate {rate:.3g} is {why}")
    return pruned(ids, drops, metrics={"mean_pass_rate": sum(known) / len(known)} if known else None)
