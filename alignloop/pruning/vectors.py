"""Rows of an embedding matrix as unit vectors, taken block by block: a million rows are never copied whole.

Every product of matrices runs on one BLAS thread and the blocks are shared out among threads of our own: so results
are the same bytes whatever the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indexes = NDArray[np.intp]
Part = TypeVar("Part")
Found = TypeVar("Found")

BLOCK = 16_384
"""Rows worked on at a time: 24 MiB at 384 dimensions."""
# Outside this range the reciprocal of a norm, or a product with it, is not a normal float32.
_PLAIN_NORMS = (1e-12, 1e12)
# Products that are this near to a bound are decided in float64: float32 sums of some thousand terms err by less.
_UNSURE = 1e-5
_PAIRS = 8_192


class UnitRows:
    """The rows of `embeddings` [N, D] at unit length, float32; a zero vector stays zero.

    Args:
        embeddings: [N, D], any lengths and any number type; not copied.
        name: for messages.

    Raises:
        ValueError: not a matrix of numbers, or a value that is NaN or infinite; names the row.
    """

    def __init__(self, embeddings: NDArray[np.floating], *, name: str = "embeddings", num_threads: int = 1) -> None:
        if embeddings.ndim != 2 or not (
            np.issubdtype(embeddings.dtype, np.floating) or np.issubdtype(embeddings.dtype, np.integer)
        ):
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

    @property
    def dim(self) -> int:
        return int(self._embeddings.shape[1])

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
    """[n, m]: the dot product of left[i] and right[j] is `bound` or more, as float64 has it.

    float32 sums differ with the order of their terms, and so with block sizes and BLAS: those near the bound are
    taken again in float64, so that the answer depends on the two rows alone.
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
    """`function` of each, in order; numpy lets other threads run while it multiplies."""
    if num_threads == 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, parts))


def cores() -> int:
    """Processor cores given to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, a product of matrices runs on one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
