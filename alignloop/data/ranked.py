"""Ranked lists of completions -> pairs: the best against each that is worse.

The chosen completion of a pair is also what SFT learns from, so only the best one is ever chosen. Completions of equal
rank are never compared. Responses with a score in rows of their own, which follow each other with the same prompt, are
made one row with `completions` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any, NamedTuple

from alignloop.chat.tool_turns import join_calls
from alignloop.data.problems import BadRow, is_number, shown
from alignloop.data.tools import calls_of
from alignloop.data.turns import REASONING, is_turns, read_completion, read_reasoning, refuse_untrained

BEST_FIRST = ("ranking", "ranked_completions", "ranked_responses")
ANSWERS = "answers"
"""A list of completions where its items have ranks; otherwise what a question's answers are to be checked against."""
LISTS = (*BEST_FIRST, "completions", "responses", ANSWERS)
"""Columns a list of completions may stand in."""
NUMBER_LISTS = ("ranks", "scores", "ratings")
SCORES = ("helpfulness", "score", "rating", "overall_score", "reward", "label")
"""Columns of which the first that a row has says how good its response is; only the first is guessed to."""
_TEXTS = ("completion", "response", "text", "content", "output", "answer")
_NUMBERS = ("rank", "score", "rating", "overall_score", "reward")
_READ = frozenset({*_TEXTS, *_NUMBERS, *REASONING, "role", "from", "content", "value"})
_ASKED = ("system", "prompt", "messages", "instruction", "input", "history")
_SHORT = 200
"""Characters of a text that is carried along with a completion; a critique is longer."""
_MOST = 1024
"""Responses of a prompt that are compared with each other."""
PlacedRow = tuple[int, Mapping[str, Any]]


class Ranked(NamedTuple):
    """A completion.

    Attributes:
        grade: higher the better.
        number: what the file says, where more is better.
        beside: field -> short values that stand with it there.
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
    return {name for name in (_column(row), _number_column(row)) if name is not None}


def _column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in LISTS if type(row.get(name)) is list), None)


def _number_column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in NUMBER_LISTS if row.get(name) is not None), None)


def _read(row: Mapping[str, Any], column: str) -> list[Ranked]:
    items = row[column]
    if len(items) < 2:
        raise BadRow(column, f"holds {len(items)} completions; at least two are needed to compare")
    texts = [_text(item, f"{column}[{index}]") for index, item in enumerate(items)]
    numbers, name = _numbers(row, column)
    less_is_better = name in (None, "rank", "ranks")
    completions = []
    for index, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        beside = _beside(items[index], f"{column}[{index}]")
        grade, known = (-number, None) if less_is_better else (number, number)
        completions.append(Ranked(text, grade, known, beside))
    return completions


def _text(item: object, field: str) -> str:
    if is_turns(item) or not isinstance(item, Mapping) or "role" in item or "from" in item:
        return read_completion(item, field)
    name = next((name for name in _TEXTS if item.get(name) is not None), None)
    if name is None:
        raise BadRow(field, f"holds no text; one of {', '.join(_TEXTS)} is needed")
    refuse_untrained(item, "assistant", field)
    text = read_completion(item[name], f"{field}.{name}")
    if (calls := calls_of(item, field)) is not None:
        text = join_calls(text, calls.text)
    reasoning = read_reasoning(item, field)
    return text if reasoning is None else reasoning.before(text)


def _numbers(row: Mapping[str, Any], column: str) -> tuple[list[float], str | None]:
    """A number for each completion and its column's name; without numbers, positions in the list."""
    items = row[column]
    if (name := _number_column(row)) is not None:
        found = row[name]
        if not isinstance(found, list) or len(found) != len(items):
            wanted = f"must be a list of {len(items)} numbers, one for each of {column}"
            raise BadRow(name, f"{wanted}, found {shown(found)}")
        return [_read_number(item, f"{name}[{index}]") for index, item in enumerate(found)], name
    objects = [item if isinstance(item, Mapping) else {} for item in items]
    name = next((name for name in _NUMBERS if any(name in item for item in objects)), None)
    if name is None:
        return [float(index) for index in range(len(items))], None
    return [_read_number(item.get(name), f"{column}[{index}].{name}") for index, item in enumerate(objects)], name


def _read_number(value: object, field: str) -> float:
    if is_number(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(field, f"must be a number, found {shown(value)}")
    raise BadRow(field, f"must be a number that is not infinite, found {shown(value)[:60]}")


def _beside(item: object, field: str) -> dict[str, dict[str, Any]]:
    """Short values that stand with a completion: the model that wrote it, other marks."""
    if not isinstance(item, Mapping):
        return {}
    kept = {}
    for name, value in item.items():
        is_short = type(value) in (int, float, bool) or (type(value) is str and 0 < len(value) <= _SHORT)
        if name not in _READ and is_short:
            kept[name] = value
    return {field: kept} if kept else {}


def is_scored(row: Mapping[str, Any]) -> bool:
    return type(row.get(SCORES[0])) in (int, float) and "completion" in row and "chosen" not in row


def check_scored(row: Mapping[str, Any]) -> None:
    read_completion(row.get("completion"), "completion")
    _score(row)


def groups(rows: Iterable[PlacedRow]) -> Iterator[list[PlacedRow]]:

    def prompt(placed: PlacedRow) -> str:
        return json.dumps([placed[1].get(name) for name in _ASKED], sort_keys=True, default=str)

    for _, group in groupby(rows, key=prompt):
        while many := list(islice(group, _MOST)):
            yield many


def merged(rows: list[PlacedRow]) -> dict[str, Any]:
    """The rows of a prompt, which `check_scored` passed, as one; what responses have beside their texts stays."""
    first = rows[0][1]
    completions = []
    for _, row in rows:
        name, number = _score(row)
        beside = {key: value for key, value in row.items() if key not in ("completion", *SCORES, *_ASKED)}
        others = {key: row[key] for key in SCORES if key != name and key in row}
        completions.append(beside | others | {"completion": row["completion"], "score": number})
    return {name: first[name] for name in (*_ASKED, "id", "meta", "annotator") if name in first} | {
        "completions": completions
    }


def _score(row: Mapping[str, Any]) -> tuple[str, float]:
    name = next((name for name in SCORES if row.get(name) is not None), None)
    if name is None:
        raise BadRow(SCORES[0], f"is missing: a number in one of {', '.join(SCORES)} is needed")
    value = row[name]
    return name, float(value) if name == "label" and type(value) is bool else _read_number(value, name)
