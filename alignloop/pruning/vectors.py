"""Rows of an embedding matrix as unit vectors, block by block, and their clusters on the unit sphere.

A million rows are never copied whole. Each product of matrices runs on one BLAS thread and blocks are spread over
our own threads, so that results are the same bytes whatever the number of threads.

k-means for many clusters is trained on a sample, in two levels, so that time grows with N alone (with one level every
row would meet every centroid: N x N / rows_per_cluster products):

sample --k-means--> cells, about sqrt(k) of them --k-means in each--> k centroids
a row --> its nearest cells --> the nearest centroids in those
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indexes = NDArray[np.intp]
Labels = NDArray[np.int32]
Part = TypeVar("Part")
Found = TypeVar("Found")

BLOCK = 16_384
"""Rows a block: 24 MiB at 384 dimensions."""
# Outside this range the reciprocal of a norm, or a product with it, is not a normal float32.
_PLAIN_NORMS = (1e-12, 1e12)
# Products that are this near to a bound are decided in float64: float32 sums of some thousand terms err by less.
_UNSURE = 1e-5
_PAIRS = 8_192
_SAMPLE_PER_CLUSTER = 32
_SAMPLE_PER_CELL = 256
_ITERATIONS = 10
_ONE_LEVEL = 64
"""Up to this many clusters one level is quicker."""
_CELLS_SEEN = 6
"""Cells whose centroids a row is compared with; the nearest centroid need not lie in the nearest cell. Of a million
rows' planted near-duplicates 74 % shared a cluster with 4, 78 % with 6, 80 % with 8, 84 % with 16; time follows."""


class UnitRows:
    """The rows of [N, D] at unit length, float32, without a copy of the whole; a zero vector stays zero.

    A ValueError where it is no matrix of numbers, or has a NaN or infinite value, whose row is named.
    """

    def __init__(self, embeddings: NDArray[np.floating], *, name: str = "embeddings", num_threads: int = 1) -> None:
        if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
            raise ValueError(
                f"{name} of shape {embeddings.shape} and type {embeddings.dtype}: a matrix [N, D] of numbers is wanted"
            )
        self._embeddings = embeddings
        parts = in_threads(self._block_norms, blocks(len(embeddings), BLOCK // 2), num_threads=num_threads)
        self.norms: NDArray[np.float64] = np.concatenate(parts) if parts else np.zeros(0)
        if not np.isfinite(self.norms).all():
            bad = int(np.flatnonzero(~np.isfinite(self.norms))[0])
            raise ValueError(f"{name}[{bad}] holds NaN or infinite values: embed that row again")

    def __len__(self) -> int:
        return len(self._embeddings)

    def take(self, rows: Indexes | slice) -> Floats:
        """Unit rows [n, D], a copy."""
        block, norms = self._embeddings[rows], self.norms[rows]
        low, high = _PLAIN_NORMS
        if block.dtype == np.float32 and ((norms == 0) | ((norms > low) & (norms < high))).all():
            scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0).astype(np.float32)
            plain: Floats = block * scale[:, None]
            return plain
        units: Floats = (block / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
        return units

    def cosines(self, left: Indexes, right: Indexes) -> NDArray[np.float64]:
        """Cosines of the pairs (left[i], right[i]), in float64."""
        parts = [row_products(self.take(left[part]), self.take(right[part])) for part in blocks(len(left), BLOCK // 4)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _block_norms(self, rows: slice) -> NDArray[np.float64]:
        # Squares of large finite float32 values overflow: norms are taken in float64.
        wide = self._embeddings[rows].astype(np.float64)
        norms: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        odd = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
        if len(odd):  # float64 has its limits, too
            peaks = np.abs(wide[odd]).max(axis=1, initial=0.0)
            scale = np.where(np.isfinite(peaks) & (peaks > 0), peaks, 1.0)
            norms[odd] = np.linalg.norm(wide[odd] / scale[:, None], axis=1) * scale
        return norms


def reach(left: Floats, right: Floats, bound: float) -> NDArray[np.bool_]:
    """[n, m]: the dot product of left[i] and right[j] is `bound` or more, as in float64.

    float32 sums depend on the order of their terms, and so on block sizes and BLAS: those near the bound are computed
    again in float64, so that the result depends on the two rows alone.
    """
    products = left @ right.T
    hits: NDArray[np.bool_] = products >= bound - _UNSURE
    if hits.any():
        unsure = np.argwhere(hits & (products < bound + _UNSURE))
        for part in blocks(len(unsure), _PAIRS):
            i, j = unsure[part, 0], unsure[part, 1]
            hits[i, j] = row_products(left[i], right[j]) >= bound
    return hits


def row_products(left: Floats, right: Floats) -> NDArray[np.float64]:
    """[n] dot products of the rows of two [n, D], in float64."""
    products: NDArray[np.float64] = np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64))
    return products


def blocks(length: int, size: int) -> Iterator[slice]:
    """[0, length) cut into slices of `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def in_threads(function: Callable[[Part], Found], parts: Iterable[Part], *, num_threads: int) -> list[Found]:
    """`function` of each part, in order; numpy lets other threads run while it multiplies."""
    if num_threads == 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, parts))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, a product of matrices runs on one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


@dataclass(frozen=True)
class Centroids:
    """Two levels of unit centroids: cells [C, D], each cell's own [k_i, D], the label of each cell's first centroid."""

    cells: Floats
    of_cell: tuple[Floats, ...]
    first: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.of_cell))

    def nearest(self, units: Floats, *, num_nearest: int) -> Labels:
        """[n, num_nearest] labels for rows [n, D], nearest first, at most all; ties go to the lower label."""
        assert num_nearest <= len(self), f"{num_nearest} of {len(self)} centroids"
        # So many cells that even the smallest hold enough centroids.
        held = np.cumsum(sorted(map(len, self.of_cell)))
        num_seen = max(min(_CELLS_SEEN, len(self.cells)), int(np.searchsorted(held, num_nearest)) + 1)
        seen = _greatest(units @ self.cells.T, num_seen)
        best = np.full((len(units), num_seen, num_nearest), -np.inf, dtype=np.float32)
        labels = np.full(best.shape, -1, dtype=np.int32)
        for position in range(num_seen):
            order = np.argsort(seen[:, position], kind="stable")
            bounds = np.searchsorted(seen[order, position], np.arange(len(self.cells) + 1))
            for cell in np.flatnonzero(np.diff(bounds)):
                rows = order[bounds[cell] : bounds[cell + 1]]
                products = units[rows] @ self.of_cell[cell].T
                found = _greatest(products, min(num_nearest, products.shape[1]))
                best[rows, position, : found.shape[1]] = np.take_along_axis(products, found, axis=1)
                labels[rows, position, : found.shape[1]] = found + self.first[cell]
        return _first_labels(best.reshape(len(units), -1), labels.reshape(len(units), -1), num_nearest)


def nearest_clusters(
    units: UnitRows, *, rows_per_cluster: int, num_nearest: int, seed: int, num_threads: int
) -> Labels:
    """[N, num_nearest] clusters of each row, nearest first. Same input and seed, same result.

    Zero vectors have none: -1. There are N / `rows_per_cluster` clusters, rounded up, and no more columns than that.
    """
    somewhere = np.flatnonzero(units.norms > 0)
    num_clusters = math.ceil(len(somewhere) / rows_per_cluster)
    if num_clusters <= 1:
        alone = np.full((len(units), 1), -1, dtype=np.int32)
        alone[somewhere] = 0
        return alone
    centroids = _train(units, somewhere, num_clusters=num_clusters, seed=seed, num_threads=num_threads)
    # Two levels may come to fewer clusters than asked for: each cell's number of them is rounded.
    num_nearest = min(num_nearest, len(centroids))
    labels = np.full((len(units), num_nearest), -1, dtype=np.int32)

    def assign(part: slice) -> None:
        rows = somewhere[part]
        labels[rows] = centroids.nearest(units.take(rows), num_nearest=num_nearest)

    in_threads(assign, blocks(len(somewhere), BLOCK), num_threads=num_threads)
    return labels


def _train(units: UnitRows, rows: Indexes, *, num_clusters: int, seed: int, num_threads: int) -> Centroids:
    """Centroids from a sample of `rows`; cells get centroids by their share of the sample."""
    random = np.random.default_rng(seed)
    size = min(len(rows), num_clusters * _SAMPLE_PER_CLUSTER)
    sample = units.take(rows[np.sort(random.choice(len(rows), size, replace=False))])
    if num_clusters <= _ONE_LEVEL:
        whole = _lloyd(sample, num_clusters, seed=seed, num_threads=num_threads)
        return Centroids(whole.mean(axis=0, keepdims=True), (whole,), (0,))
    num_cells = math.isqrt(num_clusters)
    some = np.sort(random.choice(size, min(size, num_cells * _SAMPLE_PER_CELL), replace=False))
    cells = _lloyd(sample[some], num_cells, seed=seed, num_threads=num_threads)
    cell = _labels(sample, cells, num_threads=num_threads)
    sizes = np.bincount(cell, minlength=len(cells))
    cells, names = cells[sizes > 0], np.flatnonzero(sizes)
    counts = np.maximum(1, np.rint(num_clusters * sizes[names] / size)).astype(int)

    def split(position: int) -> Floats:
        inside = sample[cell == names[position]]
        return _lloyd(inside, min(int(counts[position]), len(inside)), seed=seed + position + 1, num_threads=1)

    of_cell = tuple(in_threads(split, range(len(names)), num_threads=num_threads))
    first = np.cumsum([0, *map(len, of_cell[:-1])])
    return Centroids(cells, of_cell, tuple(first.tolist()))


def _lloyd(sample: Floats, num_clusters: int, *, seed: int, num_threads: int) -> Floats:
    """Unit centroids [k, D]; starts from rows drawn evenly, an empty cluster keeps its own."""
    from scipy.sparse import csr_matrix

    starts = np.random.default_rng(seed).choice(len(sample), num_clusters, replace=False)
    centroids = sample[np.sort(starts)]
    labels = _labels(sample, centroids, num_threads=num_threads)
    for _ in range(_ITERATIONS):
        ones = np.ones(len(sample), dtype=np.float32)
        membership = csr_matrix((ones, (labels, np.arange(len(sample)))), shape=(num_clusters, len(sample)))
        sums = membership @ sample
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(norms > 0, sums / np.where(norms > 0, norms, 1.0), centroids)
        moved = _labels(sample, centroids, num_threads=num_threads)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return centroids


def _labels(rows: Floats, centroids: Floats, *, num_threads: int) -> Labels:
    def nearest(part: slice) -> Labels:
        return (rows[part] @ centroids.T).argmax(axis=1).astype(np.int32)

    return np.concatenate(in_threads(nearest, blocks(len(rows), BLOCK), num_threads=num_threads))


def _first_labels(products: Floats, labels: Labels, count: int) -> Labels:
    """[n, count] labels of the greatest products, greatest first; ties go to the lower label."""
    if count == 1:
        is_best = products == products.max(axis=1, keepdims=True)
        return np.where(is_best, labels, np.iinfo(np.int32).max).min(axis=1)[:, None]
    return np.take_along_axis(labels, np.lexsort((labels, -products), axis=1)[:, :count], axis=1)


def _greatest(values: Floats, count: int) -> Indexes:
    """[n, count] columns of each row's greatest values, greatest first; ties go to the lower column."""
    if count == 1:
        return values.argmax(axis=1)[:, None]
    if count < values.shape[1]:
        found = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    else:
        found = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
