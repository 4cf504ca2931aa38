"""k-means on the unit sphere for many clusters: trained on a sample, two levels, so that time grows with N alone.

sample --k-means--> cells, about sqrt(k) of them --k-means in each--> k centroids
a row --> its nearest cells --> the nearest centroids in those

With one level every row would meet every centroid: N x N / rows_per_cluster products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignloop.pruning.vectors import BLOCK, Floats, Indexes, UnitRows, blocks, in_threads

Labels = NDArray[np.int32]
_SAMPLE_PER_CLUSTER = 32
_SAMPLE_PER_CELL = 256
_ITERATIONS = 10
_ONE_LEVEL = 64
"""Up to this many clusters one level is quicker."""
_CELLS_SEEN = 6
"""Cells whose centroids a row is compared with; the nearest centroid need not lie in the nearest cell. Of a million
rows' planted near-duplicates 74 % shared a cluster with 4, 78 % with 6, 80 % with 8, 84 % with 16; time follows."""


@dataclass(frozen=True)
class Centroids:
    """Two levels of unit centroids.

    Attributes:
        cells: [C, D].
        of_cell: for each cell its [k_i, D].
        first: label of each cell's first centroid.
    """

    cells: Floats
    of_cell: tuple[Floats, ...]
    first: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.of_cell))

    def nearest(self, units: Floats, *, num_nearest: int) -> Labels:
        """[n, num_nearest] labels for rows [n, D], nearest first; ties go to the lower label.

        `num_nearest` is at most the number of centroids.
        """
        assert num_nearest <= len(self), f"{num_nearest} of {len(self)} centroids"
        # So many cells that even the smallest hold enough centroids.
        held = np.cumsum(sorted(map(len, self.of_cell)))
        num_seen = max(min(_CELLS_SEEN, len(self.cells)), int(np.searchsorted(held, num_nearest)) + 1)
        seen = _greatest(units @ self.cells.T, num_seen)
        best = np.full((len(units), num_seen, num_nearest), -np.inf, dtype=np.float32)
        labels = np.full(best.shape, -1, dtype=np.int32)
        for place in range(num_seen):
            order = np.argsort(seen[:, place], kind="stable")
            bounds = np.searchsorted(seen[order, place], np.arange(len(self.cells) + 1))
            for cell in np.flatnonzero(np.diff(bounds)):
                rows = order[bounds[cell] : bounds[cell + 1]]
                products = units[rows] @ self.of_cell[cell].T
                found = _greatest(products, min(num_nearest, products.shape[1]))
                best[rows, place, : found.shape[1]] = np.take_along_axis(products, found, axis=1)
                labels[rows, place, : found.shape[1]] = found + self.first[cell]
        return _first_labels(best.reshape(len(units), -1), labels.reshape(len(units), -1), num_nearest)


def nearest_clusters(
    units: UnitRows, *, rows_per_cluster: int, num_nearest: int, seed: int, num_threads: int
) -> Labels:
    """[N, num_nearest] clusters of each row, nearest first. Same input and seed, same answer.

    Zero vectors lie nowhere: -1. With fewer clusters than `num_nearest` there are as many columns as clusters.

    Args:
        units: N rows.
        rows_per_cluster: N / this many clusters, rounded up.
    """
    somewhere = np.flatnonzero(units.norms > 0)
    num_clusters = math.ceil(len(somewhere) / rows_per_cluster)
    if num_clusters <= 1:
        alone = np.full((len(units), 1), -1, dtype=np.int32)
        alone[somewhere] = 0
        return alone
    centroids = train(units, somewhere, num_clusters=num_clusters, seed=seed, num_threads=num_threads)
    # Two levels may come to fewer clusters than asked for: each cell's number of them is rounded.
    num_nearest = min(num_nearest, len(centroids))
    labels = np.full((len(units), num_nearest), -1, dtype=np.int32)

    def assign(part: slice) -> None:
        rows = somewhere[part]
        labels[rows] = centroids.nearest(units.take(rows), num_nearest=num_nearest)

    in_threads(assign, blocks(len(somewhere), BLOCK), num_threads=num_threads)
    return labels


def train(units: UnitRows, rows: Indexes, *, num_clusters: int, seed: int, num_threads: int) -> Centroids:
    """Centroids from a sample of `rows`; cells get centroids by their share of the sample."""
    random = np.random.default_rng(seed)
    size = min(len(rows), num_clusters * _SAMPLE_PER_CLUSTER)
    sample = units.take(rows[np.sort(random.choice(len(rows), size, replace=False))])
    if num_clusters <= _ONE_LEVEL:
        whole, _ = _lloyd(sample, num_clusters, seed=seed, num_threads=num_threads)
        return Centroids(_mean(whole), (whole,), (0,))
    num_cells = math.isqrt(num_clusters)
    some = np.sort(random.choice(size, min(size, num_cells * _SAMPLE_PER_CELL), replace=False))
    cells, _ = _lloyd(sample[some], num_cells, seed=seed, num_threads=num_threads)
    cell = _labels(sample, cells, num_threads=num_threads)
    sizes = np.bincount(cell, minlength=len(cells))
    cells, names = cells[sizes > 0], np.flatnonzero(sizes)
    counts = np.maximum(1, np.rint(num_clusters * sizes[names] / size)).astype(int)

    def split(place: int) -> Floats:
        inside = sample[cell == names[place]]
        return _lloyd(inside, min(int(counts[place]), len(inside)), seed=seed + place + 1, num_threads=1)[0]

    of_cell = tuple(in_threads(split, range(len(names)), num_threads=num_threads))
    first = np.cumsum([0, *map(len, of_cell[:-1])])
    return Centroids(cells, of_cell, tuple(int(label) for label in first))


def _lloyd(sample: Floats, num_clusters: int, *, seed: int, num_threads: int) -> tuple[Floats, Labels]:
    """Unit centroids [k, D] and the sample's labels; starts from rows drawn evenly, an empty cluster keeps its own."""
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
    return centroids, labels


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


def _mean(rows: Floats) -> Floats:
    total: Floats = rows.mean(axis=0, keepdims=True)
    return total


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
