from __future__ import annotations

import math

import numpy as np
import pytest

import alignloop.selection.semantic_dedup as module
from alignloop.selection.semantic_dedup import semantic_dedup


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
    answer = result.verdicts(["a", "b", "c"])
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
