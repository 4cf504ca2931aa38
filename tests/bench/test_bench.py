"""The training benchmark's harness: one tiny comparison made for real, and the flags that make no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from scripts.bench.training_cases import CASES
from scripts.bench.training_tokens import token_counts

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench" / "training.py"
TINY = ("--size", "3m", "--pairs", "1", "--groups", "2", "--threads", "1", "--no-tune")


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_tiny_comparison_measures_both_sides_on_the_same_work(tmp_path: Path) -> None:
    json_file, table = tmp_path / "ratios.json", tmp_path / "table.md"
    # The real rows are not there: their case is left out with its reason, the other one is measured.
    flags = ("--cases", "reward_3way", "sft", "--data", str(tmp_path), "--json", str(json_file))
    done = run(*TINY, *flags, "--markdown", str(table))
    # 1 would mean that the two sides' losses of the first step are not the same.
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sft: skipped: it needs {tmp_path / 'preferences' / 'alpacaeval_graded.jsonl'}" in done.stdout
    ratios = json.loads(json_file.read_text())
    expected = {"reward_3way"} | ({"reward_3way_memory"} if Path("/proc/self/status").exists() else set())
    assert set(ratios) == expected
    assert all(ratio > 0 for ratio in ratios.values())
    (row,) = [line for line in table.read_text().splitlines() if line.startswith("| `")]
    assert row.startswith("| `reward_3way` | 3M |")
    assert f"**{ratios['reward_3way']:.2f}x**" in row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--cases", "reward_4way"),
            "--cases: there is no case reward_4way; choose from reward_3way, reward_2way, dpo",
        ),
        (("--pairs", "0"), "--pairs: must be at least 1, not 0"),
        (("--threads", "-2"), "--threads: must be at least 1, not -2"),
        (("--size", "70b"), "invalid choice: '70b'"),
        (("--json", "no/such/folder/ratios.json"), "there is no folder"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags: tuple[str, ...], message: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_token_counts_by_hand() -> None:
    """A prompt of 256 and three completions of 128: 2,304 tokens as TRL's three pairs, 1,152 as rows read once."""
    group = PromptGroup("a", (2,) * 256, (CompletionTokens((3,) * 128, (False,) * 128),) * 3, (0, 1, 2))
    counts = token_counts(CASES["reward_3way"], [group])
    # Packed: 255 of the prompt, and its last token once more before each completion.
    assert (counts.packed, counts.separate, counts.other) == (255 + 3 * 129, 3 * 384, 6 * 384)
    assert counts.ratio == 2304 / 642
    pair = PromptGroup("b", (2,) * 100, (CompletionTokens((3,) * 10, (False,) * 10),) * 2, (0, 1))
    assert token_counts(CASES["dpo"], [pair, pair]).ratio == 220 / 121
    assert token_counts(CASES["score_k16"], [group]).other == 1152
