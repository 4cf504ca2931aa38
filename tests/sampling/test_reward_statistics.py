"""Summary, paired difference, KS, swap test and bins by hand."""

from __future__ import annotations

import math

import pytest

from alignloop.sampling.reward_statistics import (
    PairedDifference,
    bin_edges,
    bin_shares,
    ks_test,
    paired_difference,
    summary,
    swap_test,
)


def test_summary_by_hand() -> None:
    # mean 3; squared distances 4 + 1 + 0 + 1 + 4 = 10, over n - 1 = 4: 2.5. Quantile q stands at place 4q.
    found = summary([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.std == pytest.approx(math.sqrt(2.5))
    assert found.quantiles == pytest.approx({"0.05": 1.2, "0.25": 2.0, "0.5": 3.0, "0.75": 4.0, "0.95": 4.8})
    one = summary([7.0])
    assert (one.mean, one.std, set(one.quantiles.values())) == (7.0, None, {7.0})
    with pytest.raises(ValueError, match="no value"):
        summary([])
    with pytest.raises(ValueError, match="value 1 is not finite"):
        summary([0.0, math.nan])


def test_paired_difference_by_hand() -> None:
    # B - A: 1, 2, 3. Mean 2, standard deviation 1, standard error 1 / sqrt(3); t = 2 sqrt(3) = 3.4641 with 2 degrees
    # of freedom, whose two-sided p is 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / sqrt(14) = 0.07418.
    found = paired_difference([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert found.mean == pytest.approx(2.0)
    assert found.stderr == pytest.approx(1 / math.sqrt(3))
    assert found.pvalue == pytest.approx(1 - 3.46410162 / math.sqrt(14))
    assert paired_difference([1.0], [2.0]) == PairedDifference(1.0, None, None)
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).pvalue == 1.0
    assert paired_difference([1.0, 2.0], [2.0, 3.0]).pvalue == 0.0


def test_ks_by_hand() -> None:
    # Behind 2, all of A and a third of B is passed: distance 2/3. No B below 1, all A at 3: the largest there is.
    statistic, _ = ks_test([1.0, 2.0, 2.0], [2.0, 3.0, 4.0])
    assert statistic == pytest.approx(2 / 3)
    # Fully apart: of the 6! / (3! 3!) = 20 orders, two are as far apart.
    statistic, pvalue = ks_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (statistic, pvalue) == (pytest.approx(1.0), pytest.approx(0.1))


def test_swap_test_counts_exchanges() -> None:
    # Ten prompts, each B above every A: only "swap none" and "swap all" of the 1,024 exchanges are as far apart.
    a, b = [[float(n)] for n in range(10)], [[100.0 + n] for n in range(10)]
    pvalue, num_swaps = swap_test(a, b, seed=0)
    assert num_swaps == 999
    assert pvalue < 0.01
    assert swap_test(a, a, seed=0)[0] == 1.0
    assert 0 < swap_test([[0.0, 1.0, 2.0], [3.0]], [[0.0], [1.0, 3.0]], seed=1)[0] <= 1.0  # prompts of different K


def test_swap_test_is_not_deceived_by_candidates_that_hang_together() -> None:
    # Two prompts of 200 equal candidates: as 400 values they look far apart, as two prompts they tell nothing.
    a, b = [[0.0] * 200, [1.0] * 200], [[0.5] * 200, [1.5] * 200]
    assert ks_test([x for p in a for x in p], [x for p in b for x in p])[1] < 1e-6
    # Of the 4 exchanges, none and both leave the distance at 1/2; one alone sets {0.5, 1} against {0, 1.5}: 1/2, too.
    assert swap_test(a, b, seed=0)[0] == 1.0


def test_bins_by_hand() -> None:
    # 1 % and 99 % of 0, 1, ..., 100 are 1 and 99: 98 / 10 = 9.8, the next round width is 10.
    edges = bin_edges([float(n) for n in range(101)], num_bins=10)
    assert edges == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]
    # An edge belongs to the bin above; what lies outside to the outermost.
    assert bin_shares([-5.0, 10.0, 19.0, 100.0, 250.0], edges) == [0.2, 0.4, 0, 0, 0, 0, 0, 0, 0, 0.4]
    edges = bin_edges([3.0, 3.0], num_bins=16)
    assert edges[0] < 3.0 < edges[-1]
    assert sum(bin_shares([3.0, 3.0], edges)) == 1.0
