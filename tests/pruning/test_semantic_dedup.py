from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import alignloop.pruning.semantic_dedup as module
from alignloop.pruning.semantic_dedup import DedupResult, semantic_dedup
from alignloop.pruning.vectors import UnitRows, nearest_clusters


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def dedup(rows: Any, *, priorities: Sequence[float] | None = None, **options: Any) -> DedupResult:
    """Rows of equal priority unless stated, nearer than cos 0.95, all in one cluster."""
    usual = {"threshold": 0.95, "rows_per_cluster": 1000}
    return semantic_dedup(rows, priorities=[0.0] * len(rows) if priorities is None else priorities, **usual | options)


def pairs(result: DedupResult) -> list[tuple[int, int]]:
    return [(twin.dropped, twin.twin) for twin in result.twins]


def test_seen_and_kept_by_hand() -> None:
    # 0, 10, 20 degrees, best first; the threshold is cos 12. Row 1 loses to row 0. Row 2 is 10 degrees from row 1,
    # which was seen but not kept, and 20 from row 0.
    options = {"priorities": [3.0, 2.0, 1.0], "threshold": math.cos(math.radians(12))}
    seen = dedup(at(0, 10, 20), compare_to="seen", **options)
    assert (seen.kept, pairs(seen)) == ((0,), [(1, 0), (2, 1)])
    assert seen.twins[0].cosine == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    kept = dedup(at(0, 10, 20), compare_to="kept", **options)
    assert (kept.kept, pairs(kept)) == ((0, 2), [(1, 0)])


def test_the_better_row_stays() -> None:
    result = dedup(at(0, 1, 90), priorities=[1.0, 2.0, 0.0], threshold=0.9)
    assert result.kept == (1, 2)
    (drop,) = result.verdict(["a", "b", "c"]).dropped
    assert (drop.id, drop.twin, drop.rule) == ("a", "b", "semantic_dedup")
    assert dedup(at(0, 0), priorities=[1.0, 1.0], threshold=1.0).kept == (0,)


def test_the_twin_is_the_best_row_that_is_near_enough() -> None:
    # Row 2 is 3 degrees from row 1 and 5 from row 0; both reach the threshold of cos 6, and row 0 is the better one.
    result = dedup(at(0, 2, 5), priorities=[3.0, 2.0, 1.0], threshold=math.cos(math.radians(6)))
    assert pairs(result) == [(1, 0), (2, 0)]


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 16))
    return (centres[random.integers(60, size=700)] + 0.15 * random.normal(size=(700, 16))).astype(np.float32)


def double_loop(
    rows: np.ndarray, priorities: list[float], clusters: np.ndarray, threshold: float, compare_to: str
) -> dict[int, int]:
    """Dropped row -> twin: the rule as written, one pair after another, in float64."""
    units = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    order = sorted(range(len(rows)), key=lambda row: (-priorities[row], row))
    twins: dict[int, int] = {}
    for place, row in enumerate(order):
        for other in order[:place]:
            if clusters[other] != clusters[row] or (compare_to == "kept" and other in twins):
                continue
            if units[row] @ units[other] >= threshold - 1e-6:
                twins[row] = other
                break
    return twins


@pytest.mark.parametrize("compare_to", ["seen", "kept"])
@pytest.mark.parametrize("rows_per_cluster", [30, 1000])
def test_equals_the_plain_double_loop(
    cloud: np.ndarray, compare_to: str, rows_per_cluster: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the block size; the same input gives the same result again."""
    options: dict[str, Any] = {"rows_per_cluster": rows_per_cluster, "compare_to": compare_to, "seed": 3}
    priorities = [float((7 * n) % 13) for n in range(len(cloud))]
    units = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
    for threshold in (0.9, 0.97):
        whole = dedup(cloud, priorities=priorities, threshold=threshold, **options)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_BLOCK", 37)
            found = dedup(cloud, priorities=priorities, threshold=threshold, **options)
        plain = double_loop(cloud, priorities, found.clusters, threshold, compare_to)
        assert len(plain) > 50
        assert dict(pairs(found)) == dict(pairs(whole)) == plain
        assert sorted([*found.kept, *plain]) == list(range(len(cloud)))
        for twin in found.twins:
            assert twin.cosine == pytest.approx(float(units[twin.dropped] @ units[twin.twin]), abs=1e-5)
    assert dedup(cloud, priorities=priorities, threshold=1.01, **options).twins == ()


def test_edges() -> None:
    assert dedup(np.zeros((3, 4)), rows_per_cluster=1).kept == (0, 1, 2)  # nothing is near to a zero vector
    assert dedup(np.zeros((0, 4))).kept == ()
    one = dedup(np.ones((1, 4)), threshold=-1.0, rows_per_cluster=1)
    assert (one.kept, one.twins, one.clusters.tolist()) == ((0,), (), [0])
    mixed = dedup(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), threshold=-1.0)
    assert mixed.kept == (0, 1)  # however low the threshold, a zero vector is near to nothing
    assert mixed.clusters.tolist() == [-1, 0, 0]
    assert mixed.metrics == {"num_clusters": 1.0, "largest_cluster": 2.0, "num_zero_vectors": 1.0}
    # More clusters than different rows, and a cluster a row.
    assert dedup(np.ones((50, 3)), threshold=1.0, rows_per_cluster=5).kept == (0,)
    alone = dedup(at(0, 40, 80, 120), threshold=0.5, rows_per_cluster=1)
    assert (alone.kept, sorted(alone.clusters.tolist())) == ((0, 1, 2, 3), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("rows", "priorities", "message"),
    [
        (np.array([[1.0], [math.nan]]), [0.0, 0.0], r"embeddings\[1\]"),
        (np.zeros((2, 2)), [0.0], "do not fit"),
        (np.ones((2, 2)), [0.0, math.inf], r"priorities\[1\] is inf"),
        (np.array([["a"]]), [0.0], "a matrix"),
    ],
)
def test_bad_input(rows: np.ndarray, priorities: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dedup(rows, priorities=priorities)


def test_lengths_and_number_types_do_not_matter(cloud: np.ndarray) -> None:
    wanted = dedup(cloud, rows_per_cluster=60)
    scaled = cloud * np.float32(10.0) ** np.arange(-12, 13)[np.arange(len(cloud)) % 25, None].astype(np.float32)
    for same in (cloud * 2, cloud.astype(np.float64) * 1e200, np.asfortranarray(cloud), scaled):
        assert dedup(same, rows_per_cluster=60).kept == wanted.kept
    huge = np.full((3, 4), 3e38, dtype=np.float32)  # the squares of these are infinite in float32
    assert dedup(huge, threshold=0.99).kept == (0,)


def test_threads_do_not_change_a_byte(cloud: np.ndarray) -> None:
    rows = np.concatenate([cloud + np.float32(0.01 * step) for step in range(10)])  # two levels of clusters
    one, *others = (dedup(rows, rows_per_cluster=40, seed=5, num_threads=threads) for threads in (1, 2, 3))
    assert one.metrics["num_clusters"] > 100
    for other in others:
        assert other == one
        assert other.clusters.tobytes() == one.clusters.tobytes()


def test_rows_on_two_sides_of_a_border() -> None:
    random = np.random.default_rng(0)
    cloud = random.normal(size=(1500, 12)).astype(np.float32)
    rows = np.concatenate([cloud, cloud + 0.15 * random.normal(size=cloud.shape).astype(np.float32)])

    def dropped(**options: int) -> set[int]:
        return {row for row, _ in pairs(dedup(rows, threshold=0.97, **{"rows_per_cluster": 20} | options))}

    one, two, three = (dropped(num_nearest=number) for number in (1, 2, 3))
    assert one < two <= three
    everything = dropped(rows_per_cluster=3000)
    assert three <= everything
    assert len(one) < 0.97 * len(everything)
    assert len(three) > 0.99 * len(everything)


def test_more_nearest_clusters_than_k_means_makes_compare_every_row_with_every_other() -> None:
    # 200 rows in clusters of two: 100 are asked for, and two levels with rounded shares come to 99.
    rows = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    labels = nearest_clusters(UnitRows(rows), rows_per_cluster=2, num_nearest=100, seed=1, num_threads=1)
    assert labels.shape == (200, 99)
    assert (np.sort(labels, axis=1) == np.arange(99)).all()
    everywhere = dedup(rows, priorities=-np.arange(200.0), rows_per_cluster=2, num_nearest=1_000, seed=1)
    one_cluster = dedup(rows, priorities=-np.arange(200.0), rows_per_cluster=200, seed=1)
    assert everywhere.kept == one_cluster.kept
    assert len(everywhere.kept) < 200
