"""`sample`, `score` and `compare-sampling` on the bundled base: real engine, real reward model, a few prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.cli import app as cli
from alignloop.config.bundled import QUICKSTART
from alignloop.data.jsonl import load_jsonl
from alignloop.records import CandidateRow, DroppedRow, SelectedRow

BASE = QUICKSTART / "base"
SHORT = ("--engine", "transformers", "--max-tokens", "12", "--set", "engine.dtype=float32")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from alignloop.training.checkpoints import save_checkpoint
    from alignloop.training.model import load_reward_model

    return save_checkpoint(load_reward_model(BASE, seed=0), tmp_path_factory.mktemp("rm") / "rm", companions=BASE)


def rows_file(file: Path, *rows: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts_file(folder: Path, *texts: str) -> None:
    rows_file(folder / "prompts.jsonl", *({"prompt": text} for text in texts))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_sample_then_score_then_compare(alignloop, tmp_path: Path, reward_model: Path) -> None:
    prompts_file(tmp_path, "Tell me about Emma.", "Name a river.", "word " * 2100)
    command = ("sample", BASE, "prompts.jsonl", "--out", "c.jsonl", "-k", "3", "--temperature", "0.5,0.9", *SHORT)
    sampled = alignloop(*command)
    assert sampled.code == 0, sampled.err
    assert "6 candidates of 2 prompts  c.jsonl" in sampled.out
    assert "K = 3, temperature 0.5 to 0.9, top_p 1" in sampled.out
    assert "1 dropped  c.dropped.jsonl" in sampled.out
    rows = list(load_jsonl(tmp_path / "c.jsonl", CandidateRow))
    assert [len({row.id for row in rows}), len({row.prompt_id for row in rows})] == [6, 2]
    assert all(len(row.completion_ids) <= 12 and 0.5 <= (row.temperature or 0) <= 0.9 for row in rows)
    (dropped,) = load_jsonl(tmp_path / "c.dropped.jsonl", DroppedRow)
    assert dropped.rule == "length"
    assert "exceed 2048" in dropped.reason
    assert names(tmp_path) == {"prompts.jsonl", "c.jsonl", "c.dropped.jsonl", "c.manifest.json"}

    again = alignloop(*command)
    assert again.code == 0
    assert "there already and made from the same things" in again.out
    other = alignloop(*command, "--seed", "7")
    assert other.code == 2
    assert "c.jsonl exists, made from something else" in other.err
    assert "seed: " in other.err
    assert list(load_jsonl(tmp_path / "c.jsonl", CandidateRow)) == rows
    whole = (tmp_path / "c.jsonl").read_bytes()
    (tmp_path / "c.jsonl").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    cut = alignloop(*command)
    assert cut.code == 2
    assert "c.jsonl exists, made from the same things, but was changed since" in " ".join(cut.err.split())
    (tmp_path / "c.jsonl").write_bytes(whole)

    (tmp_path / "rewards.py").write_text(
        "def short(completions, **columns):\n    return [-len(c[0]['content']) for c in completions]\n"
    )
    into = ("--out", "s.jsonl", "--best", "b.jsonl")
    scored = alignloop("score", reward_model, "c.jsonl", *into, "--reward-function", "rewards:short=10")
    assert scored.code == 0, scored.err
    after = list(load_jsonl(tmp_path / "s.jsonl", CandidateRow))
    assert [row.completion for row in after] == [row.completion for row in rows]
    for row in after:
        assert row.reward is not None
        assert row.extra_rewards == {"rewards:short": -len(row.completion)}
        assert row.total_reward == pytest.approx(row.reward - 10 * len(row.completion))
    best = list(load_jsonl(tmp_path / "b.jsonl", SelectedRow))
    assert len(best) == 2
    mean_best = sum(row.reward for row in best) / 2
    assert f"reward of the best       {mean_best:>9.4f}" in scored.out
    assert "rewards:short: mean" in scored.out

    compared = alignloop("compare-sampling", "s.jsonl", "s.jsonl", "--out", "compared")
    assert compared.code == 0, compared.err
    unused = alignloop("compare-sampling", "s.jsonl", "s.jsonl", "--seed", "1")
    assert (unused.code, unused.err[:12]) == (2, "error: --see")
    assert "they sample the same" in " ".join(compared.out.split())
    assert names(tmp_path / "compared") == {"comparison.json", "comparison.html", "run.lock"}


@pytest.mark.slow
def test_what_a_crash_left_is_taken_over(alignloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies after its second shard of three; the next call samples one prompt and ends with the same bytes."""
    from alignloop.engines.process import EngineProcess

    prompts_file(tmp_path, "Tell me about Emma.", "Name a river.", "Name a town.")
    how = ("--set", "sample.shard_prompts=1", "--system-prompt", "Be brief: end soon.")
    command = ("sample", "quickstart", "prompts.jsonl", "-k", "2", *SHORT, *how)
    whole = alignloop(*command, "--out", "whole.jsonl")
    assert whole.code == 0, whole.err
    assert {row.system_prompt for row in load_jsonl(tmp_path / "whole.jsonl", CandidateRow)} == {"Be brief: end soon."}
    generate, asked = EngineProcess.generate, []

    def dies(self: EngineProcess, requests):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return generate(self, requests)

    monkeypatch.setattr(EngineProcess, "generate", dies)
    stopped = alignloop(*command, "--out", "c.jsonl")
    assert stopped.code == cli.STOPPED
    assert (tmp_path / "c.jsonl.work").is_dir()
    assert not (tmp_path / "c.jsonl").exists()
    asked.clear()
    resumed = alignloop(*command, "--out", "c.jsonl")
    assert resumed.code == 0, resumed.err
    assert asked == [1]
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "c.jsonl.work").exists()


def test_candidates_of_the_users_own(alignloop, tmp_path: Path, reward_model: Path) -> None:
    first = ["She is kind.", {"completion": " Two lines.\n", "by": "m"}, ""]
    rows_file(
        tmp_path / "own.jsonl",
        {"prompt": "Tell me about Emma.", "candidates": first},
        {"prompt": "Name a river.", "candidates": ["word " * 3000, "The Elbe. \U0001f30a"]},
    )
    scored = alignloop("score", reward_model, "own.jsonl", "--out", "s.jsonl", "--best", "b.jsonl")
    assert scored.code == 0, scored.err
    rows = list(load_jsonl(tmp_path / "s.jsonl", CandidateRow))
    assert [row.completion for row in rows] == ["She is kind.", " Two lines.\n", "", "The Elbe. \U0001f30a"]
    assert rows[1].meta == {"by": "m"}
    assert all(row.reward is not None for row in rows)
    assert "1 length, such as: " in scored.out
    best = list(load_jsonl(tmp_path / "b.jsonl", SelectedRow))
    assert best[1].completion == "The Elbe. \U0001f30a"


def test_an_ensemble_is_named_with_commas(alignloop, tmp_path: Path, reward_model: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"rm{number}").symlink_to(reward_model)
    rows_file(tmp_path / "own.jsonl", {"prompt": "Name a river.", "candidates": ["The Elbe.", "A hill."]})
    command = ("score", "rm1,rm2", "own.jsonl")
    scored = alignloop(*command, "--out", "s.jsonl", "--set", "score.ensemble=least")
    assert scored.code == 0, scored.err
    rows = list(load_jsonl(tmp_path / "s.jsonl", CandidateRow))
    assert all(row.member_rewards == [row.reward, row.reward] and row.reward_spread == 0.0 for row in rows)
    refused = alignloop(*command, "--out", "t.jsonl")
    assert refused.code == 2
    assert "2 reward models, and score.ensemble is average_weights" in " ".join(refused.err.split())
    # Rewards of other ways to combine are of other scales.
    mean = alignloop(*command, "--out", "m.jsonl", "--set", "score.ensemble=mean")
    assert mean.code == 0, mean.err
    compared = alignloop("compare-sampling", "s.jsonl", "m.jsonl")
    assert compared.code == 2
    assert "were scored by different reward models (ensemble " in " ".join(compared.err.split())
    same = alignloop("compare-sampling", "s.jsonl", "s.jsonl")
    assert same.code == 0, same.err


@pytest.mark.slow
def test_recipes_are_sampled_scored_and_compared(alignloop, tmp_path: Path, reward_model: Path) -> None:
    prompts_file(tmp_path, "Tell me about Emma.", "Name a river.")
    (tmp_path / "r.yaml").write_text(
        "sample: {num_candidates: 2, max_tokens: 8}\nengine: {name: transformers, dtype: float32}\n"
    )
    models = ("--policy", BASE, "--reward-model", reward_model, "--prompts", "prompts.jsonl", "--out", "compared")
    command = ("compare-sampling", "r.yaml", "r.yaml", "--set-b", "sample.temperature=0.5", *models)
    compared = alignloop(*command)
    assert compared.code == 0, compared.err
    assert "sample.temperature: 1 -> 0.5" in compared.out
    assert "2 prompts in both" in compared.out
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert found["a"]["reward_model"] == found["b"]["reward_model"]
    assert found["a"]["reward_model"].startswith("sha256:")
    assert found["all"]["a"]["n"] == 4
    again = alignloop(*command)
    assert again.out.count("cached") == 4
    assert json.loads((tmp_path / "compared" / "comparison.json").read_text()) == found


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "quickstart", "prompts.jsonl", "--out", "prompts.jsonl"),
        ("sample", "quickstart", "prompts.jsonl", "--out", "c.jsonl", "--max-tokens", "5000"),
        ("score", "quickstart", "prompts.jsonl", "--out", "s.jsonl"),
        ("score", "rm", "own.jsonl", "--out", "own.jsonl"),
        ("score", "rm", "own.jsonl", "--out", "s.jsonl", "--best", "own.jsonl"),
        ("compare-sampling", "quickstart", "own.jsonl", "--policy", "nowhere", "--out", "compared"),
        ("data", "prune", "prompts.jsonl", "--out", "kept.jsonl"),
        ("stage", "score", "--out", "scored", "--input", "candidates=none.jsonl"),
    ],
)
def test_what_is_refused_leaves_nothing(
    alignloop, tmp_path: Path, reward_model: Path, command: tuple[str, ...]
) -> None:
    """The messages are in tests/golden."""
    prompts_file(tmp_path, "Name a river.")
    rows_file(tmp_path / "own.jsonl", {"prompt": "Name a river.", "candidates": ["The Elbe.", "A hill."]})
    (tmp_path / "rm").symlink_to(reward_model)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert alignloop(*command).code == 2
    assert names(tmp_path) == {"prompts.jsonl", "own.jsonl", "rm"}
    assert {path: path.read_bytes() for path in before} == before


def test_a_text_that_its_row_calls_cut_is_scored_without_an_end_and_never_the_best(tmp_path: Path) -> None:
    from alignloop.alone.sample import fitting_rows
    from alignloop.chat.load import load_format
    from alignloop.data.candidates import read_candidates

    chat = load_format(QUICKSTART / "base")
    file = tmp_path / "mine.jsonl"
    cut = {"completion": "The Elbe is", "finish_reason": "length"}
    rows_file(file, {"prompt": "Name a river.", "candidates": [cut, "The Elbe."]})
    rows, _ = fitting_rows(read_candidates(file, max_bad_fraction=0.0), chat=chat, room=None, say=print)
    assert [row.finish_reason for row in rows] == ["length", "stop"]
    assert rows[0].completion_ids == list(chat.completion("The Elbe is").token_ids[:-1])
    assert rows[1].completion_ids == list(chat.completion("The Elbe.").token_ids)
