"""Step 2, topics (4.2.3): a model labels every row, coarse and fine. Drops nothing; mix and code's quality go by it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from alignloop.errors import DataError
from alignloop.pruning.items import Item
from alignloop.pruning.step import Step, StepResult, Tools, lacking, skipped


def topic_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Label rows by their own column, the judge, or a classifier."""
    by = tools.config.topic.by
    if by == "off":
        return skipped(items, "prune.topic.by is off")
    result = _WAYS[by](items, tools)
    if result.skipped is not None:
        return result
    topics = Counter(item.topic for item in result.items)
    num_without = topics.pop(None, 0)
    notes = (f"topic: {num_without:,} of {len(items):,} rows have none",) if num_without else ()
    counts = {"num_topics": float(len(topics)), "num_without": float(num_without)}
    return replace(result, metrics={**result.metrics, **counts}, notes=(*result.notes, *notes))


def _by_column(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.topic
    labelled = []
    for item in items:
        coarse, fine = _text(item, config.column), _text(item, config.fine_column)
        labelled.append(replace(item, topic=coarse or item.topic, fine_topic=fine or item.fine_topic))
    if all(item.topic is None for item in labelled):
        return lacking(items, tools, step="topic", why=f"by is column, but no row has a column {config.column!r}")
    return StepResult(labelled)


def _by_judge(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.topic
    if tools.judge is None:
        return lacking(items, tools, step="topic", why="by is judge, but there is no `judge` section")
    labelled = []
    for item, answer in zip(items, tools.judge.texts(config.prompt, items, labels=config.labels), strict=True):
        coarse, fine = (*(answer.texts or ()), None, None)[:2]
        labelled.append(replace(item, topic=coarse, fine_topic=fine))
    return StepResult(labelled)


def _by_classifier(items: Sequence[Item], tools: Tools) -> StepResult:
    from alignloop.pruning.classifier import classify

    texts = [item.last_question for item in items]
    found = classify(texts, tools.config.topic, folder=tools.folder, seed=tools.seed, progress=tools.progress)
    labelled = [replace(item, topic=label) for item, label in zip(items, found.labels, strict=True)]
    return StepResult(labelled, metrics=found.metrics, notes=found.notes)


def _text(item: Item, column: str) -> str | None:
    """A free column's text.

    Raises:
        DataError: it holds something else.
    """
    value = item.row.meta.get(column)
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return value.strip()
    where = f"{item.source.file}, line {item.source.line}" if item.source.line else item.source.file
    raise DataError(f"{where}, field {column}: row {item.id} has the topic {value!r}: a text is wanted")


_WAYS: Mapping[str, Step] = {"column": _by_column, "judge": _by_judge, "classifier": _by_classifier}


class Labelled(NamedTuple):
    """N texts and their topics, in file order."""

    texts: list[str]
    topics: list[str]


_MOST_SHOWN = 3


def read_labelled(path: Path) -> Labelled:
    """Rows that a classifier learns from: JSON lines of `topic` beside `prompt`, `text`, or `messages`.

    Raises:
        DataError: no such file; wrong lines, by number and field; fewer than two topics, or one row of a topic.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: labelled rows cannot be read ({error}): JSON lines of topic and prompt are wanted"
        ) from error
    found = Labelled([], [])
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                text, topic = _labelled_row(line)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
            else:
                found.texts.append(text)
                found.topics.append(topic)
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise DataError(f"{path}: {'; '.join(problems[:_MOST_SHOWN])}{more}. Mend these rows")
    counts = Counter(found.topics)
    if len(counts) < 2:
        raise DataError(
            f"{path}: {len(counts)} topics in {len(found.topics)} rows: two or more are needed to tell them apart"
        )
    few = [topic for topic, count in counts.items() if count < 2]
    if few:
        raise DataError(
            f"{path}: only one row of topic {few[0]!r}: two or more are needed, one to learn from and one to measure on"
        )
    return found


def _labelled_row(line: str) -> tuple[str, str]:
    """Text and topic of a row; of `messages` the last user turn is taken."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    topic = row.get("topic")
    if not isinstance(topic, str) or not topic.strip():
        raise ValueError(f"field topic: {topic!r}, a text is wanted")
    turns = row.get("messages")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    by_user = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    for text in (row.get("prompt"), row.get("text"), *by_user[-1:]):
        if isinstance(text, str) and text.strip():
            return text, topic.strip()
    raise ValueError("has no text: give prompt, text, or messages with a user's turn")
