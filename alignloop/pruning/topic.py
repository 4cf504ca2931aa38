"""Step 2, topics (4.2.3): a model labels every row, coarse and fine. Drops nothing; mix and code's quality go by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignloop.data.jsonl import numbered_lines
from alignloop.data.parsing import parse_row
from alignloop.data.problems import BadRow
from alignloop.errors import DataError
from alignloop.pruning.items import Item
from alignloop.pruning.step import Step, StepResult, Tools, lacking, skipped

_MOST_SHOWN = 3


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


def _text(item: Item, column: str) -> str | None:
    """A free column's text; a DataError where it is something else."""
    value = item.row.meta.get(column)
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(f"{item.where}, field {column}: row {item.id} has the topic {value!r}: a text is wanted")


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
    labels, metrics, notes = classify(
        texts, tools.config.topic, folder=tools.folder, seed=tools.seed, progress=tools.progress
    )
    labelled = [replace(item, topic=label) for item, label in zip(items, labels, strict=True)]
    return StepResult(labelled, metrics=metrics, notes=notes)


_WAYS: Mapping[str, Step] = {"column": _by_column, "judge": _by_judge, "classifier": _by_classifier}


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """(text, topic) of the rows that a classifier learns from: `topic` beside `prompt`, `text`, or `messages`.

    Raises:
        DataError: no such file; wrong lines, by number and field; fewer than two topics, or a topic with one row.
    """
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    for number, offset, line in numbered_lines(
        path, holds=": labelled rows, JSON lines of topic and prompt, are wanted"
    ):
        try:
            rows.append(_labelled_row(parse_row(line, line=None, offset=offset)))
        except BadRow as bad:
            field = f"field {bad.field}: " if bad.field else ""
            problems.append(f"line {number}: {field}{bad.reason}")
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
    return rows


def _labelled_row(row: Any) -> tuple[str, str]:
    """Text and topic of a row; of `messages` the last user turn."""
    if not isinstance(row, dict):
        raise BadRow(None, "not a JSON object")
    topic = row.get("topic")
    if not isinstance(topic, str) or not topic.strip():
        raise BadRow("topic", f"{topic!r}, a text is wanted")
    turns = row.get("messages")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    by_user = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    for text in (row.get("prompt"), row.get("text"), *by_user[-1:]):
        if isinstance(text, str) and text.strip():
            return text, topic.strip()
    raise BadRow(None, "has no text: give prompt, text, or messages with a user's turn")
