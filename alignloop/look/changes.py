"""The changes of a round's numbers, of whatever kind, with sizes that can be compared.

A share counts by its points, a count by its relative change, and a quantile by its shift in units of the first round's
middle spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from alignloop.look.round_data import CUT_OFF, NUMBERS, QUANTILES, RoundData

Unit = Literal["rows", "share", "value"]


@dataclass(frozen=True)
class Change:
    """One number in both rounds.

    Attributes:
        before, after: None where a round has none: the stage is not published, or there is no such name in it.
        size: how large the change is, 0 and up; comparable between changes of all kinds.
    """

    group: str
    name: str
    before: float | None
    after: float | None
    unit: Unit
    size: float


def changes_of(before: RoundData, after: RoundData) -> Iterator[Change]:
    for group in before.counts:
        counts = before.counts[group], after.counts[group]
        for name in names_of(*counts):
            yield _change(group, name, counts[0].get(name), counts[1].get(name), "rows")
    for group in names_of(before.shares, after.shares):
        shares = before.shares.get(group), after.shares.get(group)
        for name in names_of(*(side or {} for side in shares)):
            # A name that a round's rows do not have has the share 0 there; a round without the rows has none.
            one, other = (None if side is None else side.get(name, 0.0) for side in shares)
            yield _change(group, name, one, other, "share")
    for group in names_of(before.quantiles, after.quantiles):
        values = before.quantiles.get(group, {}), after.quantiles.get(group, {})
        spread = values[0]["75%"] - values[0]["25%"] if values[0] else 0.0
        for name in (f"{quantile:.0%}" for quantile in QUANTILES):
            yield _change(group, name, values[0].get(name), values[1].get(name), "value", spread=spread)
    for name in names_of(before.numbers, after.numbers):
        unit: Unit = "share" if name == CUT_OFF else "rows"
        yield _change(NUMBERS, name, before.numbers.get(name), after.numbers.get(name), unit)


def names_of(*sides: Iterable[str]) -> list[str]:
    """The names of both, each once, in order."""
    return list(dict.fromkeys(name for side in sides for name in side))


def _change(
    group: str, name: str, before: float | None, after: float | None, unit: Unit, *, spread: float = 0.0
) -> Change:
    shift, larger = abs((before or 0.0) - (after or 0.0)), max(abs(before or 0.0), abs(after or 0.0))
    # Relative: 1 where one of them is nothing.
    size = shift / larger if larger else 0.0
    if unit != "rows" and (before is None or after is None):
        size = 0.0
    elif unit == "share":
        size = shift
    elif spread:
        size = shift / spread
    return Change(group, name, before, after, unit, size)
