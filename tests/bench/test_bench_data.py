"""The data benchmark's harness: tiny measurements made for real, the plain double loop, bad flags."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.bench.data_cases import KEYS, Result
from scripts.bench.data_dedup import double_loop, recall
from scripts.bench.data_edits import EDITS
from scripts.bench.data_rows import Planted, clustered
from scripts.bench.data_table import line, to_json

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "data.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tiny_measurements(tmp_path: Path) -> None:
    json_file, table = tmp_path / "values.json", tmp_path / "table.md"
    flags = ("--quick", "--threads", "1", "--work", str(tmp_path / "work"), "--markdown", str(table))
    done = run(*flags, "--cases", "dedup_exact_20k", "read", "--json", str(json_file))
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads(json_file.read_text())
    assert set(values) == {
        "dedup_exact_20k",
        "read_rows_per_second",
        "read_memory_growth_mib",
        "read_alone_rows_per_second",
    }
    assert values["dedup_exact_20k"] == 1
    assert "100 dropped, equal" in done.stdout
    assert "at least 1, not held to it: 2,000 rows in place of 20,000" in table.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cases", "dedup"), "--cases: there is no case dedup; choose from dedup_1m, dedup_exact_20k"),
        (("--pairs", "0"), "--pairs: must be at least 1, not 0"),
        (("--json", "no/such/folder/values.json"), "there is no folder"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags: tuple[str, ...], message: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_the_double_loop_by_hand() -> None:
    # 0, 10 and 20 degrees, and 1 degree in a cluster of its own; a threshold of cos 12.
    angles = np.radians([0.0, 10.0, 20.0, 1.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    clusters, threshold = np.array([0, 0, 0, 1], dtype=np.int32), float(np.cos(np.radians(12)))
    priorities = np.array([3.0, 2.0, 1.0, 9.0])
    assert double_loop(rows, priorities, clusters, threshold=threshold, compare_to="seen") == {1: 0, 2: 1}
    assert double_loop(rows, priorities, clusters, threshold=threshold, compare_to="kept") == {1: 0}


def test_planted_rows_have_the_cosines_they_should() -> None:
    planted = clustered(2_000, dim=64)
    assert np.linalg.norm(planted.vectors, axis=1) == pytest.approx(np.ones(2_000), abs=1e-5)
    assert len(planted.copies) == 100
    assert not set(planted.copies) & set(planted.sources)
    cosines = (planted.vectors[planted.copies] * planted.vectors[planted.sources]).sum(axis=1)
    assert cosines.min() > 0.954
    assert cosines.max() < 0.996
    assert clustered(2_000, dim=64).vectors.tobytes() == planted.vectors.tobytes()
    some = Planted(np.zeros((6, 2), dtype=np.float32), np.array([1, 2]), np.array([3, 4]))
    assert recall(some, [3]) == 0.5
    assert recall(some, [1, 3, 5]) == 0.5


def test_edits() -> None:
    text = "I do not use it. However, it is important to help many people! Is it fast? Yes: very."
    assert EDITS["copy"](text) == text
    assert EDITS["case"]("abc") is None
    assert EDITS["punctuation"]("- a, b: c") == "a b c"
    assert EDITS["contractions"](text) is not None
    assert EDITS["contractions"]("I don't.") == "I do not."
    assert EDITS["synonyms"](text) == (
        "I do not employ it. But, it is essential to assist numerous persons! Is it quick? Yes: very."
    )
    assert EDITS["sentences"](text) == (
        "Is it fast? Yes: very. I do not use it. However, it is important to help many people!"
    )
    assert EDITS["sentences"]("One. Two.") is None
    assert EDITS["all"](text) is not None
    assert EDITS["all"]("One. Two. Three. Four.") is None


def test_a_verdict_and_a_measurement_too_small_for_one() -> None:
    met = Result(KEYS["dedup_1m_seconds"], 24.3, "facts", (24.0, 24.3, 25.0))
    assert line(met) == "dedup_1m_seconds: 24.3 s (24.0 24.3 25.0), at most 180 s met; facts"
    assert "at most 1.1 missed" in line(Result(KEYS["dedup_growth_exponent"], 1.2, "facts"))
    assert "told" in line(Result(KEYS["planted_recall"], 0.9, "facts"))
    assert to_json([met]) == {"dedup_1m_seconds": 24.3}
