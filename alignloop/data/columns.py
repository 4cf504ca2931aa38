"""What other files call our columns, and columns that no row can be trained without.

raw object --ALIASES, the user's own names--> Named: the columns that forms know, and what the file calls them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from alignloop.config.data import ColumnName
from alignloop.data.dialogs import RawObject
from alignloop.data.problems import BadRow, found_at, shown
from alignloop.data.tools import CALLS, is_empty
from alignloop.data.turns import REFUSED_MEDIA, is_turns
from alignloop.errors import DataError, UserError, did_you_mean
from alignloop.records import Strength

_DIALOG = ("prompt", "messages", "conversations", "instruction")
"""Columns one of which holds what was asked."""
TARGETS: tuple[str, ...] = get_args(ColumnName)
"""Columns that can be found under another name, as `data.columns` takes them."""
_VERDICTS = ("overall_preference", "preference_strength")
"""-3 to 3: below 0 the first response is better."""
_RESPONSES = (("response1", "response2"), ("response_1", "response_2"))
_STRENGTHS: dict[int, Strength] = {3: "significantly_better", 2: "better", 1: "slightly_better"}
_REFUSED = REFUSED_MEDIA | frozenset(CALLS)


class Named(NamedTuple):
    """A row under the names that forms know; `names` maps those that the file calls otherwise to what it calls them."""

    row: RawObject
    names: Mapping[str, str]


class Alias(NamedTuple):
    """A column that means `target` where the row has none of `unless` and the value fits."""

    source: str
    target: str
    unless: tuple[str, ...]
    fits: Callable[[object], bool]


def _is_text_or_turns(value: object) -> bool:
    return type(value) is str or is_turns(value)


ALIASES = (
    Alias("context", "prompt", _DIALOG, is_turns),
    Alias("question", "prompt", _DIALOG, _is_text_or_turns),
    Alias("query", "prompt", _DIALOG, _is_text_or_turns),
    Alias("system_prompt", "system", ("system",), lambda value: type(value) is str),
    Alias("chosen_response", "chosen", ("chosen",), lambda value: value is not None),
    Alias("rejected_response", "rejected", ("rejected",), lambda value: value is not None),
    Alias("response", "completion", ("completion", "chosen", "chosen_response", "output"), _is_text_or_turns),
)
NOTICED = frozenset({alias.source for alias in ALIASES} | set(_VERDICTS) | _REFUSED)
"""A row that has none of these columns is named as it stands, and refused for none."""


def named(row: RawObject, *, columns: Mapping[str, str], prompt_only: bool = False) -> Named:
    """A row under the names that forms know.

    Args:
        columns: our name -> the user's: a column, or a path in one (`answer_a.text`, `turns[0]`).
        prompt_only: leave completions' columns as they are: nothing reads them.

    Raises:
        BadRow: of two responses neither is better.
    """
    if not columns and NOTICED.isdisjoint(row):
        return Named(row, {})
    found = dict(row) | {target: _value_at(row, path) for target, path in columns.items()}
    names = dict(columns)
    for path in columns.values():
        if path not in columns:
            found.pop(path, None)
    for alias in ALIASES:
        if prompt_only and alias.target not in ("prompt", "system"):
            continue
        if alias.source in found and found.keys().isdisjoint(alias.unless) and alias.fits(found[alias.source]):
            found[alias.target] = found.pop(alias.source)
            names[alias.target] = alias.source
    if not prompt_only:
        _choose(found, names)
    return Named(found, names)


def check_columns(rows: Sequence[RawObject], columns: Mapping[str, str], *, file: str) -> None:
    """Refuse names of columns that none of the first `rows` has, if only as null: they would be left out silently.

    Raises:
        DataError: names the column, and the nearest there is.
    """
    there = dict.fromkeys(name for row in rows for name in row)
    for target, path in columns.items():
        if not rows or any(path in row or _value_at(row, path) is not None for row in rows):
            continue
        hint = did_you_mean(path, there) or f"their columns are {', '.join(there)}."
        raise DataError(
            f"{file}: {target} is to be found in {path} (data.columns, --column), which none of the first "
            f"{len(rows)} rows has; {hint} Rows without it may have it as null"
        )


def _value_at(row: RawObject, path: str) -> Any:
    return row[path] if path in row else found_at(row, path)


def _choose(row: dict[str, Any], names: dict[str, str]) -> None:
    """Two responses and a verdict -> chosen, rejected, strength."""
    verdict = next((name for name in _VERDICTS if type(row.get(name)) in (int, float)), None)
    pair = next((pair for pair in _RESPONSES if row.keys() >= set(pair)), None)
    if verdict is None or pair is None or "chosen" in row:
        return
    value = row[verdict]
    if not value or abs(value) not in _STRENGTHS:
        reason = "is 0: neither response is better" if not value else f"must be -3 to 3, found {shown(value)}"
        raise BadRow(verdict, reason)
    best, worst = pair if value < 0 else pair[::-1]
    row.setdefault("strength", _STRENGTHS[abs(int(row.pop(verdict)))])
    row["chosen"], row["rejected"] = row.pop(best), row.pop(worst)
    names.update(chosen=best, rejected=worst)


def refuse_columns(row: RawObject) -> None:
    for name in _REFUSED.intersection(row):
        value = row[name]
        if is_empty(value):
            continue
        if name in REFUSED_MEDIA:
            raise BadRow(name, "holds pictures or sounds, and only text is trained: leave the row out, or the column")
        if type(value) is list or str(value).lstrip().startswith(("[", "{")):
            raise BadRow(
                name,
                "holds calls of tools outside of a turn: give them in the turn that calls, or leave out the column",
            )


def in_file(field: str | None, names: Mapping[str, str]) -> str | None:
    """A field as the file calls it: `chosen.content` -> `answer_a.text.content`."""
    if field is None or not names:
        return field
    head = next((field[:at] for at, letter in enumerate(field) if letter in ".["), field)
    return names.get(head, head) + field[len(head) :]


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`prompt=question` -> {"prompt": "question"}.

    Raises:
        UserError: not of that form, or no column of ours.
    """
    found = {}
    for pair in pairs:
        target, mark, path = (part.strip() for part in pair.partition("="))
        if not mark or not path:
            raise UserError(f"--column {pair}: write OURS=THEIRS, for example prompt=question")
        if target not in TARGETS:
            raise UserError(f"--column {pair}: {target} is not read from files; there are {', '.join(TARGETS)}")
        found[target] = path
    return found
