"""Rows labelled with their topics, from which a classifier learns: JSON lines of `topic` and a text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.errors import DataError

_MOST_SHOWN = 3


@dataclass(frozen=True)
class Labelled:
    """N texts and their topics, in file order."""

    texts: list[str]
    topics: list[str]


def read_labelled(path: Path) -> Labelled:
    """The rows of a file: `topic` beside `prompt`, `text`, or `messages` (whose last user turn is taken).

    Raises:
        DataError: no such file; wrong lines, by number and field; fewer than two topics, or one row of a topic.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: labelled rows cannot be read ({error}): JSON lines of topic and prompt are wanted"
        ) from error
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_row(line))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise DataError(f"{path}: {'; '.join(problems[:_MOST_SHOWN])}{more}. Mend these rows")
    counts = Counter(topic for _, topic in rows)
    if len(counts) < 2:
        raise DataError(f"{path}: {len(counts)} topics in {len(rows)} rows: two or more are needed to tell them apart")
    few = [topic for topic, count in counts.items() if count < 2]
    if few:
        raise DataError(
            f"{path}: only one row of topic {few[0]!r}: two or more are needed, one to learn from and one to measure on"
        )
    return Labelled([text for text, _ in rows], [topic for _, topic in rows])


def _row(line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    topic = row.get("topic")
    if not isinstance(topic, str) or not topic.strip():
        raise ValueError(f"field topic: {topic!r}, a text is wanted")
    return _text(row), topic.strip()


def _text(row: dict[str, Any]) -> str:
    for field in ("prompt", "text"):
        if isinstance(row.get(field), str) and row[field].strip():
            return str(row[field])
    turns = row.get("messages")
    if isinstance(turns, list):
        said = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"]
        if said and isinstance(said[-1], str) and said[-1].strip():
            return str(said[-1])
    raise ValueError("has no text: give prompt, text, or messages with a user's turn")
