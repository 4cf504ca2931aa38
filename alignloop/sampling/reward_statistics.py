"""How two samples of rewards differ. Pure. Letters: N prompts, K candidates of a prompt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_SWAPS = 999
MIN_SWAPS = 499
SWAP_WORK = 200_000_000
"""Values in all swaps together: some seconds."""
NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Summary:
    """A sample in numbers: `std` with n - 1, None for one value; `quantiles` (`0.05` -> value) interpolated
    linearly."""

    n: int
    mean: float
    std: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class PairedDifference:
    """Mean over prompts of (B's value - A's value), with its standard error and p-value (paired t-test).

    Both are None for one prompt; without any spread the p-value is 1 where nothing differs and else 0.
    """

    mean: float
    stderr: float | None
    pvalue: float | None


def summary(values: Sequence[float]) -> Summary:
    """Raises ValueError where there is no value, or one that is not finite."""
    array = _finite(values)
    return Summary(
        n=len(array),
        mean=float(array.mean()),
        std=float(array.std(ddof=1)) if len(array) > 1 else None,
        quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(array, QUANTILES), strict=True)},
    )


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Of one value a prompt in each, N of them in the same order: what prompts have in common drops out."""
    from scipy.stats import t

    differences = _finite(b) - _finite(a)
    mean, num_prompts = float(differences.mean()), len(differences)
    if num_prompts < 2:
        return PairedDifference(mean, None, None)
    stderr = float(differences.std(ddof=1)) / math.sqrt(num_prompts)
    if stderr == 0.0:
        return PairedDifference(mean, stderr, 1.0 if mean == 0.0 else 0.0)
    return PairedDifference(mean, stderr, float(2.0 * t.sf(abs(mean) / stderr, num_prompts - 1)))


def ks_test(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Kolmogorov-Smirnov: largest distance of the two cumulative distributions, and its p-value (scipy).

    The p-value takes all values as independent. Candidates of one prompt are not: `swap_test` does without that.
    """
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where the exact p-value is out of reach scipy says so
        result = ks_2samp(_finite(a), _finite(b))
    return float(result.statistic), float(result.pvalue)


def swap_test(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int) -> tuple[float, int]:
    """p-value of the KS distance by exchanging A's and B's values prompt by prompt, and the number of exchanges.

    `a` and `b` are N prompts of K values each (K may differ), in the same order. Where A and B sample alike, a prompt's
    values could as well bear the other's name; the share of random exchanges with a distance at least as large is the
    p-value: (1 + such exchanges) / (1 + exchanges).
    """
    owner = np.concatenate([np.full(len(values), n) for side in (a, b) for n, values in enumerate(side)])
    values = np.concatenate([_finite(values) for side in (a, b) for values in side])
    of_b = np.concatenate([np.full(sum(map(len, side)), index == 1) for index, side in enumerate((a, b))])
    order = np.argsort(values, kind="stable")
    owner, values, of_b = owner[order], values[order], of_b[order]
    last = np.append(values[1:] != values[:-1], True)  # of equal values: only behind them the distributions stand
    observed = _distance(of_b, last)
    num_swaps = int(np.clip(SWAP_WORK // len(values), MIN_SWAPS, MAX_SWAPS))
    draw = np.random.default_rng(seed)
    as_large = 0
    for _ in range(num_swaps):
        swapped = draw.random(len(a)) < 0.5
        as_large += _distance(of_b ^ swapped[owner], last) >= observed - 1e-12
    return (1 + as_large) / (1 + num_swaps), num_swaps


def bin_edges(values: Sequence[float], *, num_bins: int) -> list[float]:
    """Ascending edges of about `num_bins` bins of a round width that hold all but the outermost hundredths.

    Values outside belong to the first and the last bin.
    """
    array = _finite(values)
    low, high = (float(value) for value in np.quantile(array, (0.01, 0.99)))
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = nice_step((high - low) / num_bins)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def bin_shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Share of the values in each bin, which add up to one; a value on an edge belongs to the bin above."""
    bins = np.clip(np.searchsorted(np.asarray(edges), _finite(values), side="right") - 1, 0, len(edges) - 2)
    return [float(share) for share in np.bincount(bins, minlength=len(edges) - 1) / len(values)]


def _distance(of_b: NDArray[np.bool_], last: NDArray[np.bool_]) -> float:
    """KS distance of sorted values; `of_b` is True for B's."""
    in_b = np.cumsum(of_b)
    in_a = np.arange(1, len(of_b) + 1) - in_b
    return float(np.abs(in_b / in_b[-1] - in_a / in_a[-1])[last].max())


def nice_step(width: float) -> float:
    """The next round number from `width` up."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in NICE if step * power >= width * (1 - 1e-9))


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("no value")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    return array
