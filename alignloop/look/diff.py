"""What changed between two rounds' data, the largest changes first; as lines of at most 80 columns, or as JSON.

Sizes of changes of whatever kind can be compared: a share counts by its points, a count by its relative change, and a
quantile by its shift in units of the first round's middle spread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from alignloop.errors import UserError
from alignloop.look.round_data import CUT_OFF, QUANTILES, RoundData, round_data
from alignloop.run_dir.reader import RunReader
from alignloop.terminal import wrapped

_MOST_IDS = 3
_NAME = 44
_MOST_OF_GROUP = 10
_LARGEST = 8
NumberKind = Literal["rows", "share", "value"]


@dataclass(frozen=True)
class NumberChange:
    """One number in both rounds. `before` and `after` are None where a round has none: the stage is not published, or
    lacks the name. `size`, 0 and up, is how large the change is, comparable between changes of all kinds."""

    group: str
    name: str
    before: float | None
    after: float | None
    unit: NumberKind
    size: float


@dataclass(frozen=True)
class RowOverlap:
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
    """Two rounds compared: `missing` maps a round to stages it has not published; `groups` a name to its changes,
    largest first, the group with the largest change first."""

    run_dir: Path
    before: int
    after: int
    missing: dict[int, tuple[str, ...]]
    overlaps: tuple[RowOverlap, ...]
    groups: dict[str, tuple[NumberChange, ...]]

    @property
    def largest(self) -> list[NumberChange]:
        """The largest change of every group that has one, largest first."""
        return [changes[0] for changes in self.groups.values() if changes[0].size > 0][:_LARGEST]


def diff_of(run_dir: Path, *, before: int, after: int) -> Diff:
    """What changed from round `before` to round `after`; UserError where no run lies there, a round has not begun, or
    both are the same."""
    run = RunReader(run_dir)
    _check_rounds(before, after, run)
    one, other = round_data(run, before), round_data(run, after)
    groups: dict[str, list[NumberChange]] = {}
    for change in sorted(_changes(one, other), key=lambda change: -change.size):
        groups.setdefault(change.group, []).append(change)
    return Diff(
        run_dir,
        before,
        after,
        {number: data.missing for number, data in ((before, one), (after, other)) if data.missing},
        tuple(_overlap(name, one.rows, other.rows) for name in _names(one.rows, other.rows)),
        {name: tuple(changes) for name, changes in groups.items()},
    )


def _check_rounds(before: int, after: int, run: RunReader) -> None:
    numbers = ", ".join(str(number) for number in run.rounds if number)
    rounds = f"it has rounds {numbers}" if numbers else "no round of it has begun"
    for number in (before, after):
        if number == 0:
            raise UserError(f"round 0 is the base: it samples and trains nothing to hold against a round; {rounds}")
        if number not in run.rounds:
            raise UserError(f"round {number}: {run.run_dir} has no such round; {rounds}")
    if before == after:
        raise UserError(f"rounds {before} and {after} are the same round: name two; {rounds}")


def _changes(before: RoundData, after: RoundData) -> Iterator[NumberChange]:
    kinds: tuple[NumberKind, ...] = ("rows", "share", "value", "rows")
    sides = ((data.counts, data.shares, data.quantiles, data.numbers) for data in (before, after))
    for kind, ones, others in zip(kinds, *sides, strict=True):
        # A name that a round's rows do not have has the share 0 there; a round without the rows has none.
        absent = 0.0 if kind == "share" else None
        for group in _names(ones, others):
            one, other = ones.get(group), others.get(group)
            spread = one["75%"] - one["25%"] if one and kind == "value" else 0.0
            names = _names(one or {}, other or {}) if kind != "value" else [f"{quantile:.0%}" for quantile in QUANTILES]
            for name in names:
                x, y = (None if side is None else side.get(name, absent) for side in (one, other))
                unit: NumberKind = "share" if name == CUT_OFF else kind
                yield NumberChange(group, name, x, y, unit, _size(x, y, unit, spread=spread))


def _size(before: float | None, after: float | None, unit: NumberKind, *, spread: float) -> float:
    shift, larger = abs((before or 0.0) - (after or 0.0)), max(abs(before or 0.0), abs(after or 0.0))
    if unit != "rows" and (before is None or after is None):
        return 0.0
    if unit == "share":
        return shift
    if spread:
        return shift / spread
    return shift / larger if larger else 0.0  # relative: 1 where one of them is nothing


def _names(*sides: Iterable[str]) -> list[str]:
    """The names of both, each once, in order."""
    return list(dict.fromkeys(name for side in sides for name in side))


def _overlap(name: str, before: dict[str, frozenset[str]], after: dict[str, frozenset[str]]) -> RowOverlap:
    one, other = before.get(name, frozenset()), after.get(name, frozenset())
    common, either = len(one & other), len(one | other)
    shown = _MOST_IDS if name in ("prompts", "preferences") else 0
    added, lost = (tuple(sorted(ids)[:shown]) for ids in (other - one, one - other))
    return RowOverlap(name, len(one), len(other), common, common / either if either else 0.0, added, lost)


def diff_json(diff: Diff) -> str:
    """Everything, largest changes first."""
    value = {
        "run_dir": str(diff.run_dir),
        "rounds": [diff.before, diff.after],
        "missing": {str(number): list(stages) for number, stages in diff.missing.items()},
        "overlaps": [asdict(overlap) for overlap in diff.overlaps],
        "largest": [asdict(change) for change in diff.largest],
        "groups": {name: [asdict(change) for change in changes] for name, changes in diff.groups.items()},
    }
    return json.dumps(value, indent=1, ensure_ascii=False)


def diff_text(diff: Diff) -> str:
    """For the screen."""
    lines = [f"{diff.run_dir}: from round {diff.before} to round {diff.after}"]
    for number, stages in diff.missing.items():
        lines += wrapped(f"round {number} is not finished: {', '.join(stages)} not published; what there is is shown")
    lines += ["", _head("largest changes", diff)]
    lines += [_line(change, f"{change.group}: {change.name}") for change in diff.largest] or ["  none"]
    lines += ["", *(line for overlap in diff.overlaps for line in _overlap_lines(overlap))]
    for name, changes in diff.groups.items():
        lines += ["", _head(name, diff)]
        lines += [_line(change, change.name) for change in changes[:_MOST_OF_GROUP]]
        if len(changes) > _MOST_OF_GROUP:
            lines.append(f"  and {len(changes) - _MOST_OF_GROUP:,} more that changed less (--json has all)")
    return "\n".join(lines)


def _head(name: str, diff: Diff) -> str:
    return f"{name:<{_NAME}}{f'round {diff.before}':>12}{f'round {diff.after}':>12}{'change':>12}"


def _line(change: NumberChange, name: str) -> str:
    width = _NAME - 3
    shown = name if len(name) <= width else f"{name[: width - 3]}..."
    before, after = (_value(value, change.unit) for value in (change.before, change.after))
    return f"  {shown:<{_NAME - 2}}{before:>12}{after:>12}{_step(change):>12}"


def _value(value: float | None, unit: NumberKind) -> str:
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if unit == "rows" else f"{value:,.4g}"


def _step(change: NumberChange) -> str:
    if change.before is None or change.after is None:
        return ""
    step = change.after - change.before
    if step == 0:
        return "="
    if change.unit == "share":
        return f"{100 * step:+.1f} pts"
    return f"{step:+,.0f}" if change.unit == "rows" else f"{step:+,.4g}"


def _overlap_lines(overlap: RowOverlap) -> list[str]:
    added, lost = overlap.num_after - overlap.num_common, overlap.num_before - overlap.num_common
    both = f"{overlap.num_common:,} in both ({overlap.share:.1%} of all)"
    lines = wrapped(f"{overlap.name}: {both}, {added:,} added, {lost:,} lost")
    for what, ids, number in (("added", overlap.added, added), ("lost", overlap.lost, lost)):
        if ids:
            more = f", ... ({number:,})" if number > len(ids) else ""
            lines += wrapped(f"{what}: {', '.join(ids)}{more}", "  ", "         ")
    return lines
