"""Responses with a score in rows of their own -> one ranked list a prompt.

rows that follow each other with the same prompt --merged--> one row with `completions`, as `ranked` reads it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from alignloop.data.problems import BadRow
from alignloop.data.ranked import read_number
from alignloop.data.turns import read_completion

SCORES = ("helpfulness", "score", "rating", "overall_score", "reward", "label")
"""Columns of which the first that a row has says how good its response is; only the first is guessed to."""
SCORED = frozenset({"completion", *SCORES})
_ASKED = ("system", "prompt", "messages", "instruction", "input", "history")
_MOST = 1024
"""Responses of a prompt that are compared with each other."""
Placed = tuple[int, Mapping[str, Any]]
"""Place in the file, and row."""


def is_scored(row: Mapping[str, Any]) -> bool:
    """Whether a row is one response and says how helpful it is."""
    return type(row.get(SCORES[0])) in (int, float) and "completion" in row and "chosen" not in row


def check_scored(row: Mapping[str, Any]) -> None:
    """Refuse a row without a response or a score.

    Raises:
        BadRow: names the column.
    """
    read_completion(row.get("completion"), "completion")
    name = _score(row)
    if name is None:
        raise BadRow(SCORES[0], f"is missing: a number in one of {', '.join(SCORES)} is needed")
    _number(row, name)


def groups(rows: Iterable[Placed]) -> Iterator[list[Placed]]:
    """Rows that follow each other with the same prompt."""
    for _, group in groupby(rows, key=lambda placed: _prompt(placed[1])):
        while many := list(islice(group, _MOST)):
            yield many


def merged(rows: list[Placed]) -> dict[str, Any]:
    """The rows of a prompt as one; what the responses have beside their texts stays with them."""
    first = rows[0][1]
    completions = []
    for _, row in rows:
        name = _score(row)
        assert name is not None, "rows are checked before"
        beside = {key: value for key, value in row.items() if key not in SCORED and key not in _ASKED}
        others = {key: row[key] for key in SCORES if key != name and key in row}
        completions.append(beside | others | {"completion": row["completion"], "score": _number(row, name)})
    return {name: first[name] for name in (*_ASKED, "id", "meta", "annotator") if name in first} | {
        "completions": completions
    }


def _score(row: Mapping[str, Any]) -> str | None:
    return next((name for name in SCORES if row.get(name) is not None), None)


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row[name]
    return float(value) if name == "label" and type(value) is bool else read_number(value, name)


def _prompt(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in _ASKED], sort_keys=True, default=str)
