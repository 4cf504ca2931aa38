"""Ranked lists of completions -> pairs: the best against each that is worse.

The chosen completion of a pair is also what SFT learns from, so only the best one is ever chosen. Completions of equal
rank are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.turns import is_turns, read_completion

BEST_FIRST = ("ranking", "ranked_completions", "ranked_responses")
LISTS = (*BEST_FIRST, "completions", "responses")
"""Columns a list of completions may stand in."""
NUMBER_LISTS = ("ranks", "scores", "ratings")
_TEXTS = ("completion", "response", "text", "content", "output", "answer")
_HIGH_IS_GOOD = ("score", "rating", "overall_score", "reward")
_NUMBERS = ("rank", *_HIGH_IS_GOOD)


@dataclass(frozen=True)
class Ranked:
    """A completion; `grade` is higher the better, `number` what the file says."""

    text: str
    grade: float
    number: float | None


def is_ranked(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a list of completions and says how good each is."""
    column = _column(row)
    if column is None:
        return False
    if column in BEST_FIRST or any(type(row.get(name)) is list for name in NUMBER_LISTS):
        return True
    return any(type(item) is dict and any(name in item for name in _NUMBERS) for item in row[column])


def best_against_each(row: Mapping[str, Any]) -> list[tuple[Ranked, Ranked, dict[str, Any]]]:
    """(best, worse one, what is known of the pair), in the order of the list.

    Raises:
        BadRow: fewer than two completions, none better than another, or some without a rank.
    """
    column = _column(row)
    if column is None:
        raise BadRow("ranking", f"is missing: a list of completions in one of {', '.join(LISTS)} is needed")
    completions = _read(row, column)
    best = max(completions, key=lambda completion: completion.grade)
    worse = [completion for completion in completions if completion.grade < best.grade]
    if not worse:
        raise BadRow(column, f"ranks its {len(completions)} completions equal: none is better than another")
    found = []
    for other in worse:
        known = best.number is not None and other.number is not None
        numbers = {"score_chosen": best.number, "score_rejected": other.number} if known else {}
        found.append((best, other, numbers))
    return found


def _column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in LISTS if type(row.get(name)) is list), None)


def _read(row: Mapping[str, Any], column: str) -> list[Ranked]:
    items = row[column]
    if len(items) < 2:
        raise BadRow(column, f"holds {len(items)} completions; at least two are needed to compare")
    texts = [_text(item, f"{column}[{index}]") for index, item in enumerate(items)]
    beside = next((name for name in NUMBER_LISTS if row.get(name) is not None), None)
    if beside is not None:
        numbers = _number_list(row[beside], beside, num=len(items), column=column)
        rank = beside == "ranks"
    else:
        name = next(
            (name for name in _NUMBERS if any(isinstance(item, Mapping) and name in item for item in items)), None
        )
        if name is None:
            return [Ranked(text, -float(index), None) for index, text in enumerate(texts)]
        numbers = [
            _number(item.get(name) if isinstance(item, Mapping) else None, f"{column}[{index}].{name}")
            for index, item in enumerate(items)
        ]
        rank = name == "rank"
    return [Ranked(text, -n if rank else n, None if rank else n) for text, n in zip(texts, numbers, strict=True)]


def _number_list(value: object, name: str, *, num: int, column: str) -> list[float]:
    if not isinstance(value, list) or len(value) != num:
        raise BadRow(name, f"must be a list of {num} numbers, one for each of {column}, found {shown(value)}")
    return [_number(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(field, f"must be a number, found {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(field, f"must be a number that is not infinite, found {shown(value)[:60]}")
    return number


def _text(item: object, field: str) -> str:
    if is_turns(item):
        return read_completion(item, field)
    if isinstance(item, Mapping) and "role" not in item and "from" not in item:
        name = next((name for name in _TEXTS if item.get(name) is not None), None)
        if name is None:
            raise BadRow(field, f"holds no text; one of {', '.join(_TEXTS)} is needed")
        text = check_text(item[name], f"{field}.{name}")
        if not text.strip():
            raise BadRow(f"{field}.{name}", "is empty")
        return text
    return read_completion(item, field)
