"""Step 5, near duplicates: of rows whose prompts share (nearly) all their words the best stays.

The paper prunes by meaning alone (4.2.3, step 6); the same words are found sooner, and without a model: normalised
equality, then MinHash (Broder 1997).

texts --units, n-grams--> sets --MinHash--> signatures --bands--> pairs worth a look --> estimated Jaccard

A signature is one integer multiplication a permutation over all n-grams of all texts at once; text by text, as
libraries do it, it takes several times as long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.items import Item
from alignloop.pruning.quality import priorities_of
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, left, pruned
from alignloop.pruning.text_units import Hashes, Texts, UnitHashes, chunks, mixed, normalised, starts_of
from alignloop.records import DroppedRow, PreferenceRow
from alignloop.sampling.best_of_k import check_finite

RULE = "near_duplicates"
_SEED = 0x616C69676E
_MOST_MISSED = 0.01


def near_duplicates(
    ids: Sequence[str],
    *,
    texts: Sequence[str],
    jaccard: float | None = 0.8,
    num_perm: int = 128,
    ngram: int = 5,
    priorities: Sequence[float] | None = None,
) -> Pruned:
    """Drop texts that equal a better one, or nearly do. Deterministic.

    Two texts are equal where they differ in case, spaces or compatibility forms alone. Two are near where the share of
    common n-grams among all theirs, estimated from `num_perm` MinHash values (standard error
    sqrt(J (1 - J) / num_perm), 0.035 at 0.8 and 128), reaches `jaccard`. Punctuation is in no n-gram. A text with
    fewer units than `ngram` has one n-gram: all it has. A row is compared with those kept before it.

    Args:
        jaccard: least estimated Jaccard similarity that drops, in (0, 1]; None: only equal texts are dropped.
        num_perm: MinHash values a text, 1 or more; a pair at `jaccard` is missed one time in a hundred or less.
        ngram: units (words; characters in scripts without spaces) in an n-gram, 1 or more.
        priorities: N numbers, higher first; the first row in this order is kept. None: the input's order.

    Raises:
        ValueError: a priority that is not finite.
    """
    order = list(range(len(ids)))
    if priorities is not None:
        check_finite(priorities, name="priorities")
        order.sort(key=lambda row: (-priorities[row], row))
    plain = [normalised(text) for text in texts]
    drops: dict[int, DroppedRow] = {}
    first: dict[str, int] = {}
    for row in order:
        twin = first.setdefault(plain[row], row)
        if twin != row:
            drops[row] = drop(ids[row], RULE, f"same text as {ids[twin]}, but for case and spaces", ids[twin])
    num_exact = len(drops)
    if jaccard is not None:
        others = [row for row in order if row not in drops]
        for position, twin, estimate in _near([plain[row] for row in others], jaccard, num_perm, ngram):
            row, other = others[position], ids[others[twin]]
            drops[row] = drop(ids[row], RULE, f"estimated Jaccard {estimate:.2f} to {other}", other)
    counts = {"num_exact": float(num_exact), "num_near": float(len(drops) - num_exact)}
    return pruned(ids, drops, metrics=counts)


def signatures(texts: Sequence[str], *, num_perm: int, ngram: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """[N, num_perm] MinHash values of normalised texts, and [N] which texts have any unit at all."""
    # Multiply-shift hashing (Dietzfelbinger et al. 1997): the upper half of an odd multiple, plus a shift.
    random = np.random.Generator(np.random.PCG64(_SEED))
    odd = random.integers(0, 2**63, size=num_perm, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shift = random.integers(0, 2**63, size=num_perm, dtype=np.uint64)
    hasher = UnitHashes()
    found = np.zeros((len(texts), num_perm), dtype=np.uint32)
    has_units = np.zeros(len(texts), dtype=bool)
    for start, part in chunks(texts):
        grams = shingles(hasher.texts(part), ngram)
        rows = np.flatnonzero(grams.lengths)
        has_units[start + rows] = True
        if not len(rows):
            continue
        with np.errstate(over="ignore"):
            for number in range(num_perm):
                values = ((grams.hashes * odd[number] + shift[number]) >> np.uint64(32)).astype(np.uint32)
                found[start + rows, number] = np.minimum.reduceat(values, grams.starts[:-1][rows])
    return found, has_units


def shingles(texts: Texts, ngram: int) -> Texts:
    """n-grams of each text; one of all its units where it has fewer."""
    grams = texts.ngrams(ngram)
    short = np.flatnonzero((texts.lengths > 0) & (texts.lengths < ngram))
    if not len(short):
        return grams
    # A text of m < n units is one m-gram. Its hash may equal no longer text's: the length goes into it.
    whole = np.zeros(len(short), dtype=np.uint64)
    for length in np.unique(texts.lengths[short]):
        position = np.flatnonzero(texts.lengths[short] == length)
        same = texts.ngrams(int(length))
        whole[position] = mixed(same.hashes[same.starts[short[position]]] ^ np.uint64(length))
    # These texts have no n-grams, so that each hash goes in where its text's n-grams would begin.
    hashes = np.insert(grams.hashes, grams.starts[short], whole)
    counts = grams.lengths.copy()
    counts[short] = 1
    return Texts(hashes, starts_of(counts))


def rows_per_band(jaccard: float, num_perm: int) -> int:
    """The longest bands (fewest pairs to compare) that miss a pair at `jaccard` 1 time in 100 or less."""
    for rows in range(num_perm, 1, -1):
        if (1 - jaccard**rows) ** (num_perm // rows) <= _MOST_MISSED:
            return rows
    return 1


def _near(texts: Sequence[str], jaccard: float, num_perm: int, ngram: int) -> Iterator[tuple[int, int, float]]:
    """(row, the most similar row kept before it, estimated Jaccard) for each that reaches `jaccard`."""
    found, has_units = signatures(texts, num_perm=num_perm, ngram=ngram)
    buckets = _shared_buckets(found, rows_per_band(jaccard, num_perm))
    kept: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero((buckets >= 0).any(axis=1) & has_units):
        mine = buckets[row][buckets[row] >= 0].tolist()
        others = sorted({other for bucket in mine for other in kept[bucket]})
        if others:
            estimates = (found[others] == found[row]).mean(axis=1)
            best = int(estimates.argmax())
            if estimates[best] >= jaccard:
                yield int(row), others[best], float(estimates[best])
                continue
        for bucket in mine:
            kept[bucket].append(int(row))


def _shared_buckets(found: NDArray[np.uint32], rows: int) -> NDArray[np.int64]:
    """[N, num_bands] bucket numbers, -1 where a text is alone in its bucket."""
    num_bands = found.shape[1] // rows
    buckets = np.full((len(found), num_bands), -1, dtype=np.int64)
    next_number = 0
    for band in range(num_bands):
        keys: Hashes = np.zeros(len(found), dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = mixed(keys ^ found[:, column])
        _, number, counts = np.unique(keys, return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(counts[number] > 1, number + next_number, -1)
        next_number += len(counts)
    return buckets


def near_duplicates_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows whose prompt has (nearly) the same words as a better row's."""
    config = tools.config.near_duplicates

    def compares_row(item: Item) -> bool:
        is_preference = isinstance(item.row, PreferenceRow) and not item.as_target
        return config.of == "row" or (config.of == "auto" and is_preference)

    verdict = near_duplicates(
        [item.id for item in items],
        texts=[item.text if compares_row(item) else item.prompt for item in items],
        jaccard=config.jaccard,
        num_perm=config.num_perm,
        priorities=priorities_of(items, by_reward=tools.config.quality.by != "judge"),
    )
    return left(items, verdict)
