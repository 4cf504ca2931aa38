"""A diff as lines of at most 80 columns, or as JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from alignloop.look.diff import Change, Diff, Overlap

WIDTH = 80
_NAME = 44
_MOST_OF_GROUP = 10
_LARGEST = 8


def diff_json(diff: Diff) -> str:
    """Everything, largest changes first."""
    value = {
        "run_dir": str(diff.run_dir),
        "rounds": [diff.before, diff.after],
        "missing": {str(number): list(stages) for number, stages in diff.missing.items()},
        "overlaps": [asdict(overlap) for overlap in diff.overlaps],
        "largest": [asdict(change) for change in diff.largest[:_LARGEST]],
        "groups": {name: [asdict(change) for change in changes] for name, changes in diff.groups.items()},
    }
    return json.dumps(value, indent=1, ensure_ascii=False)


def diff_text(diff: Diff) -> str:
    """For the screen."""
    lines = [f"{diff.run_dir}: from round {diff.before} to round {diff.after}"]
    for number, stages in diff.missing.items():
        lines += _wrapped(f"round {number} is not finished: {', '.join(stages)} not published; what there is is shown")
    lines += ["", *_head("largest changes", diff)]
    lines += [_line(change, f"{change.group}: {change.name}") for change in diff.largest[:_LARGEST]] or ["  none"]
    lines += ["", *(line for overlap in diff.overlaps for line in _overlap_lines(overlap))]
    for name, changes in diff.groups.items():
        lines += ["", *_head(name, diff)]
        shown = changes[:_MOST_OF_GROUP]
        lines += [_line(change, change.name) for change in shown]
        if len(changes) > len(shown):
            lines.append(f"  and {len(changes) - len(shown):,} more that changed less (--json has all)")
    return "\n".join(lines)


def _head(name: str, diff: Diff) -> list[str]:
    return [f"{name:<{_NAME}}{f'round {diff.before}':>12}{f'round {diff.after}':>12}{'change':>12}"]


def _line(change: Change, name: str) -> str:
    room = _NAME - 3
    told = name if len(name) <= room else f"{name[: room - 3]}..."
    return (
        f"  {told:<{_NAME - 2}}{_value(change.before, change):>12}{_value(change.after, change):>12}{_by(change):>12}"
    )


def _value(value: float | None, change: Change) -> str:
    if value is None:
        return "-"
    if change.unit == "share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if change.unit == "rows" else f"{value:,.4g}"


def _by(change: Change) -> str:
    if change.before is None or change.after is None:
        return ""
    step = change.after - change.before
    if step == 0:
        return "="
    if change.unit == "share":
        return f"{100 * step:+.1f} pts"
    return f"{step:+,.0f}" if change.unit == "rows" else f"{step:+,.4g}"


def _overlap_lines(overlap: Overlap) -> list[str]:
    added, lost = overlap.num_after - overlap.num_common, overlap.num_before - overlap.num_common
    text = (
        f"{overlap.name}: {overlap.num_common:,} in both ({overlap.share:.1%} of all), {added:,} added, {lost:,} lost"
    )
    lines = _wrapped(text)
    for what, names, number in (("added", overlap.added, added), ("lost", overlap.lost, lost)):
        if names:
            more = f", ... ({number:,})" if number > len(names) else ""
            lines += _wrapped(f"{what}: {', '.join(names)}{more}", "  ", "         ")
    return lines


def _wrapped(text: str, first: str = "", rest: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
