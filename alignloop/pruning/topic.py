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
FINE = " > "
"""Parts a coarse topic from the fine one within it in a classifier's label: `mathematics > geometry`."""


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
    topics = map(split_label, labels)
    labelled = [
        replace(item, topic=coarse, fine_topic=fine) for item, (coarse, fine) in zip(items, topics, strict=True)
    ]
    return StepResult(labelled, metrics=metrics, notes=notes)


_WAYS: Mapping[str, Step] = {"column": _by_column, "judge": _by_judge, "classifier": _by_classifier}


def split_label(label: str) -> tuple[str, str | None]:
    """Coarse and fine topic of a classifier's label; the second is None where it has none."""
    coarse, _, fine = label.partition(FINE)
    return coarse, fine or None


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """(text, label) of the rows that a classifier learns from: `topic` and, where there is one, `fine_topic` beside
    `prompt`, `text`, or `messages`; a label is as `split_label` takes it.

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
    counts = Counter(label for _, label in rows)
    num_coarse = len({split_label(label)[0] for label in counts})
    if num_coarse < 2:
        raise DataError(f"{path}: {num_coarse} topics in {len(rows)} rows: two or more are needed to tell them apart")
    few = [topic for topic, count in counts.items() if count < 2]
    if few:
        raise DataError(
            f"{path}: only one row of topic {few[0]!r}: two or more are needed, one to learn from and one to measure on"
        )
    return rows


def _labelled_row(row: Any) -> tuple[str, str]:
    """Text and label of a row; of `messages` the last user turn."""
    if not isinstance(row, dict):
        raise BadRow(None, "not a JSON object")
    label = FINE.join(_topic(row, name) for name in ("topic", "fine_topic") if name == "topic" or name in row)
    turns = row.get("messages")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    by_user = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    for text in (row.get("prompt"), row.get("text"), *by_user[-1:]):
        if isinstance(text, str) and text.strip():
            return text, label
    raise BadRow(None, "has no text: give prompt, text, or messages with a user's turn")


def _topic(row: dict[str, Any], name: str) -> str:
    topic = row.get(name)
    if not isinstance(topic, str) or not topic.strip():
        raise BadRow(name, f"{topic!r}, a text is wanted")
    if FINE in topic:
        raise BadRow(name, f"{topic!r} holds {FINE!r}: the topic within a topic is `fine_topic`")
    return topic.strip()
