"""What changed between two rounds' data, the largest changes first.

Changes of different kinds are made comparable: a share counts by its points, a count by its relative change, and a
quantile by its shift in units of the first round's middle spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignloop.errors import UserError
from alignloop.look.round_facts import QUANTILES, RoundFacts, facts_of
from alignloop.run_dir.reader import RunReader

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


@dataclass(frozen=True)
class Overlap:
    """Rows of one kind that stand in both rounds.

    Attributes:
        num_common: rows in both; `share` of those that stand in either.
        added, lost: a few ids, where they are ids that people know.
    """

    name: str
    num_before: int
    num_after: int
    num_common: int
    share: float
    added: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Diff:
    """Two rounds held against each other.

    Attributes:
        missing: round -> stages it has not published.
        groups: name -> its changes, largest first; the group with the largest change first.
    """

    run_dir: Path
    before: int
    after: int
    missing: dict[int, tuple[str, ...]]
    overlaps: tuple[Overlap, ...]
    groups: dict[str, tuple[Change, ...]]

    @property
    def largest(self) -> list[Change]:
        """The largest change of every group that has one, largest first."""
        return [changes[0] for changes in self.groups.values() if changes[0].size > 0]


def diff_of(run_dir: Path, *, before: int, after: int) -> Diff:
    """What changed from round `before` to round `after`.

    Raises:
        UserError: no run lies there, a round has not begun, or both are the same.
    """
    run = RunReader(run_dir)
    for number in (before, after):
        _check_round(number, run)
    if before == after:
        raise UserError(f"rounds {before} and {after} are the same round: name two; {_rounds(run)}")
    one, other = facts_of(run, before), facts_of(run, after)
    changes = [
        *_of_counts("rows by stage", one.counts, other.counts),
        *_of_counts("drops by reason", one.drops, other.drops),
        *_of_shares(one, other),
        *_of_quantiles(one, other),
        *_of_numbers(one, other),
    ]
    missing = {facts.round: facts.missing for facts in (one, other) if facts.missing}
    return Diff(run_dir, before, after, missing, _overlaps(one, other), _grouped(changes))


def _check_round(number: int, run: RunReader) -> None:
    if number == 0:
        raise UserError(f"round 0 is the base: it samples and trains nothing to hold against a round; {_rounds(run)}")
    if number not in run.rounds:
        raise UserError(f"round {number}: {run.run_dir} has no such round; {_rounds(run)}")


def _rounds(run: RunReader) -> str:
    numbers = [number for number in run.rounds if number]
    return f"it has rounds {', '.join(map(str, numbers))}" if numbers else "no round of it has begun"


def _grouped(changes: list[Change]) -> dict[str, tuple[Change, ...]]:
    groups: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: -change.size):
        groups.setdefault(change.group, []).append(change)
    return {name: tuple(members) for name, members in groups.items()}


def _of_counts(group: str, before: Mapping[str, float], after: Mapping[str, float]) -> list[Change]:
    found = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        found.append(Change(group, name, one, other, "rows", _relative(one, other)))
    return found


def _relative(one: float | None, other: float | None) -> float:
    """|change| over the larger of the two: 1 where one of them is nothing."""
    a, b = abs(one or 0.0), abs(other or 0.0)
    return abs((one or 0.0) - (other or 0.0)) / max(a, b) if max(a, b) else 0.0


def _of_shares(before: RoundFacts, after: RoundFacts) -> list[Change]:
    found = []
    for group in dict.fromkeys([*before.shares, *after.shares]):
        one, other = before.shares.get(group), after.shares.get(group)
        for name in dict.fromkeys([*(one or {}), *(other or {})]):
            # A name that a round's rows do not have has the share 0 there; a round without the rows has none.
            values = [None if side is None else side.get(name, 0.0) for side in (one, other)]
            size = abs(values[0] - values[1]) if None not in values else 0.0  # type: ignore[operator]
            found.append(Change(group, name, values[0], values[1], "share", size))
    return found


def _of_quantiles(before: RoundFacts, after: RoundFacts) -> list[Change]:
    found = []
    for group in dict.fromkeys([*before.quantiles, *after.quantiles]):
        one, other = before.quantiles.get(group, ()), after.quantiles.get(group, ())
        spread = (one[3] - one[1]) if one else 0.0
        for at, quantile in enumerate(QUANTILES):
            a, b = (one[at] if one else None), (other[at] if other else None)
            shift = abs(a - b) if a is not None and b is not None else 0.0
            size = shift / spread if spread else _relative(a, b) if shift else 0.0
            found.append(Change(group, f"{quantile:.0%}", a, b, "value", size))
    return found


def _of_numbers(before: RoundFacts, after: RoundFacts) -> list[Change]:
    found = []
    for name in dict.fromkeys([*before.numbers, *after.numbers]):
        a, b = before.numbers.get(name), after.numbers.get(name)
        is_share = name.endswith("(share)")
        size = _relative(a, b)
        if is_share:
            size = abs(a - b) if a is not None and b is not None else 0.0
        found.append(Change("other numbers", name, a, b, "share" if is_share else "rows", size))
    return found


_SHOWN = 3


def _overlaps(before: RoundFacts, after: RoundFacts) -> tuple[Overlap, ...]:
    found = []
    for name in dict.fromkeys([*before.rows, *after.rows]):
        one, other = before.rows.get(name, frozenset()), after.rows.get(name, frozenset())
        either = len(one | other)
        named = name in ("prompts", "preferences")
        found.append(
            Overlap(
                name,
                len(one),
                len(other),
                len(one & other),
                len(one & other) / either if either else 0.0,
                tuple(sorted(other - one)[:_SHOWN]) if named else (),
                tuple(sorted(one - other)[:_SHOWN]) if named else (),
            )
        )
    return tuple(found)
