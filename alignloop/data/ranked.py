"""Ranked lists of completions -> pairs: the best against each that is worse.

The chosen completion of a pair is also what SFT learns from, so only the best one is ever chosen. Completions of equal
rank are never compared. Responses with a score in rows of their own, which follow each other with the same prompt, are
made one row with `completions` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from alignloop.data.problems import BadRow, is_number, shown
from alignloop.data.turns import REASONING, is_turns, read_completion, read_reasoning, refuse_untrained

BEST_FIRST = ("ranking", "ranked_completions", "ranked_responses")
ANSWERS = "answers"
"""A list of completions where its items have ranks; otherwise what a question's answers are to be checked against."""
LISTS = (*BEST_FIRST, "completions", "responses", ANSWERS)
"""Columns a list of completions may stand in."""
NUMBER_LISTS = ("ranks", "scores", "ratings")
_TEXTS = ("completion", "response", "text", "content", "output", "answer")
_HIGH_IS_GOOD = ("score", "rating", "overall_score", "reward")
_NUMBERS = ("rank", *_HIGH_IS_GOOD)
_SHORT = 200
"""Characters of a text that is carried along with a completion; a critique is longer."""


@dataclass(frozen=True)
class Ranked:
    """A completion.

    Attributes:
        grade: higher the better.
        number: what the file says, where more is better.
        beside: where it stands -> numbers, names and the like that stand with it there.
    """

    text: str
    grade: float
    number: float | None
    beside: dict[str, dict[str, Any]]


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
        meta: dict[str, Any] = {"score_chosen": best.number, "score_rejected": other.number} if known else {}
        if beside := best.beside | other.beside:
            meta["beside"] = beside
        found.append((best, other, meta))
    return found


def columns_read(row: Mapping[str, Any]) -> set[str]:
    """The columns in which a row's completions and their numbers stand."""
    numbers = next((name for name in NUMBER_LISTS if row.get(name) is not None), None)
    return {name for name in (_column(row), numbers) if name is not None}


def _column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in LISTS if type(row.get(name)) is list), None)


def _read(row: Mapping[str, Any], column: str) -> list[Ranked]:
    items = row[column]
    if len(items) < 2:
        raise BadRow(column, f"holds {len(items)} completions; at least two are needed to compare")
    texts = [_text(item, f"{column}[{index}]") for index, item in enumerate(items)]
    numbers, name = _numbers(row, column)
    completions = []
    for index, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        beside = _beside(items[index], f"{column}[{index}]")
        is_place = name in (None, "rank", "ranks")
        completions.append(Ranked(text, -number if is_place else number, None if is_place else number, beside))
    return completions


def _numbers(row: Mapping[str, Any], column: str) -> tuple[list[float], str | None]:
    """(a number for each completion, what they are called); their places in the list where the row has none."""
    items = row[column]
    name = next((name for name in NUMBER_LISTS if row.get(name) is not None), None)
    if name is not None:
        return _number_list(row[name], name, num=len(items), column=column), name
    objects = [item if isinstance(item, Mapping) else {} for item in items]
    name = next((name for name in _NUMBERS if any(name in item for item in objects)), None)
    if name is None:
        return [float(index) for index in range(len(items))], None
    numbers = [read_number(item.get(name), f"{column}[{index}].{name}") for index, item in enumerate(objects)]
    return numbers, name


def _beside(item: object, field: str) -> dict[str, dict[str, Any]]:
    """Short values that stand with a completion: the model that wrote it, other marks."""
    if not isinstance(item, Mapping):
        return {}
    read = {*_TEXTS, *_NUMBERS, *REASONING, "role", "from", "content", "value"}
    kept = {k: v for k, v in item.items() if k not in read and (type(v) in (int, float, bool) or _is_short(v))}
    return {field: kept} if kept else {}


def _is_short(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= _SHORT


def _number_list(value: object, name: str, *, num: int, column: str) -> list[float]:
    if not isinstance(value, list) or len(value) != num:
        raise BadRow(name, f"must be a list of {num} numbers, one for each of {column}, found {shown(value)}")
    return [read_number(item, f"{name}[{index}]") for index, item in enumerate(value)]


def read_number(value: object, field: str) -> float:
    """A finite number."""
    if is_number(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(field, f"must be a number, found {shown(value)}")
    raise BadRow(field, f"must be a number that is not infinite, found {shown(value)[:60]}")


def _text(item: object, field: str) -> str:
    if is_turns(item):
        return read_completion(item, field)
    if isinstance(item, Mapping) and "role" not in item and "from" not in item:
        name = next((name for name in _TEXTS if item.get(name) is not None), None)
        if name is None:
            raise BadRow(field, f"holds no text; one of {', '.join(_TEXTS)} is needed")
        refuse_untrained(item, "assistant", field)
        text = read_completion(item[name], f"{field}.{name}")
        reasoning = read_reasoning(item, field)
        return text if reasoning is None else reasoning.before(text)
    return read_completion(item, field)


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
