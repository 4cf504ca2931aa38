"""Embeddings for the data benchmark: clustered unit vectors with planted near-duplicates, made from a seed.

Directions have variances that fall as a power law, as those of text embeddings do, so that neighbours are near and
clusters have borders; rows lie around topics, and some rows are another one moved a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIM = 384
SEED = 20_261_122
_BLOCK = 50_000
_DECAY = 0.5
_ROWS_PER_TOPIC = 500
_SPREAD = 0.8
PLANTED_SHARE = 0.05
_COSINES = (0.955, 0.995)


@dataclass(frozen=True)
class Planted:
    """Unit vectors [N, D]; row `copies[i]` is row `sources[i]` turned away to a cosine of 0.955 to 0.995."""

    vectors: NDArray[np.float32]
    copies: NDArray[np.intp]
    sources: NDArray[np.intp]


def clustered(num_rows: int, *, dim: int = DIM, seed: int = SEED) -> Planted:
    """`num_rows` vectors, a twentieth of them copies of others; float32, made in blocks."""
    random = np.random.default_rng([seed, num_rows])
    scale = ((np.arange(dim) + 1.0) ** -_DECAY).astype(np.float32)
    topics = random.standard_normal((max(8, num_rows // _ROWS_PER_TOPIC), dim), dtype=np.float32) * scale
    vectors = np.empty((num_rows, dim), dtype=np.float32)
    for start in range(0, num_rows, _BLOCK):
        rows = vectors[start : start + _BLOCK]
        random.standard_normal(out=rows, dtype=np.float32)
        rows *= _SPREAD * scale
        rows += topics[random.integers(len(topics), size=len(rows))]
        _to_unit(rows)
    both = random.permutation(num_rows)[: 2 * int(PLANTED_SHARE * num_rows)]
    copies, sources = np.sort(both[: len(both) // 2]), both[len(both) // 2 :]
    for start in range(0, len(copies), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors[copies[part]] = _moved(vectors[sources[part]], scale, random)
    return Planted(vectors, copies, sources)


def _moved(rows: NDArray[np.float32], scale: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Each row turned towards a random direction of the same kind until its cosine is the one drawn for it."""
    away = random.standard_normal(rows.shape, dtype=np.float32) * scale
    away -= (away * rows).sum(axis=1, keepdims=True) * rows
    _to_unit(away)
    cosines = random.uniform(*_COSINES, size=(len(rows), 1)).astype(np.float32)
    moved = cosines * rows + np.sqrt(1 - cosines**2) * away
    _to_unit(moved)
    return moved


def _to_unit(rows: NDArray[np.float32]) -> None:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
