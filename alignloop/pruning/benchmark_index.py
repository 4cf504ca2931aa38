"""Which benchmark questions a text contains, by their n-grams, for many questions and many texts.

question --distinct n-grams--> the rarest of them, in an inverted index
text --n-grams--> questions that share a rare one --all of their n-grams--> share of each that the text has

The share (containment; Broder 1997) counts n-grams wherever they stand in the text. The contamination analysis of The
Llama 3 Herd of Models (5.1.4) looks for 8-grams, and one changed word in the middle of a question of 15 leaves none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.text_units import Hashes, Texts, UnitHashes, chunks, joined, normalised, units
from alignloop.pruning.vectors import blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NGRAM = 3
MIN_SHARE = 0.7
"""With 3-grams: one changed word leaves a question of 12 units 7 of its 10, and one of 16 units 11 of its 14."""
WHOLE_UNITS = 12
"""A question of fewer units counts in one piece: `Which of the following is not a ...` is most of one."""
_LEAST_UNITS = 4
"""A question of fewer units is everyday language: it counts where it is all a row says."""
_FILTER_BITS = 22
_LONGEST_SHOWN = 24
_ROWS, _PAIRS = 256, 8_192
"""A block: rows, and (row, question) pairs."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BenchmarkText:
    task: str
    doc_id: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.task} {self.doc_id}"


class BenchmarkIndex:
    """Finds which of Q questions a text contains, by their n-grams.

    A text that has `min_share` of a question's n-grams has at least one of its rarest (1 - min_share) (Chaudhuri et al.
    2006, prefix filter): only those are looked up in every text, and what they find is counted in full.
    """

    def __init__(self, benchmarks: Sequence[BenchmarkText], *, ngram: int, min_share: float) -> None:
        self._benchmarks = benchmarks
        self._hasher = UnitHashes()
        self._units = [units(normalised(benchmark.text)) for benchmark in benchmarks]
        # The first of equal questions stands for them.
        first = {tuple(words): question for question, words in reversed(list(enumerate(self._units)))}
        self._whole = {words: question for words, question in first.items() if 0 < len(words) < _LEAST_UNITS}
        lengths: dict[int, list[int]] = {}
        for words, question in first.items():
            if len(words) >= _LEAST_UNITS:
                lengths.setdefault(min(ngram, len(words)), []).append(question)
        self._tables = []
        for length, found in sorted(lengths.items()):
            questions = sorted(found)
            grams = Texts.of([self._hasher.words(self._units[question]) for question in questions]).ngrams(length)
            self._tables.append(_Table(np.array(questions, dtype=np.intp), grams, length, min_share))

    def held(self, texts: Iterable[str]) -> Iterator[tuple[int, BenchmarkText, str]]:
        """(text index, question, the reason in words) for each text that contains a question, in order.

        The question with the greatest share is named, the first of equals.
        """
        for start, part in chunks(texts):
            hashed = self._hasher.texts(part)
            best = self._best([pair for table in self._tables for pair in table.pairs(hashed)], part)
            for row in np.flatnonzero((hashed.lengths > 0) & (hashed.lengths < _LEAST_UNITS)) if self._whole else ():
                words = tuple(units(normalised(part[row])))
                if words in self._whole:
                    best.setdefault(int(row), (self._whole[words], 1.0, words))
            for row, (number, share, longest) in sorted(best.items()):
                question = self._benchmarks[number]
                run = joined(longest[:_LONGEST_SHOWN]) + (" ..." if len(longest) > _LONGEST_SHOWN else "")
                yield start + row, question, f"holds {share:.0%} of {question.name}, the longest piece {run!r}"

    def _best(
        self, pairs: list[tuple[int, int, float]], texts: Sequence[str]
    ) -> dict[int, tuple[int, float, tuple[str, ...]]]:
        """Text -> (question, share, longest run of units in common); a short question counts in one piece only."""
        best: dict[int, tuple[int, float, tuple[str, ...]]] = {}
        for row, question, share in sorted(pairs, key=lambda pair: (pair[0], -pair[2], pair[1])):
            size = len(self._units[question])
            if row in best or (size < WHOLE_UNITS and share < 1.0):
                continue
            run = longest_run(self._units[question], units(normalised(texts[row])))
            if size >= WHOLE_UNITS or len(run) == size:
                best[row] = (question, share, run)
        return best


class _Table:
    """The distinct n-grams of one length of some questions; a bit field rules out most n-grams that are in none."""

    def __init__(self, questions: NDArray[np.intp], grams: Texts, length: int, min_share: float) -> None:
        self._questions, self._length, self._min_share = questions, length, min_share
        self._known, gram = np.unique(grams.hashes, return_inverse=True)
        self._held = self._matrix(np.repeat(np.arange(len(questions)), grams.lengths), gram, len(questions))
        self._totals = np.diff(self._held.indptr)
        question, gram = self._held.nonzero()
        # A question's grams, rarest first: the first of them find it.
        frequency = np.bincount(gram, minlength=len(self._known))
        order = np.lexsort((gram, frequency[gram], question))
        least = np.ceil(np.round(min_share * self._totals, 9)).astype(np.intp)
        num_finding = self._totals - np.maximum(least, 1) + 1
        position = np.arange(len(order)) - np.repeat(self._held.indptr[:-1], self._totals)
        finding = order[position < np.repeat(num_finding, self._totals)]
        self._finding = self._matrix(question[finding], gram[finding], len(questions)).T.tocsr()
        self._filter = np.zeros(2**_FILTER_BITS, dtype=bool)
        self._filter[self._low(self._known)] = True

    def pairs(self, texts: Texts) -> Iterator[tuple[int, int, float]]:
        """(row, question, share of the question's distinct n-grams that the row has) if it has enough."""
        grams = texts.ngrams(self._length)
        maybe = np.flatnonzero(self._filter[self._low(grams.hashes)])
        wanted = grams.hashes[maybe]
        gram = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        is_known = self._known[gram] == wanted
        row = np.searchsorted(grams.starts, maybe[is_known], side="right") - 1
        rows = self._matrix(row, gram[is_known], len(texts.lengths))
        for some in blocks(rows.shape[0], _ROWS):
            row, question = (rows[some] @ self._finding).nonzero()
            for part in blocks(len(row), _PAIRS):
                common = rows[some][row[part]].multiply(self._held[question[part]]).sum(axis=1)
                shares = np.asarray(common).ravel() / self._totals[question[part]]
                for position in np.flatnonzero(shares >= self._min_share - _ROUNDING) + part.start:
                    share = float(shares[position - part.start])
                    yield some.start + int(row[position]), int(self._questions[question[position]]), share

    def _matrix(self, row: NDArray[np.intp], gram: NDArray[np.intp], num_rows: int) -> csr_matrix:
        """[num_rows, G]: 1 where a row has an n-gram, however often."""
        from scipy.sparse import csr_matrix

        found = csr_matrix((np.ones(len(row), dtype=np.int32), (row, gram)), shape=(num_rows, len(self._known)))
        found.sum_duplicates()
        found.data[:] = 1
        return found

    @staticmethod
    def _low(hashes: Hashes) -> NDArray[np.intp]:
        return (hashes & np.uint64(2**_FILTER_BITS - 1)).astype(np.intp)


def longest_run(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """The longest run of units that both contain; of equally long ones the first in `first`."""
    found: dict[str, list[int]] = {}
    for at, word in enumerate(second):
        found.setdefault(word, []).append(at)
    best, end = 0, 0
    lengths: dict[int, int] = {}
    for position, word in enumerate(first):
        lengths = {at: lengths.get(at - 1, 0) + 1 for at in found.get(word, ())}
        longest = max(lengths.values(), default=0)
        if longest > best:
            best, end = longest, position + 1
    return tuple(first[end - best : end])
