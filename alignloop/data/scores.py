"""Whether the scores that a file has of two completions say the same as its choice between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

_KINDS = ("score", "rating", "reward", "overall_score", "avg_rating")
PAIRS = tuple(
    pair
    for kind in _KINDS
    for pair in (
        (f"{kind}_chosen", f"{kind}_rejected"),
        (f"chosen_{kind}", f"rejected_{kind}"),
        (f"chosen-{kind}", f"rejected-{kind}"),
    )
)
"""Columns that hold the two scores, the chosen completion's first; more is better."""
_CHOSEN = frozenset(chosen for chosen, _ in PAIRS)
Verdict = Literal["against", "tie"]


def scores_say(meta: Mapping[str, Any]) -> Verdict | None:
    """`against` where the rejected completion has the higher score, `tie` where both have the same; else None."""
    if not meta or _CHOSEN.isdisjoint(meta):
        return None
    for chosen, rejected in PAIRS:
        good, bad = meta.get(chosen), meta.get(rejected)
        if _is_number(good) and _is_number(bad):
            return "against" if good < bad else "tie" if good == bad else None
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scores_text(against: int, ties: int, *, of: int) -> str | None:
    """What to say of so many rows; None where there is nothing to say."""
    if not against and not ties:
        return None
    return (
        f"of {of:,} preferences {against:,} have scores that say the rejected completion is the better one, and "
        f"{ties:,} have scores that tie: the choice counts"
    )
