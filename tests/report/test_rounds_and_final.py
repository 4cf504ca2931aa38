"""A round's line from hand-made manifests, and the final model with its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from made_run import put

from alignloop.artifacts import Artifact, digest_of
from alignloop.chat.template_defaults import with_defaults
from alignloop.config import load_recipe
from alignloop.errors import RunDirError
from alignloop.loop.final import publish_final
from alignloop.report.model_card import vllm_snippet
from alignloop.report.rounds import round_row
from alignloop.run_dir.reader import read_rounds

CHECKPOINT = {
    "config.json": '{"model_type": "llama"}',
    "generation_config.json": '{"eos_token_id": [7]}',
    "tokenizer.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "model.safetensors": "weights",
}


def make_run(run_dir: Path) -> Path:
    preferences = {"path": "/somewhere/private/pairs.jsonl", "digest": "sha256:aa"}
    put(
        run_dir,
        0,
        "01_ingest",
        counts={"in": 4, "kept": 3, "dropped": 1},
        inputs={"preferences": [preferences], "prompts": []},
    )
    put(run_dir, 0, "02_base", checkpoint=CHECKPOINT)
    put(run_dir, 0, "03_evaluate", metrics={"ifeval/mean": 0.2}, seconds={"evaluating": 2.0})
    put(run_dir, 1, "01_collect", counts={"preferences": 3, "annotated": 2})
    trained = {"eval_accuracy": 0.7, "eval_loss": 0.6, "train_accuracy": 0.9}
    put(run_dir, 1, "02_train_reward", metrics=trained, seconds={"training": 3.0, "other": 0.5})
    put(run_dir, 1, "03_average", checkpoint=CHECKPOINT, counts={"checkpoints": 1})
    put(run_dir, 1, "06_select", metrics={"mean_reward_random": -0.5, "mean_reward_best": 1.5})
    put(run_dir, 1, "07_prune", counts={"in": 5, "kept": 4, "dropped": 1, "dropped_by_clean": 1})
    put(run_dir, 1, "08_train_sft", seconds={"training": 4.0, "other": 0.25}, metrics={"train_loss": 1.0})
    put(run_dir, 1, "12_average", checkpoint=CHECKPOINT)
    put(run_dir, 1, "13_evaluate", metrics={"ifeval/mean": 0.6}, seconds={"evaluating": 2.0})
    return run_dir


def rows_of(run_dir: Path) -> list:
    base = Artifact.of(run_dir / "round-00/02_base/checkpoint")
    policy = Artifact.of(run_dir / "round-01/12_average/checkpoint")
    return [
        round_row(run_dir, 0, policy=base, stderr={"ifeval/mean": 0.01}),
        round_row(run_dir, 1, policy=policy, stderr={"ifeval/mean": 0.02}),
    ]


def test_round_row_gathers_its_stages(tmp_path: Path) -> None:
    first = rows_of(make_run(tmp_path))[1]
    assert first.policy == "round-01/12_average/checkpoint"
    assert first.metrics == {"ifeval/mean": 0.6}
    assert first.stderr == {"ifeval/mean": 0.02}
    assert first.reward_model == {
        "heldout_accuracy": 0.7,
        "heldout_loss": 0.6,
        "mean_reward_random": -0.5,
        "mean_reward_best": 1.5,
    }
    assert first.rows["prune_kept"] == 4
    assert first.rows["prune_dropped_by_clean"] == 1
    assert first.rows["collect_annotated"] == 2
    assert "average_checkpoints" not in first.rows
    assert first.seconds == {"training": 7.0, "other": 0.75, "evaluating": 2.0}


def test_rounds_are_read_back(tmp_path: Path) -> None:
    rows = rows_of(make_run(tmp_path))
    assert read_rounds(tmp_path) == []
    (tmp_path / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert read_rounds(tmp_path) == rows
    for broken in (b'{"round": 1, "policy": "ro', b"\xff\xfe\x00"):
        (tmp_path / "rounds.jsonl").write_bytes(rows[0].model_dump_json().encode() + b"\n" + broken)
        with pytest.raises(RunDirError, match=r"rounds\.jsonl, line 2.*RoundRow lines.*; remove rounds\.jsonl"):
            read_rounds(tmp_path)


def test_final_is_a_whole_model_with_a_card(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    rows = rows_of(run_dir)
    before = digest_of(run_dir / "round-01/12_average/checkpoint")
    recipe = load_recipe(
        {
            "preferences": "/somewhere/private/pairs.jsonl",
            "name": "mine",
            "base": "org/model",
            "engine": {"name": "transformers"},
        }
    )
    final = publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe)
    assert {path.name for path in final.iterdir()} == {*CHECKPOINT, "README.md"}
    assert json.loads((final / "generation_config.json").read_text())["eos_token_id"] == [7]
    card = (final / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "org/model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignloop", "dpo", "rejection-sampling", "sft"],
    }
    assert "# mine, round 1" in text
    assert "at temperature 1, sampled with transformers (plain `generate`)" in text
    assert "0.600 against 0.200 at the base" in text
    for digest in (before, "sha256:aa"):
        assert digest in text
    assert "/somewhere" not in card
    assert "pairs.jsonl" in card
    assert "simulated" not in text
    assert "torch 2.13.0" in text
    assert "from vllm import LLM" in text
    assert "from transformers import pipeline" in text
    # The round's own checkpoint is untouched: its digest is what the next round's manifests name.
    assert digest_of(run_dir / "round-01/12_average/checkpoint") == before


def test_final_is_replaced_and_leaves_nothing_aside(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    rows = rows_of(run_dir)
    recipe = load_recipe(
        {"preferences": "quickstart", "collect": {"annotator": "simulated", "num_annotations": 8}, "name": "quickstart"}
    )
    publish_final(run_dir, rows=rows, best=rows[0], recipe=recipe)
    final = publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe)
    card = (final / "README.md").read_text()
    assert "# quickstart, round 1" in card
    assert "**The annotator is simulated.**" in card
    assert "base_model" not in card
    assert [path.name for path in run_dir.iterdir() if path.name.startswith("final")] == ["final"]


def test_the_card_says_what_the_template_was_rendered_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(run_dir: Path) -> str:
        rows = rows_of(make_run(run_dir))
        recipe = load_recipe({"preferences": "p.jsonl", "name": "mine", "base": "org/model"})
        return (publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe) / "README.md").read_text()

    assert "chat_template_kwargs" not in card(tmp_path / "plain")
    monkeypatch.setitem(CHECKPOINT, "chat_template.jinja", with_defaults("{{ messages }}", {"enable_thinking": True}))
    thinks = card(tmp_path / "thinks")
    assert "SamplingParams(max_tokens=256), chat_template_kwargs={'enable_thinking': True})" in thinks
    assert "# asks with enable_thinking=True, as training did" in thinks
    assert "trained and measured with the chat template's `{enable_thinking: true}`" in thinks
    compile(vllm_snippet("model", template_kwargs={"enable_thinking": True}), "snippet", "exec")
