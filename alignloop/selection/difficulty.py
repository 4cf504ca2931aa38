"""Difficulty (4.2.3): by the pass rate of the K candidates, a judge's points, or the number of intentions (InsTag).

What all candidates solve teaches little, what none solves may be noise: rows outside a window are dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

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
    return _window(ids, pass_rates, low=min_pass_rate, high=max_pass_rate, name="pass_rate", easy_is_high=True)


def points_window(ids: Sequence[str], *, points: Sequence[int | None], min_points: int, max_points: int) -> Pruned:
    """Keep rows whose points for difficulty lie in [min, max]; rows without any are kept.

    Raises:
        ValueError: an empty window.
    """
    return _window(ids, points, low=min_points, high=max_points, name="points", easy_is_high=False)


def intentions_window(
    ids: Sequence[str], *, counts: Sequence[int | None], min_intentions: int, max_intentions: int | None
) -> Pruned:
    """Keep rows with a number of intentions in [min, max]; rows for which none is known are kept.

    Args:
        counts: N numbers of distinct intentions.
        max_intentions: None: no limit.

    Raises:
        ValueError: an empty window.
    """
    high = float("inf") if max_intentions is None else max_intentions
    return _window(ids, counts, low=min_intentions, high=high, name="intentions", easy_is_high=False)


def distinct_intentions(intentions: Iterable[str]) -> list[str]:
    """The intentions that are not the same but for case, spaces and punctuation, as first written."""
    found: dict[str, str] = {}
    for text in intentions:
        key = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
        if key:
            found.setdefault(key, text.strip())
    return list(found.values())


def _window(
    ids: Sequence[str],
    values: Sequence[float | None],
    *,
    low: float,
    high: float,
    name: str,
    easy_is_high: bool,
) -> Pruned:
    words = name.replace("_", " ")
    if low > high:
        raise ValueError(f"min_{name} {low} is above max_{name} {high}: nothing would be kept")
    known = [value for value in values if value is not None]
    check_finite(known, name=name if name.endswith("s") else f"{name}s")
    drops: dict[int, Drop] = {}
    for index, (row_id, value) in enumerate(zip(ids, values, strict=True)):
        if value is None or low <= value <= high:
            continue
        under = value < low
        why = "too easy" if under != easy_is_high else "too hard"
        limit = f"under {low:.3g}" if under else f"over {high:.3g}"
        drops[index] = Drop(row_id, "difficulty", f"{words} {value:.3g} is {limit} ({why})")
    return pruned(ids, drops, metrics={f"mean_{name}": sum(known) / len(known)} if known else None)
