"""The benchmarks: the driver on sides made by hand, each group's smallest case for real, and arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from scripts.bench import run
from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Sides, measure, to_json, to_markdown
from scripts.bench.dedup import double_loop
from scripts.bench.made_up import Planted, clustered
from scripts.bench.planted import edit
from scripts.bench.processes import Hosted
from scripts.bench.training import SPECS, same_work
from scripts.bench.training_rows import token_counts

FIGURES = (Figure("speed", "rate", " rows/s", least=2.0), Figure("memory", "mib", " MiB", least=1.0, inverse=True))


def case_of(turns: list[str], figures: tuple[Figure, ...] = FIGURES, *, with_peer: bool = True) -> Case:
    """Sides that note their turns; ours reads 30, 60, 40 rows/s in 2 MiB, the peer 10 rows/s in 3 MiB."""
    rates = iter((30.0, 60.0, 40.0))

    def ours() -> Reading:
        turns.append("ours")
        return {"rate": next(rates), "mib": 2.0}

    def peer() -> Reading:
        turns.append("peer")
        return {"rate": 10.0, "mib": 3.0}

    sides = Sides(ours, peer if with_peer else None, lambda mine, other: [f"{len(mine)} and {len(other)}"])
    return Case("made", figures, lambda bench: sides, {"small": 8, "large": 80}, quick=1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, tmp_path, 1, 3, False, "small", 8, False, "both", None, {}, stack)


def test_sides_take_turns_and_a_figure_is_the_median_of_the_pairs(bench: Bench) -> None:
    turns: list[str] = []
    measured = measure(case_of(turns), bench)
    assert turns == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert measured.rows() == [
        "| `speed` | 40.0 rows/s | 10.0 rows/s | **4x** (3 6 4) | at least 2x met |",
        "| `memory` | 2 MiB | 3 MiB | **1.5x** (1.5 1.5 1.5) | at least 1x met |",
    ]
    assert to_json([measured]) == {"speed": 4.0, "memory": 1.5}
    assert to_markdown([measured], heading="Top.").endswith("met |\n\n- `speed`: 3 and 3\n")


def test_one_side_is_told_as_it_is_and_less_work_is_not_held_to_the_bar(bench: Bench) -> None:
    figures = (Figure("speed", "rate", " rows/s", most=50.0), Figure("told", "mib"))
    bench.size = "large"
    measured = measure(case_of([], figures, with_peer=False), bench)
    assert measured.rows() == [
        "| `speed_large` | 40.0 rows/s |  | **40.0 rows/s** (30.0 60.0 40.0) | at most 50.0 rows/s met |",
        "| `told_large` | 2 |  | **2** (2 2 2) | told |",
    ]
    bench.smaller = True
    assert "not held to it" in measure(case_of([], figures), bench).rows()[0]
    bench.side = "peer"
    assert measure(case_of([], figures), bench).rows()[0].endswith("**10.0 rows/s** (10.0 10.0 10.0) | told |")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cases reward_4way", "--cases: there is no case reward_4way; choose from training, sampling, data"),
        ("--pairs 0", "--pairs: must be at least 1, not 0"),
        ("--threads -2", "--threads: must be at least 1, not -2"),
        ("--size 70b", "--size: no case has 70b"),
        ("--json no/such/folder/values.json", "there is no folder"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run._options(flags.split())
    assert message in capsys.readouterr().err


def test_a_process_that_fails_or_dies_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Hosted(list, [3, 1], log=log) as hosted:
        assert hosted.call("index", 1) == 1
        with pytest.raises(BenchError, match="ValueError: 7 is not in list"):
            hosted.call("index", 7)
    with Hosted(Path, str(tmp_path), log=log) as hosted, pytest.raises(BenchError, match="IsADirectoryError"):
        hosted.call("write_text", "x")
    with pytest.raises(BenchError, match=r"the process died(.|\n)*No such file"):
        Hosted(open, tmp_path / "none", log=log)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "needs", "keys", "said"),
    [
        (
            "reward_3way sft",
            "trl",
            {"reward_3way", "reward_3way_memory", "reward_3way_tokens"},
            "sft: skipped: it needs",
        ),
        ("stage_vs_vllm --amount 2", "vllm", {"stage_vs_vllm"}, "are the same to the last token"),
        ("eval_vs_hf mmlu_equal --amount 4", "vllm", {"eval_vs_hf"}, "mmlu_equal: skipped: it needs"),
        ("dedup_exact_20k", "numpy", {"dedup_exact_20k"}, "not held to it"),
        (
            "read --amount 2000",
            "numpy",
            {"read_rows_per_second", "read_alone_rows_per_second", "read_memory_growth_mib"},
            "MB/s",
        ),
    ],
)
def test_the_smallest_case_of_each_group(
    cases: str,
    needs: str,
    keys: set[str],
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 would mean that the two sides did not do the same work. The real rows are missing."""
    pytest.importorskip(needs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = f"--quick --threads 1 --data {tmp_path} --json {tmp_path / 'values.json'} --cases {cases}"
    assert run.main(flags.split()) == 0, capfd.readouterr().err
    values = json.loads((tmp_path / "values.json").read_text())
    assert values.keys() == keys
    assert said in capfd.readouterr().out


def test_different_losses_are_not_the_same_work() -> None:
    assert "equal to 5e-04" in same_work(SPECS[0], [{"same": [2.001]}], [{"same": [2.0]}], settings="4 | 4")[0]
    with pytest.raises(BenchError, match="losses of the first step differ by"):
        same_work(SPECS[0], [{"same": [2.1]}], [{"same": [2.0]}], settings="4 | 4")


def test_token_counts_by_hand() -> None:
    """A prompt of 256 and three completions of 128: 2,304 tokens as TRL's three pairs, 1,152 as rows read once."""
    specs = {spec.name: spec for spec in SPECS}
    group = PromptGroup("a", (2,) * 256, (CompletionTokens((3,) * 128, (False,) * 128),) * 3, (0, 1, 2))
    counts = token_counts(specs["reward_3way"], [group])
    # Packed: 255 of the prompt, and its last token once more before each completion.
    assert (counts["packed"], counts["separate"], counts["peer"]) == (255 + 3 * 129, 3 * 384, 6 * 384)
    assert counts["ratio"] == 2304 / 642
    pair = PromptGroup("b", (2,) * 100, (CompletionTokens((3,) * 10, (False,) * 10),) * 2, (0, 1))
    assert token_counts(specs["dpo"], [pair, pair])["ratio"] == 220 / 121
    assert token_counts(specs["score_k16"], [group])["peer"] == 1152


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
    assert some.recall([3]) == 0.5
    assert some.recall([1, 3, 5]) == 0.5


TEXT = "I do not use it. However, it is important to help many people! Is it fast? Yes: very."


@pytest.mark.parametrize(
    ("kind", "text", "edited"),
    [
        ("copy", TEXT, TEXT),
        ("case", "abc", None),
        ("punctuation", "- a, b: c", "a b c"),
        ("contractions", "It is. I do not.", "It's. I don't."),
        ("contractions", "I don't.", "I do not."),
        ("synonyms", TEXT[:62], "I do not employ it. But, it is essential to assist numerous persons!"),
        ("sentences", "One. Two. Three! Four?", "Three! Four? One. Two."),
        ("sentences", "One. Two.", None),
        ("all", "I do not. Use it. It is. Big.", "it's. large. i don't. employ it."),
        ("all", "One. Two. Three. Four.", None),
    ],
)
def test_an_edit_changes_the_text_or_is_none(kind: str, text: str, edited: str | None) -> None:
    assert edit(kind, text) == edited
