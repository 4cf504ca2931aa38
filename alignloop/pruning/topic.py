"""Step 2: a topic for each row, coarse and fine. Drops nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from alignloop.errors import DataError
from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, lacking, skipped


def topic_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Label rows by their own column, the judge, or a classifier."""
    by = tools.config.topic.by
    if by == "off":
        return skipped(items, "prune.topic.by is off")
    result = _WAYS[by](items, tools)
    if result.skipped is not None:
        return result
    num_without = sum(item.topic is None for item in result.items)
    topics = Counter(item.topic for item in result.items if item.topic is not None)
    notes = (f"topic: {num_without:,} of {len(items):,} rows have none",) if num_without else ()
    counts = {"num_topics": float(len(topics)), "num_without": float(num_without)}
    return replace(result, metrics={**result.metrics, **counts}, notes=(*result.notes, *notes))


def _by_column(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.topic
    labelled = []
    for item in items:
        coarse, fine = _text(item, config.column), _text(item, config.fine_column)
        labelled.append(item.with_(topic=coarse or item.topic, fine_topic=fine or item.fine_topic))
    if all(item.topic is None for item in labelled):
        return lacking(items, tools, step="topic", why=f"by is column, but no row has a column {config.column!r}")
    return StepResult(labelled)


def _by_judge(items: Sequence[Item], tools: Tools) -> StepResult:
    config = tools.config.topic
    if tools.judge is None:
        return lacking(items, tools, step="topic", why="by is judge, but there is no `judge` section")
    given = tools.judge.texts(config.prompt, items, labels=config.labels)
    labelled = []
    for item, one in zip(items, given, strict=True):
        coarse, fine = (*(one.texts or ()), None, None)[:2]
        labelled.append(item.with_(topic=coarse, fine_topic=fine))
    return StepResult(labelled)


def _by_classifier(items: Sequence[Item], tools: Tools) -> StepResult:
    from alignloop.pruning.classifier import classify

    found = classify(
        [item.asked for item in items],
        tools.config.topic,
        folder=tools.folder,
        seed=tools.seed,
        progress=tools.progress,
    )
    labelled = [item.with_(topic=label) for item, label in zip(items, found.labels, strict=True)]
    return StepResult(labelled, metrics=found.metrics, notes=found.notes)


def _text(item: Item, column: str) -> str | None:
    """A free column's text.

    Raises:
        DataError: it holds something else.
    """
    value = item.column(column)
    if value is None or (isinstance(value, str) and value.strip()):
        return None if value is None else str(value).strip()
    where = f"{item.source.file}, line {item.source.line}" if item.source.line else item.source.file
    raise DataError(f"{where}, field {column}: row {item.id} has the topic {value!r}: a text is wanted")


_WAYS: Mapping[str, Callable[[Sequence[Item], Tools], StepResult]] = {
    "column": _by_column,
    "judge": _by_judge,
    "classifier": _by_classifier,
}
