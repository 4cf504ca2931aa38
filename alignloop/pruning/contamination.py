"""Step 7: no row holds a question of the run's own benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignloop.config.pruning import DecontaminateConfig
from alignloop.pruning.incoming import held_text
from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, left, skipped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alignloop.selection.benchmark_index import BenchmarkText

SENTENCE_THRESHOLD, POLICY_THRESHOLD = 0.9, 0.99
NO_VECTORS = "decontaminate: only words were compared: prompts of benchmarks have no given embeddings"


def decontaminate_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows that hold a benchmark's question, by words, and by embedding where prompts can be embedded."""
    config = tools.config.decontaminate
    if not config.enabled:
        return skipped(items, "prune.decontaminate.enabled is false")
    if tools.benchmarks is None:
        return skipped(items, "no benchmarks are named")
    from alignloop.selection.decontaminate import decontaminate

    benchmarks = tools.benchmarks()
    vectors = None if config.embedding_threshold is None else _vectors(items, benchmarks, tools)
    rows, questions = (None, None) if vectors is None else vectors
    verdict = decontaminate(
        [item.id for item in items],
        texts=[held_text(item.messages, *item.completions) for item in items],
        benchmarks=benchmarks,
        ngram=config.ngram,
        min_share=config.min_share,
        embeddings=rows,
        benchmark_embeddings=questions,
        threshold=_threshold(config, tools),
    )
    notes = (NO_VECTORS,) if vectors is None and config.embedding_threshold is not None else ()
    result = left(items, verdict)
    return replace(result, metrics={**result.metrics, "num_questions": float(len(benchmarks))}, notes=notes)


def _threshold(config: DecontaminateConfig, tools: Tools) -> float:
    """Least cosine that drops."""
    if config.embedding_threshold == "auto":
        return POLICY_THRESHOLD if tools.embedding is not None and tools.embedding.centred else SENTENCE_THRESHOLD
    return config.embedding_threshold or 1.0


def _vectors(
    items: Sequence[Item], benchmarks: Sequence[BenchmarkText], tools: Tools
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Of the rows' prompts and of the questions, from one model; None where nothing embeds them."""
    if tools.embedding is None:
        return None
    found = tools.embedding.prompts([*(item.prompt for item in items), *(question.text for question in benchmarks)])
    if found is None:
        return None
    rows, questions = found[: len(items)], found[len(items) :]
    if not tools.embedding.centred:
        return rows, questions
    mean = rows.mean(axis=0, keepdims=True)
    return rows - mean, questions - mean
