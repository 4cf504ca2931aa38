"""The sampling benchmark's harness: one tiny measurement made for real, and the flags that make no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH / script), *flags], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_tiny_measurement_has_stage_and_vllm_do_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    json_file, table = tmp_path / "values.json", tmp_path / "table.md"
    flags = ("--quick", "--threads", "1", "--prompts", "2", "--work", str(tmp_path / "work"))
    done = run("sampling.py", *flags, "--cases", "stage_vs_vllm", "--json", str(json_file), "--markdown", str(table))
    # 1 would mean that the two sides did not sample the same number of tokens.
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads(json_file.read_text())
    assert set(values) == {"stage_vs_vllm"}
    assert values["stage_vs_vllm"] > 0
    # 2 prompts with 16 candidates each, asked for with the same seeds.
    assert "32 of 32 completions are the same to the last token" in done.stdout
    (row,) = [line for line in table.read_text().splitlines() if line.startswith("| `")]
    assert row.startswith("| `stage_vs_vllm` |")
    assert f"**{values['stage_vs_vllm']:.2f}x**" in row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cases", "stage"), "--cases: there is no case stage; choose from stage_vs_vllm, vllm_vs_transformers"),
        (("--pairs", "0"), "--pairs: must be at least 1, not 0"),
        (("--rounds", "-1"), "--rounds: must be at least 1, not -1"),
        (("--rounds", "100"), "--rounds: a recipe has at most 99, not 100"),
        (("--prompts", "2301"), "--prompts: there are 2300 bundled ones, not 2301"),
        (("--json", "no/such/folder/values.json"), "there is no folder"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags: tuple[str, ...], message: str) -> None:
    done = run("sampling.py", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_one_side_is_not_run_into_a_folder_that_holds_stages_already(tmp_path: Path) -> None:
    done = run("sampling_loop.py", "cold", "--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} is there already: stages it holds would not be run again" in done.stderr
