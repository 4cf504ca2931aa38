"""The loop on the quickstart's own base and data, small: climb aside, everything is the real thing.

The runs share one module-wide directory because starting vLLM is what takes time here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignloop import run
from alignloop.artifacts import digest_of
from alignloop.errors import RunDirError
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import read_manifest
from alignloop.run_dir.reader import published_stages

SMALL = (
    "sample.num_prompts=12",
    "sample.num_candidates=3",
    "sample.max_tokens=24",
    "sample.shard_prompts=4",
    "collect.num_annotations=8",
    "data.split_rounds=60",
    "data.heldout_fraction=0.01",
    "evaluate.limit=4",
    "evaluate.max_gen_tokens=24",
    "measure.num_prompts=4",
    "measure.num_candidates=2",
    "reward.epochs=1",
    "sft.epochs=1",
)
STAGES = (
    "collect train_reward average sample score select prune train_sft average build_pairs train_dpo average evaluate "
    "measure"
).split()


def stages_of(run_dir: Path, number: int) -> list[str]:
    return [stage.name for stage in published_stages(run_dir, number)]


def outcome(run_dir: Path) -> list[dict[str, object]]:
    """What must be equal between two runs: everything but the time they took."""
    lines = (run_dir / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    result = run("quickstart", rounds=2, run_dir=run_dir, overrides=SMALL)
    assert result.num_engine_starts == 1
    return run_dir


def test_two_rounds_of_fourteen_stages(unbroken: Path) -> None:
    assert stages_of(unbroken, 0) == ["ingest", "base", "evaluate", "measure", "evaluate_test"]
    assert stages_of(unbroken, 1)[:14] == STAGES  # one more where it is the best
    assert stages_of(unbroken, 2) == [*STAGES, "evaluate_test"]
    rows = [RoundRow.model_validate_json(line) for line in (unbroken / "rounds.jsonl").read_text().splitlines()]
    assert [row.round for row in rows] == [0, 1, 2]
    assert "win_rate/base" not in rows[0].measures
    assert {"kl_to_base", "win_rate/base", "win_rate/previous", "heldout/accuracy"} <= rows[2].measures.keys()
    told = {"random", "pick", "oracle", "chosen_file", "rejected_file", "sft", "dpo_chosen", "dpo_rejected"}
    for row in rows[1:]:
        assert {f"truth/{name}" for name in told} <= row.measures.keys()
        assert row.measures["truth/random"] <= row.measures["truth/oracle"]
        assert row.measures["truth/pick"] <= row.measures["truth/oracle"]
    assert ["truth/chosen_annotated" in row.measures for row in rows] == [False, False, True]
    for row in rows:
        assert "stop_rate" in row.measures
        assert {"ifeval_dev/mean", "ifeval_dev/prompt_level_strict_acc", "mmlu/acc"} <= row.metrics.keys()
        assert (unbroken / row.policy / "model.safetensors").is_file()


def test_the_best_of_k_is_the_best_finished_one(unbroken: Path) -> None:
    """Of the scored candidates of each prompt; at 24 tokens many are cut off, and those win only among themselves."""
    room = unbroken / "round-02"
    scored: dict[str, list[tuple[bool, float]]] = {}
    for line in (room / "05_score" / "candidates.jsonl").read_text().splitlines():
        row = json.loads(line)
        scored.setdefault(row["prompt_id"], []).append((row["finish_reason"] != "length", row["reward"]))
    selected = [json.loads(line) for line in (room / "06_select" / "selected.jsonl").read_text().splitlines()]
    assert {row["prompt_id"]: row["reward"] for row in selected} == {
        prompt: max(candidates)[1] for prompt, candidates in scored.items()
    }


def test_lineage_is_linked_by_digests(unbroken: Path) -> None:
    """SFT starts from what sampled, DPO from and against the averaged SFT model, round 2 from round 1's policy."""
    manifests = {f"{r}/{stage.dir.name}": stage.manifest for r in (1, 2) for stage in published_stages(unbroken, r)}
    inputs = {name: manifest.inputs for name, manifest in manifests.items() if manifest}
    outputs = {name: manifest.outputs for name, manifest in manifests.items() if manifest}
    dpo = inputs["1/11_train_dpo"]
    assert dpo["start"]["digest"] == dpo["reference"]["digest"] == outputs["1/09_average"]["checkpoint"].digest
    assert inputs["2/08_train_sft"]["start"]["digest"] == outputs["1/12_average"]["checkpoint"].digest
    assert inputs["2/02_train_reward"]["start"]["digest"] == outputs["1/03_average"]["checkpoint"].digest
    assert len(inputs["2/02_train_reward"]["preferences"]) == 2


def test_running_again_takes_everything_over(unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("manifest.json")}
    result = run("quickstart", rounds=2, run_dir=unbroken, overrides=SMALL)
    assert result.num_engine_starts == 0
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("manifest.json")} == before


def test_final_model_loads_and_stops(unbroken: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unbroken / "final")
    model = AutoModelForCausalLM.from_pretrained(unbroken / "final")
    messages = [{"role": "user", "content": "Tell me about the sea."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") in model.generation_config.eos_token_id
    out = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
    card = (unbroken / "final" / "README.md").read_text()
    assert "simulated" in card


def test_other_settings_are_refused_and_named(unbroken: Path) -> None:
    with pytest.raises(RunDirError, match=r"dpo\.beta: 0\.1 -> 0\.3"):
        run("quickstart", rounds=2, run_dir=unbroken, overrides=[*SMALL, "dpo.beta=0.3"])


def test_a_manifest_that_was_edited_is_refused(unbroken: Path) -> None:
    """Someone edits a published file's digest: the file is not what it says."""
    manifest = published_stages(unbroken, 2)[0].dir / "manifest.json"
    text = manifest.read_text()
    digest = read_manifest(manifest.parent).outputs["preferences"].digest
    try:
        manifest.write_text(text.replace(digest, "sha256:" + "0" * 64))
        with pytest.raises(RunDirError, match=r"01_collect/manifest\.json: damaged.*its digest is another"):
            run("quickstart", rounds=2, run_dir=unbroken, overrides=SMALL)
    finally:
        manifest.write_text(text)


def command(run_dir: Path) -> list[str]:
    sets = [part for override in SMALL for part in ("--set", override)]
    return [sys.executable, "-m", "alignloop", "run", "quickstart", "--rounds", "2", "--run-dir", str(run_dir), *sets]


def wait_for(path: Path, process: subprocess.Popen[str], *, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"the run ended before {path}: {process.stdout and process.stdout.read()}"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_in_stage_after_stage_ends_as_the_unbroken_run(unbroken: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # In training, and where the engine has to serve what it served before. Each stage's own tests kill it, too.
    for place in ("round-01/11_train_dpo", "round-02/13_evaluate"):
        process = subprocess.Popen(
            command(run_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        wait_for(run_dir / f"{place}.partial", process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (run_dir / place).exists()
    published = {path: path.stat().st_mtime_ns for path in run_dir.rglob("manifest.json")}
    done = subprocess.run(command(run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in published} == published
    assert outcome(run_dir) == outcome(unbroken)
    assert digest_of(run_dir / "final" / "model.safetensors") == digest_of(unbroken / "final" / "model.safetensors")


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for(run_dir / "round-00" / "03_evaluate.partial", process)
    time.sleep(3.0)  # into the engine's start: the hardest moment to stop at
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Go on with" in output
    assert "Traceback" not in output
    assert not (run_dir / "round-00" / "03_evaluate").exists()
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.mark.slow
def test_own_base_and_sharegpt_rows(tmp_path: Path) -> None:
    """A random Qwen2 without a chat template, on ShareGPT rows: template, bootstrap, one round."""
    base = random_qwen2(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(sharegpt(i)) + "\n" for i in range(24)), encoding="utf-8")
    result = run(
        {
            "base": str(base),
            "chat_template": "chatml",
            "preferences": str(rows),
            "data": {"heldout_fraction": 0.1},
            "sample": {"num_candidates": 2, "max_tokens": 8, "num_prompts": 6},
            "evaluate": {"include_path": "quickstart", "limit": 2, "max_gen_tokens": 8},
            "engine": {"max_model_len": 384, "dtype": "float32"},
        },
        rounds=1,
        run_dir=tmp_path / "run",
    )
    assert stages_of(result.run_dir, 0) == ["ingest", "base", "evaluate", "bootstrap", "average", "measure"]
    assert stages_of(result.run_dir, 1)[:14] == STAGES
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result.final_model)
    model = AutoModelForCausalLM.from_pretrained(result.final_model)
    assert "<|im_start|>" in tokenizer.chat_template
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    eos = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (eos if isinstance(eos, list) else [eos])


def sharegpt(i: int) -> dict[str, object]:
    return {
        "conversations": [{"from": "human", "value": f"What is {i} plus {i}?"}],
        "chosen": {"from": "gpt", "value": f"It is {2 * i}."},
        "rejected": {"from": "gpt", "value": "I cannot say."},
    }


def random_qwen2(folder: Path) -> Path:
    """A two-layer random Qwen2 with a byte-level tokenizer of its own and no chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
