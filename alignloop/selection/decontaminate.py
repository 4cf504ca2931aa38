"""Decontamination: rows that hold a question of the run's own benchmarks are dropped.

n-grams: the share of a question's units that lie in n-grams the row has too, after the contamination analysis of
The Llama 3 Herd of Models, 5.1.4 (8-grams, a share of tokens). Embeddings: the cosine of row and question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignloop.selection.text_units import Hashes, Texts, UnitHasher, joined, normalised, units
from alignloop.selection.vectors import BLOCK, UnitRows, blocks, cores, in_threads, one_blas_thread
from alignloop.selection.verdicts import Drop, Pruned, pruned

RULE = "decontaminate"
NGRAM = 8
MIN_SHARE = 0.9
"""A copy with a word changed here and there still reaches it; prompts made from one template mostly do not."""
THRESHOLD = 0.9
_CHUNK = 2_048
"""Rows whose n-grams are in memory at a time."""
_LEAST_UNITS = 4
"""A question of fewer units is everyday language: it counts where it is all a row says."""
_FILTER_BITS = 22
_LONGEST_SHOWN = 24
_MOST_MATCHES = 2_000_000
"""n-grams common to rows and questions that are looked at together."""


@dataclass(frozen=True)
class BenchmarkText:
    """A question of a benchmark: its task, its id there, and its text."""

    task: str
    doc_id: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.task} {self.doc_id}"


@dataclass(frozen=True)
class Overlap:
    """What a row and a question have in common.

    Attributes:
        question: index of the question.
        share: of the question's units.
        longest: the longest run of units both have.
    """

    question: int
    share: float
    longest: tuple[str, ...]


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

    A question shorter than `ngram` units counts where the row has all of it in one piece; one of fewer than four
    units, where it is the whole row. Case, punctuation and spaces do not matter. The reason names task, question and
    the longest run of words in common, or the cosine.

    Args:
        ids, texts: N rows; of a dialog, all that is trained on and its prompt.
        benchmarks: Q questions.
        ngram: units (words; characters in scripts without spaces) a sequence.
        min_share: a row with this share of a question's units or more is dropped, in (0, 1].
        embeddings, benchmark_embeddings: [N, D] and [Q, D], both or none; a zero vector is near to nothing.
        threshold: least cosine that drops.
        num_threads: of the embedding check; default all cores given to the process.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a number out of its range.
    """
    _check(ids, texts, benchmarks, ngram, min_share, embeddings, benchmark_embeddings, threshold, num_threads)
    drops: dict[int, Drop] = {}
    index = BenchmarkIndex(benchmarks, ngram=ngram, min_share=min_share)
    for row, overlap in index.overlaps(texts):
        question = benchmarks[overlap.question]
        run = joined(overlap.longest[:_LONGEST_SHOWN]) + (" ..." if len(overlap.longest) > _LONGEST_SHOWN else "")
        reason = f"holds {overlap.share:.0%} of {question.name}, the longest piece {run!r}"
        drops[row] = Drop(ids[row], RULE, reason, question.name)
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


class BenchmarkIndex:
    """n-gram -> the questions it is in, for Q questions.

    Args:
        ngram, min_share: as for `decontaminate`.
    """

    def __init__(self, benchmarks: Sequence[BenchmarkText], *, ngram: int, min_share: float) -> None:
        self._ngram, self._min_share = ngram, min_share
        self._hasher = UnitHasher()
        self._units = [units(normalised(benchmark.text)) for benchmark in benchmarks]
        texts = self._hasher.texts(self._units)
        self._sizes = texts.lengths
        self._tables = {length: self._table(texts, length) for length in self._gram_lengths(texts)}
        # The first of equal questions stands for them.
        short = [" ".join(words) if 0 < len(words) < _LEAST_UNITS else "" for words in self._units]
        self._whole = {words: question for question, words in reversed(list(enumerate(short))) if words}

    def overlaps(self, texts: Sequence[str]) -> list[tuple[int, Overlap]]:
        """(row, its greatest overlap) for each that reaches `min_share`, in order; ties go to the first question."""
        found: list[tuple[int, Overlap]] = []
        for part in blocks(len(texts), _CHUNK):
            rows = [units(normalised(text)) for text in texts[part]]
            hashed = self._hasher.texts(rows)
            shares = self._shares(hashed)
            for row, words in enumerate(rows):
                question, share = shares.get(row, (-1, 0.0))
                if question < 0 and len(words) < _LEAST_UNITS:
                    question, share = self._whole.get(" ".join(words), -1), 1.0
                if question >= 0:
                    run = longest_run(self._units[question], words)
                    found.append((part.start + row, Overlap(question, share, run)))
        return found

    def _gram_lengths(self, texts: Texts) -> list[int]:
        """`ngram`, and the whole length of each shorter question that is long enough."""
        sizes = texts.lengths
        shorter = np.unique(sizes[(sizes >= _LEAST_UNITS) & (sizes < self._ngram)])
        has_long = bool((sizes >= self._ngram).any())
        return [*(int(size) for size in shorter), *([self._ngram] if has_long else [])]

    def _table(self, texts: Texts, length: int) -> _Table:
        grams = texts.ngrams(length)
        question = np.repeat(np.arange(len(texts)), grams.lengths)
        place = np.arange(len(grams.hashes)) - np.repeat(grams.starts[:-1], grams.lengths)
        if length < self._ngram:  # these are whole questions, not parts of longer ones
            own = texts.lengths[question] == length
            return _Table(grams.hashes[own], question[own], place[own])
        return _Table(grams.hashes, question, place)

    def _shares(self, rows: Texts) -> dict[int, tuple[int, float]]:
        """Row -> (question, share) of the greatest overlap that reaches `min_share`."""
        best: dict[int, tuple[int, float]] = {}
        for length, table in self._tables.items():
            for found in table.matches(rows.ngrams(length)):
                for row, question, share in self._covered(*found, length=length):
                    if row not in best or (-share, question) < (-best[row][1], best[row][0]):
                        best[row] = (question, share)
        return best

    def _covered(
        self, rows: NDArray[np.intp], questions: NDArray[np.intp], places: NDArray[np.intp], *, length: int
    ) -> list[tuple[int, int, float]]:
        """(row, question, share of its units that shared n-grams cover) of the pairs that reach `min_share`."""
        num_questions, size = len(self._sizes), int(self._sizes.max())
        pairs, pair, counts = np.unique(rows * num_questions + questions, return_inverse=True, return_counts=True)
        sizes = self._sizes[pairs % num_questions]
        hopeful = (counts * length >= self._min_share * sizes)[pair]  # n-grams that overlap cover less than that
        units_covered = (pair[hopeful] * size + places[hopeful])[:, None] + np.arange(length)
        which, covered = np.unique(np.unique(units_covered) // size, return_counts=True)
        shares = covered / sizes[which]
        enough = np.flatnonzero(shares >= self._min_share)
        return [(*divmod(int(pairs[which[place]]), num_questions), float(shares[place])) for place in enough]


class _Table:
    """n-gram hashes, sorted, with where each comes from; a bit field first tells the many that are in none."""

    def __init__(self, hashes: Hashes, question: NDArray[np.intp], place: NDArray[np.intp]) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._question, self._place = hashes[order], question[order], place[order]
        self._filter = np.zeros(2**_FILTER_BITS, dtype=bool)
        self._filter[self._low(hashes)] = True

    def matches(self, grams: Texts) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
        """Row, question and place in the question of every n-gram a row and a question share, some rows at a time."""
        maybe = np.flatnonzero(self._filter[self._low(grams.hashes)])
        wanted = grams.hashes[maybe]
        left = np.searchsorted(self._hashes, wanted, side="left")
        right = np.searchsorted(self._hashes, wanted, side="right")
        row = np.searchsorted(grams.starts, maybe, side="right") - 1
        # An n-gram many times in one row says no more than once.
        triples = np.unique(np.stack([row, left, right], axis=1)[right > left], axis=0)
        total = np.cumsum(triples[:, 2] - triples[:, 1])
        # Pieces end with a row, so that all a row and a question share is seen at once.
        ends = np.flatnonzero(np.diff(triples[:, 0], append=-1)) + 1
        start = 0
        while start < len(triples):
            before = total[start - 1] if start else 0
            reached = int(np.searchsorted(total[ends - 1], before + _MOST_MATCHES, side="right"))
            stop = int(max(ends[max(reached - 1, 0)], ends[np.searchsorted(ends, start, side="right")]))
            row, left, right = triples[start:stop].T
            counts = right - left
            entries = np.repeat(left - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
            yield np.repeat(row, counts), self._question[entries], self._place[entries]
            start = stop

    @staticmethod
    def _low(hashes: Hashes) -> NDArray[np.intp]:
        return (hashes & np.uint64(2**_FILTER_BITS - 1)).astype(np.intp)


def longest_run(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """The longest sequence of units that both have in one piece; the first such one of `first`."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(second):
        places.setdefault(word, []).append(place)
    best, end = 0, 0
    lengths: dict[int, int] = {}
    for position, word in enumerate(first):
        lengths = {place: lengths.get(place - 1, 0) + 1 for place in places.get(word, ())}
        longest = max(lengths.values(), default=0)
        if longest > best:
            best, end = longest, position + 1
    return tuple(first[end - best : end])


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
    ngram: int,
    min_share: float,
    embeddings: NDArray[np.floating] | None,
    benchmark_embeddings: NDArray[np.floating] | None,
    threshold: float,
    num_threads: int | None,
) -> None:
    if len(ids) != len(texts):
        raise ValueError(f"{len(texts)} texts for {len(ids)} ids")
    if ngram < 1:
        raise ValueError(f"ngram is {ngram}: it must be at least 1")
    if not 0.0 < min_share <= 1.0:
        raise ValueError(f"min_share is {min_share}: above 0 and at most 1")
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
