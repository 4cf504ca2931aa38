"""Decontamination: rows that hold a question of the run's own benchmarks are dropped, by n-grams or by embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignloop.selection.benchmark_index import MIN_SHARE, NGRAM, RULE, BenchmarkIndex, BenchmarkText
from alignloop.selection.vectors import BLOCK, UnitRows, blocks, cores, in_threads, one_blas_thread
from alignloop.selection.verdicts import Drop, Pruned, pruned

THRESHOLD = 0.9


def decontaminate(
    ids: Sequence[str],
    *,
    texts: Sequence[str],
    benchmarks: Sequence[BenchmarkText],
    ngram: int = NGRAM,
    min_share: float = MIN_SHARE,
    embeddings: NDArray[np.floating] | None = None,
    benchmark_embeddings: NDArray[np.floating] | None = None,
    threshold: float = THRESHOLD,
    num_threads: int | None = None,
) -> Pruned:
    """Drop rows that hold a benchmark's question, or, where embeddings are given, say nearly the same as one.

    A question of fewer than `WHOLE_UNITS` units counts where the row has all of it in one piece; one of fewer than
    four, where it is the whole row. Case, punctuation and spaces do not matter. The reason names task, question and
    the longest run of words in common, or the cosine.

    Args:
        ids, texts: N rows; of a dialog, all that is trained on and its prompt.
        benchmarks: Q questions.
        ngram: units (words; characters in scripts without spaces) a sequence.
        min_share: a row with this share of a question's n-grams or more is dropped, in (0, 1].
        embeddings, benchmark_embeddings: [N, D] and [Q, D], both or none; a zero vector is near to nothing.
        threshold: least cosine that drops.
        num_threads: of the embedding check; default all cores given to the process.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a number out of its range.
    """
    _check(ids, texts, benchmarks, embeddings, benchmark_embeddings, threshold, num_threads)
    drops = BenchmarkIndex(benchmarks, ngram=ngram, min_share=min_share).drops(ids, texts)
    num_by_text = len(drops)
    if embeddings is not None and benchmark_embeddings is not None and len(benchmarks):
        nearest, cosines = _nearest(embeddings, benchmark_embeddings, num_threads=num_threads or cores())
        for row in np.flatnonzero(cosines >= threshold):
            if int(row) not in drops:
                name = benchmarks[nearest[row]].name
                cosine = min(float(cosines[row]), 1.0)
                drops[int(row)] = Drop(ids[row], RULE, f"cosine {cosine:.4f} to {name}", name, cosine)
    counts = {"num_by_text": float(num_by_text), "num_by_embedding": float(len(drops) - num_by_text)}
    return pruned(ids, drops, metrics=counts)


def _nearest(
    embeddings: NDArray[np.floating], benchmark_embeddings: NDArray[np.floating], *, num_threads: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Nearest question of each row, and the cosine; -inf where either is a zero vector."""
    with one_blas_thread():
        rows = UnitRows(embeddings, num_threads=num_threads)
        asked = UnitRows(benchmark_embeddings, name="benchmark_embeddings", num_threads=num_threads)
        questions = asked.take(slice(None))
        zero = asked.norms == 0

        def nearest(part: slice) -> NDArray[np.intp]:
            products = rows.take(part) @ questions.T
            products[:, zero] = -np.inf
            return products.argmax(axis=1)

        # Blocks of rows whose products with all questions are as large as a block of embeddings.
        size = max(1, BLOCK * 256 // max(len(questions), 256))
        places = np.concatenate(in_threads(nearest, blocks(len(rows), size), num_threads=num_threads))
        cosines = np.empty(len(rows))
        for part in blocks(len(rows), BLOCK):
            pairs = np.einsum("nd,nd->n", rows.take(part).astype(np.float64), questions[places[part]])
            cosines[part] = np.where((rows.norms[part] > 0) & ~zero[places[part]], pairs, -np.inf)
    return places, cosines


def _check(
    ids: Sequence[str],
    texts: Sequence[str],
    benchmarks: Sequence[BenchmarkText],
    embeddings: NDArray[np.floating] | None,
    benchmark_embeddings: NDArray[np.floating] | None,
    threshold: float,
    num_threads: int | None,
) -> None:
    if len(ids) != len(texts):
        raise ValueError(f"{len(texts)} texts for {len(ids)} ids")
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}: a cosine, -1 to 1")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}: it must be at least 1")
    if (embeddings is None) != (benchmark_embeddings is None):
        raise ValueError("embeddings of rows and of benchmarks are wanted, both or none")
    if embeddings is None or benchmark_embeddings is None:
        return
    for name, given, rows in (
        ("embeddings", embeddings, len(ids)),
        ("benchmark_embeddings", benchmark_embeddings, len(benchmarks)),
    ):
        if given.ndim != 2 or len(given) != rows:
            raise ValueError(f"{name} of shape {given.shape} for {rows} rows")
    if embeddings.shape[1] != benchmark_embeddings.shape[1]:
        raise ValueError(
            f"embeddings of {embeddings.shape[1]} dimensions and benchmark_embeddings of "
            f"{benchmark_embeddings.shape[1]}: one embedder for both"
        )
