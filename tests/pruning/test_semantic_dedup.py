from __future__ import annotations

import math

import numpy as np
import pytest

import alignloop.pruning.semantic_dedup as module
from alignloop.pruning.clusters import nearest_clusters
from alignloop.pruning.semantic_dedup import semantic_dedup


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def test_seen_and_kept_by_hand() -> None:
    # 0, 10, 20 degrees, best first; the threshold is cos 12. Row 1 loses to row 0. Row 2 is 10 degrees from row 1,
    # which was seen but not kept, and 20 from row 0.
    threshold = math.cos(math.radians(12))
    rows, priorities = at(0, 10, 20), [3.0, 2.0, 1.0]
    seen = semantic_dedup(rows, priorities=priorities, threshold=threshold, rows_per_cluster=10, compare_to="seen")
    assert seen.kept == (0,)
    assert [(t.dropped, t.twin) for t in seen.twins] == [(1, 0), (2, 1)]
    assert seen.twins[0].cosine == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    kept = semantic_dedup(rows, priorities=priorities, threshold=threshold, rows_per_cluster=10, compare_to="kept")
    assert kept.kept == (0, 2)
    assert [(t.dropped, t.twin) for t in kept.twins] == [(1, 0)]


def test_the_better_row_stays() -> None:
    result = semantic_dedup(at(0, 1, 90), priorities=[1.0, 2.0, 0.0], threshold=0.9, rows_per_cluster=10)
    assert result.kept == (1, 2)
    answer = result.verdict(["a", "b", "c"])
    assert answer.dropped[0].id == "a"
    assert answer.dropped[0].twin == "b"
    assert answer.dropped[0].rule == "semantic_dedup"
    assert semantic_dedup(at(0, 0), priorities=[1.0, 1.0], threshold=1.0, rows_per_cluster=10).kept == (0,)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 16))
    return (centres[random.integers(60, size=700)] + 0.15 * random.normal(size=(700, 16))).astype(np.float32)


@pytest.mark.parametrize("rows_per_cluster", [50, 1000])
def test_invariants(cloud: np.ndarray, rows_per_cluster: int) -> None:
    priorities = [float((7 * n) % 101) for n in range(len(cloud))]

    def run(threshold: float, compare_to: str) -> module.DedupResult:
        return semantic_dedup(
            cloud,
            priorities=priorities,
            threshold=threshold,
            rows_per_cluster=rows_per_cluster,
            compare_to=compare_to,
            seed=3,
        )  # type: ignore[arg-type]

    for compare_to in ("seen", "kept"):
        assert run(1.01, compare_to).twins == ()
        result = run(0.95, compare_to)
        assert 0 < len(result.twins) < len(cloud)
        assert sorted([*result.kept, *(twin.dropped for twin in result.twins)]) == list(range(len(cloud)))
        assert result == run(0.95, compare_to)
        units = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
        for twin in result.twins:
            assert twin.cosine == pytest.approx(float(units[twin.dropped] @ units[twin.twin]), abs=1e-5)
            assert twin.cosine >= 0.95 - 1e-5
            better = (-priorities[twin.twin], twin.twin) < (-priorities[twin.dropped], twin.dropped)
            assert better
    assert set(run(0.95, "seen").kept) <= set(run(0.95, "kept").kept)


def test_blocks_do_not_change_the_answer(cloud: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"priorities": [0.0] * len(cloud), "threshold": 0.95, "rows_per_cluster": 1000}
    for compare_to in ("seen", "kept"):
        whole = semantic_dedup(cloud, **arguments, compare_to=compare_to)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_BLOCK", 37)
            parts = semantic_dedup(cloud, **arguments, compare_to=compare_to)
        assert whole.kept == parts.kept
        assert [(t.dropped, t.twin) for t in whole.twins] == [(t.dropped, t.twin) for t in parts.twins]


def test_edges() -> None:
    zeros = semantic_dedup(np.zeros((3, 4)), priorities=[0.0] * 3, threshold=0.9, rows_per_cluster=1)
    assert zeros.kept == (0, 1, 2)  # nothing is near to a zero vector
    assert semantic_dedup(np.zeros((0, 4)), priorities=[], threshold=0.9, rows_per_cluster=5).kept == ()
    with pytest.raises(ValueError, match=r"embeddings\[1\]"):
        semantic_dedup(np.array([[1.0], [math.nan]]), priorities=[0.0, 0.0], threshold=0.9, rows_per_cluster=5)
    with pytest.raises(ValueError, match="do not fit"):
        semantic_dedup(np.zeros((2, 2)), priorities=[0.0], threshold=0.9, rows_per_cluster=5)
    one = semantic_dedup(np.ones((1, 4)), priorities=[0.0], threshold=-1.0, rows_per_cluster=1)
    assert (one.kept, one.twins, one.clusters.tolist()) == ((0,), (), [0])
    mixed = semantic_dedup(
        np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), priorities=[0.0] * 3, threshold=-1.0, rows_per_cluster=9
    )
    assert mixed.kept == (0, 1)  # however low the threshold, a zero vector is near to nothing
    assert mixed.clusters.tolist() == [-1, 0, 0]
    assert mixed.metrics == {"num_clusters": 1.0, "largest_cluster": 2.0, "num_zero_vectors": 1.0}
    for more, message in (({"priorities": [0.0, math.inf]}, r"priorities\[1\] is inf"),):
        given = {"priorities": [0.0] * 2, "threshold": 0.9, "rows_per_cluster": 5} | more
        with pytest.raises(ValueError, match=message):
            semantic_dedup(np.ones((2, 2)), **given)
    with pytest.raises(ValueError, match="a matrix"):
        semantic_dedup(np.array([["a"]]), priorities=[0.0], threshold=0.9, rows_per_cluster=5)


def test_more_clusters_than_different_rows_and_a_cluster_a_row() -> None:
    same = np.ones((50, 3))
    assert semantic_dedup(same, priorities=[0.0] * 50, threshold=1.0, rows_per_cluster=5).kept == (0,)
    alone = semantic_dedup(at(0, 40, 80, 120), priorities=[0.0] * 4, threshold=0.5, rows_per_cluster=1)
    assert alone.kept == (0, 1, 2, 3)
    assert sorted(alone.clusters.tolist()) == [0, 1, 2, 3]


def test_lengths_and_number_types_do_not_matter(cloud: np.ndarray) -> None:
    arguments = {"priorities": [0.0] * len(cloud), "threshold": 0.95, "rows_per_cluster": 60}
    wanted = semantic_dedup(cloud, **arguments)
    scaled = cloud * np.float32(10.0) ** np.arange(-12, 13)[np.arange(len(cloud)) % 25, None].astype(np.float32)
    for same in (cloud * 2, cloud.astype(np.float64) * 1e200, np.asfortranarray(cloud), scaled):
        found = semantic_dedup(same, **arguments)
        assert found.kept == wanted.kept
    huge = np.full((3, 4), 3e38, dtype=np.float32)  # the squares of these are infinite in float32
    assert semantic_dedup(huge, priorities=[0.0] * 3, threshold=0.99, rows_per_cluster=9).kept == (0,)


def test_threads_do_not_change_a_byte(cloud: np.ndarray) -> None:
    rows = np.concatenate([cloud + np.float32(0.01 * step) for step in range(10)])  # two levels of clusters
    arguments = {"priorities": [0.0] * len(rows), "threshold": 0.95, "rows_per_cluster": 40, "seed": 5}
    one, *others = (semantic_dedup(rows, **arguments, num_threads=threads) for threads in (1, 2, 3))
    assert one.metrics["num_clusters"] > 100
    for other in others:
        assert other == one
        assert other.clusters.tobytes() == one.clusters.tobytes()


def double_loop(
    rows: np.ndarray, priorities: list[float], clusters: np.ndarray, threshold: float, compare_to: str
) -> dict[int, int]:
    """Dropped row -> twin: the rule as it is written, one pair after another, in float64."""
    units = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    twins: dict[int, int] = {}
    for row in sorted(range(len(rows)), key=lambda row: (-priorities[row], row)):
        for other in sorted(range(len(rows)), key=lambda row: (-priorities[row], row)):
            if other == row:
                break
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
    monkeypatch.setattr(module, "_BLOCK", 64)
    priorities = [float((7 * n) % 13) for n in range(len(cloud))]
    for threshold in (0.9, 0.97):
        found = semantic_dedup(
            cloud,
            priorities=priorities,
            threshold=threshold,
            rows_per_cluster=rows_per_cluster,
            compare_to=compare_to,  # type: ignore[arg-type]
        )
        plain = double_loop(cloud, priorities, found.clusters, threshold, compare_to)
        assert len(plain) > 50
        assert {twin.dropped: twin.twin for twin in found.twins} == plain


def test_the_twin_is_the_best_row_that_is_near_enough() -> None:
    # Row 2 is 3 degrees from row 1 and 5 from row 0; both reach the threshold of cos 6, and row 0 is the better one.
    result = semantic_dedup(
        at(0, 2, 5), priorities=[3.0, 2.0, 1.0], threshold=math.cos(math.radians(6)), rows_per_cluster=10
    )
    assert [(twin.dropped, twin.twin) for twin in result.twins] == [(1, 0), (2, 0)]


def test_rows_on_two_sides_of_a_border() -> None:
    random = np.random.default_rng(0)
    cloud = random.normal(size=(1500, 12)).astype(np.float32)
    rows = np.concatenate([cloud, cloud + 0.15 * random.normal(size=cloud.shape).astype(np.float32)])
    arguments = {"priorities": [0.0] * len(rows), "threshold": 0.97, "rows_per_cluster": 20}

    def dropped(num_nearest: int) -> set[int]:
        return {t.dropped for t in semantic_dedup(rows, **arguments, num_nearest=num_nearest).twins}

    one, two, three = dropped(1), dropped(2), dropped(3)
    assert one < two <= three
    everything = {t.dropped for t in semantic_dedup(rows, **arguments | {"rows_per_cluster": 3000}).twins}
    assert three <= everything
    assert len(one) < 0.97 * len(everything)
    assert len(three) > 0.99 * len(everything)


def test_more_nearest_clusters_than_k_means_makes_compare_every_row_with_every_other() -> None:
    # 200 rows in clusters of two: 100 are asked for, and two levels with rounded shares come to 99.
    random = np.random.default_rng(1)
    rows = random.standard_normal((200, 4)).astype(np.float32)
    units = module.UnitRows(rows)
    labels = nearest_clusters(units, rows_per_cluster=2, num_nearest=100, seed=1, num_threads=1)
    assert labels.shape == (200, 99)
    assert (np.sort(labels, axis=1) == np.arange(99)).all()
    options = {"priorities": -np.arange(200.0), "threshold": 0.95}
    everywhere = semantic_dedup(rows, rows_per_cluster=2, num_nearest=1_000, seed=1, **options)  # type: ignore[arg-type]
    one_cluster = semantic_dedup(rows, rows_per_cluster=200, seed=1, **options)  # type: ignore[arg-type]
    assert everywhere.kept == one_cluster.kept
    assert len(everywhere.kept) < 200
