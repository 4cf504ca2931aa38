"""The evaluation benchmark's harness: one small measurement made for real, and the flags that make no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "evaluation.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_both_sides_answer_the_same_prompts_and_missing_data_is_said(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    json_file, table = tmp_path / "values.json", tmp_path / "table.md"
    # The real data are not there: the bundled prompts are answered, and MMLU is left out with its reason.
    flags = ("--quick", "--threads", "1", "--prompts", "4", "--data", str(tmp_path))
    done = run(*flags, "--json", str(json_file), "--markdown", str(table))
    # 1 would mean that the two sides' answers are not of like length.
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"mmlu_equal: skipped: it needs {tmp_path / 'mmlu'}" in done.stdout
    assert "4 of the bundled prompts" in done.stdout
    values = json.loads(json_file.read_text())
    assert set(values) == {"eval_vs_hf", "eval_vs_hf_same_answers"}
    assert values["eval_vs_hf"] > 0
    (row,) = [line for line in table.read_text().splitlines() if line.startswith("| `")]
    assert f"**{values['eval_vs_hf']:.2f}x**" in row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cases", "speed"), "--cases: there is no case speed; choose from eval_vs_hf, mmlu_equal"),
        (("--pairs", "0"), "--pairs: must be at least 1, not 0"),
        (("--questions", "-1"), "--questions: must be at least 1, not -1"),
        (("--json", "no/such/folder/values.json"), "there is no folder"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags: tuple[str, ...], message: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
