"""What is known of a checkpoint, and of a request, before an engine starts on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest, check_generate, check_loglikelihood
from alignloop.engines.checkpoint import (
    architecture,
    check_servable,
    eos_token_ids,
    longest_sequence,
    num_parameters,
    read_config,
    weight_files,
)
from alignloop.engines.plain import SEQUENCE_TOKENS, canary_sequences, load_plain, plain_model
from alignloop.engines.vllm_engine import named_weights
from alignloop.errors import EngineError, ModelError, UserError

LIMITS: dict[str, Any] = {"max_model_len": 10, "vocab_size": 50}


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def copied(checkpoint: Path, folder: Path, **changed: object) -> Path:
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return folder


def config(**values: object) -> EngineConfig:
    return EngineConfig.model_validate({"max_model_len": 256, **values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": (1,) * 6, "max_tokens": 5}, "6 tokens .* up to 5 are 11 tokens"),
        ({"prompt_ids": ()}, "the prompt is empty"),
        ({"prompt_ids": (1, 50)}, "token id 50, outside the model's vocabulary of 50"),
        ({"prompt_ids": (1, -1)}, "token id -1"),
        ({"max_tokens": 0}, r"max_tokens \(0\)"),
        ({"num_candidates": 0}, r"num_candidates \(0\)"),
        ({"temperature": -0.1}, r"temperature \(-0.1\)"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
        ({"json_schema": "{"}, "its json_schema is not JSON"),
        ({"json_schema": "[]"}, "its json_schema is a JSON list"),
    ],
)
def test_a_request_that_cannot_be_run_is_refused(change: dict[str, Any], message: str) -> None:
    fits = GenerateRequest(prompt_ids=(49,) * 5, max_tokens=5)
    check_generate([fits], **LIMITS)
    with pytest.raises(EngineError, match=f"generate request 1.*{message}"):
        check_generate([fits, GenerateRequest(**{"prompt_ids": (1,), "max_tokens": 1, **change})], **LIMITS)


def test_loglikelihood_leaves_one_position_free() -> None:
    check_loglikelihood([LoglikelihoodRequest((1,) * 5, (2,) * 4)], **LIMITS)
    with pytest.raises(EngineError, match=r"context of 5 tokens and a continuation of 5 are 10 tokens.*\(9\)"):
        check_loglikelihood([LoglikelihoodRequest((1,) * 5, (2,) * 5)], **LIMITS)
    with pytest.raises(EngineError, match="the continuation is empty"):
        check_loglikelihood([LoglikelihoodRequest((1,), ())], **LIMITS)


def test_architecture_ignores_what_weights_do_not_depend_on(tmp_path: Path) -> None:
    one = write(tmp_path / "1", config={"hidden_size": 8, "eos_token_id": 1, "transformers_version": "5.1"})
    same = write(tmp_path / "2", config={"hidden_size": 8, "eos_token_id": 2, "dtype": "float32", "rope_scaling": None})
    other = write(tmp_path / "3", config={"hidden_size": 16, "eos_token_id": 1})
    assert architecture(one) == architecture(same) != architecture(other)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config": {"eos_token_id": 3}, "generation_config": {"eos_token_id": [9, 7]}}, (7, 9)),
        ({"config": {"eos_token_id": 3}, "generation_config": {}}, (3,)),
        ({"config": {"text_config": {"eos_token_id": 4}}}, (4,)),
        ({"config": {}}, ()),
    ],
)
def test_eos_comes_from_the_generation_config_first(
    tmp_path: Path, files: dict[str, object], expected: tuple[int, ...]
) -> None:
    assert eos_token_ids(write(tmp_path, **files)) == expected


def test_broken_files_are_named(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    folder = write(tmp_path / "1", config={})
    with pytest.raises(ModelError, match=r"holds no \.safetensors file"):
        weight_files(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"lacks part-2\.safetensors"):
        weight_files(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not valid JSON"):
        read_config(folder)
    short = copied(checkpoints.a, tmp_path / "short")
    file = short / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: is cut short"):
        check_servable(short, config())


def test_parameters_are_counted_from_the_headers(checkpoints: SimpleNamespace) -> None:
    # embedding 512 x 128; per layer q 128 x 128, k and v 64 x 128, o 128 x 128, three mlp 128 x 256, two norms
    a_layer = 128 * 128 * 2 + 64 * 128 * 2 + 3 * 128 * 256 + 2 * 128
    assert num_parameters(checkpoints.a) == 512 * 128 + 4 * a_layer + 128
    assert num_parameters(checkpoints.untied) == num_parameters(checkpoints.a) + 512 * 128


def test_weights_give_a_tied_head_its_embedding(checkpoints: SimpleNamespace) -> None:
    tied, untied = dict(named_weights(checkpoints.a)), dict(named_weights(checkpoints.untied))
    assert tied["lm_head.weight"].equal(tied["model.embed_tokens.weight"])
    assert not untied["lm_head.weight"].equal(untied["model.embed_tokens.weight"])
    assert set(tied) == set(untied)


def test_canary_sequences_are_fixed_and_hold_no_special_ids() -> None:
    config = {"vocab_size": 12, "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None}
    sequences = canary_sequences(config)
    assert sequences == canary_sequences(config)
    assert {len(ids) for ids in sequences} == {SEQUENCE_TOKENS}
    assert {token_id for ids in sequences for token_id in ids} <= set(range(3, 12))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_model_len": 257}, r"engine\.max_model_len: 257 tokens, but .*/a has 256 positions"),
        ({"tensor_parallel": 3}, r"engine\.tensor_parallel: 3 does not divide the 4 attention heads"),
        ({"pipeline_parallel": 5}, r"engine\.pipeline_parallel: 5, but .*/a has 4 layers"),
    ],
)
def test_settings_the_model_has_no_room_for(checkpoints: SimpleNamespace, values: dict[str, int], message: str) -> None:
    check_servable(checkpoints.a, config())
    with pytest.raises(UserError, match=message):
        check_servable(checkpoints.a, config(**values))


def test_the_longest_sequence_is_what_the_config_says_but_for_stretched_ones(
    checkpoints: SimpleNamespace, tmp_path: Path
) -> None:
    assert longest_sequence({"max_position_embeddings": 2048}) == 2048
    assert longest_sequence({"n_positions": 1024}) == 1024
    assert longest_sequence({}) is None
    llama = {"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}
    assert longest_sequence(llama) == 131072  # the number there is that after stretching
    yarn = {"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert longest_sequence(yarn) is None
    folder = copied(checkpoints.a, tmp_path / "yarn", rope_parameters={"rope_type": "yarn", "factor": 4.0})
    check_servable(folder, config(max_model_len=1024))  # the engine's to judge


def test_tokenizer_or_config_of_another_model(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json says 500 tokens \(vocab_size\), the embedding has 512 rows"):
        check_servable(copied(checkpoints.a, tmp_path / "config", vocab_size=500), config())
    other = copied(checkpoints.a, tmp_path / "tokenizer")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 600, "content": "<unused>", "special": True})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    check_servable(other, config())  # a token that nothing writes does no harm
    tokenizer["model"]["vocab"]["stranger"] = 700
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"tokenizer\.json: gives token ids up to 700, the model has 512 tokens"):
        check_servable(other, config())


def test_a_weight_that_is_missing_is_not_made_up(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    folder = copied(checkpoints.a, tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a LlamaForCausalLM, model\.layers\.3\.mlp\.up_proj"):
        load_plain(folder, dtype="float32")


def test_plain_passes_see_rounded_weights_and_leave_the_stored_ones(checkpoints: SimpleNamespace) -> None:
    ids = torch.tensor([[5, 9, 100, 7]])
    for checkpoint in (checkpoints.a, checkpoints.untied):  # a tied head is rounded although its embedding is not
        rounded = load_plain(checkpoint, dtype="bfloat16").float()
        model = plain_model(checkpoint, dtype="bfloat16")
        with torch.no_grad():
            assert model(ids).logits.equal(rounded(ids).logits)
            assert model(ids).logits.equal(rounded(ids).logits)  # the stored weights came back in between
            exact = load_plain(checkpoint, dtype="float32")(ids).logits
            assert plain_model(checkpoint, dtype="float32")(ids).logits.equal(exact)
            assert not rounded(ids).logits.equal(exact)
