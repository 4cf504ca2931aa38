"""Bases that cannot be trained, or are damaged: named by plan, and by the stage `base`, before anything is trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alignloop.config.recipe import Recipe
from alignloop.engines.checkpoint import StoredTensor
from alignloop.errors import ModelError
from alignloop.stages import base_files
from alignloop.stages.base import look_at_base
from alignloop.stages.facts import Findings
from alignloop.training.base_weights import PLAIN_LAYERS, check_layers
from alignloop.training.model import load_policy
from alignloop.training.start import prepare_base

Tensors = dict[str, torch.Tensor]
LAYER_1 = "model.layers.1.mlp.up_proj.weight"


def problems(base: Path) -> list[str]:
    findings = Findings()
    look_at_base(Recipe(preferences=("quickstart",), base=str(base)), findings=findings)
    return findings.problems


def changed_base(policy: Path, path: Path, change: Callable[[Tensors], object], *, config: str = "{}") -> Path:
    """The tiny policy with other tensors, and keys added to its config.json."""
    base = Path(shutil.copytree(policy, path))
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((base / "config.json").read_text()) | json.loads(config)
    (base / "config.json").write_text(json.dumps(values))
    return base


def nan(tensors: Tensors) -> None:
    tensors[LAYER_1][3, 4] = float("nan")


def other_shape(tensors: Tensors) -> None:
    tensors[LAYER_1] = torch.zeros(40, 32)


def infinite_in_bfloat16(tensors: Tensors) -> None:
    tensors[LAYER_1] = tensors[LAYER_1].bfloat16()
    tensors[LAYER_1][0, 0] = -float("inf")


def gptq(tensors: Tensors) -> None:
    del tensors[LAYER_1]
    tensors["model.layers.1.mlp.up_proj.qweight"] = torch.zeros(4, 48, dtype=torch.int32)


BROKEN: list[tuple[Callable[[Tensors], object], str, str]] = [
    # 3 rows of 32 and 4 numbers come before it.
    (nan, "{}", r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds nan \(number 101 of 1,536\)"),
    (infinite_in_bfloat16, "{}", r"up_proj\.weight holds -inf \(number 1 of 1,536\)"),
    (lambda tensors: tensors.pop(LAYER_1), "{}", r"model\.layers\.1\.mlp\.up_proj\.weight"),
    (other_shape, "{}", r"model\.layers\.1\.mlp\.up_proj\.weight is 40 x 32, and by config\.json 48 x 32"),
    (gptq, "{}", r"is quantised: it holds model\.layers\.1\.mlp\.up_proj\.qweight: .* lora: \{quantize: nf4\}"),
    (
        lambda tensors: tensors.update({LAYER_1: tensors[LAYER_1].to(torch.float8_e4m3fn)}),
        "{}",
        r"is quantised: it holds model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    (len, '{"quantization_config": {"quant_method": "awq", "bits": 4}}', r"is quantised \(awq, by the quanti"),
    (len, '{"quantization_config": {"load_in_4bit": true}}', r"is quantised \(bitsandbytes, by the quanti"),
]


@pytest.mark.parametrize(("change", "config", "message"), BROKEN)
def test_plan_and_the_base_stage_name_what_cannot_be_trained(
    change: Callable[[Tensors], object], config: str, message: str, policy: Path, tmp_path: Path
) -> None:
    base = changed_base(policy, tmp_path / "base", change, config=config)
    (problem,) = problems(base)
    with pytest.raises(ModelError, match=message) as caught:
        prepare_base(str(base), chat_template=None, out_dir=tmp_path / "out")
    assert str(base) in str(caught.value)
    assert str(base) in problem
    assert re.search(message, problem), problem
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_shapes_is_named_where_it_is_loaded(policy: Path, tmp_path: Path) -> None:
    """As a stage alone loads it, without the stage `base`."""
    start = changed_base(policy, tmp_path / "start", other_shape)
    with pytest.raises(
        ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is 40 x 32, and by config\.json 48 x 32"
    ):
        load_policy(start)


def test_pickles_come_with_the_command_that_converts_them(policy: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(policy, tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    assert problems(base) == []  # both are there: safetensors are read
    (base / "model.safetensors").unlink()
    (problem,) = problems(base)
    assert "its weights are pickles (pytorch_model.bin)" in problem
    with pytest.raises(ModelError, match="its weights are pickles"):
        prepare_base(str(base), chat_template=None, out_dir=tmp_path / "out")
    command = problem.partition('python -c "')[2].rstrip('"')
    exec(command, {})
    converted = Path(f"{base}-safetensors")
    assert problems(converted) == []
    expected = load_file(policy / "model.safetensors")
    stored = load_file(converted / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())


def test_the_numbers_of_a_large_base_are_left_to_the_run(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed_base(policy, tmp_path / "base", nan)
    monkeypatch.setattr(base_files, "READ_AT_ONCE", 0)
    assert problems(base) == []


@pytest.mark.parametrize("kind", PLAIN_LAYERS)
def test_shapes_by_config_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        kind, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, pad_token_id=0, **({"head_dim": 16} if kind not in ("olmo", "olmo2", "granite") else {}),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = {
        name: StoredTensor(tmp_path, "F32", tuple(tensor.shape), 0) for name, tensor in model.state_dict().items()
    }
    values = json.loads((tmp_path / "config.json").read_text())
    check_layers(tmp_path, stored, config=values)
    for name in ("self_attn.k_proj.weight", "mlp.down_proj.weight"):
        whole = f"model.layers.0.{name}"
        with pytest.raises(ModelError, match=r"is missing from the weights"):
            check_layers(tmp_path, {other: stored[other] for other in stored if other != whole}, config=values)
        wrong = StoredTensor(tmp_path, "F32", (7, 7), 0)
        with pytest.raises(ModelError, match=r"is 7 x 7, and by config\.json"):
            check_layers(tmp_path, {**stored, whole: wrong}, config=values)


def test_a_layer_alone_in_lacking_something_is_incomplete_in_any_architecture(tmp_path: Path) -> None:
    def stored(*names: str) -> dict[str, StoredTensor]:
        return {name: StoredTensor(tmp_path, "F32", (2, 2), 0) for name in names}

    full = stored(*(f"transformer.h.{number}.{part}" for number in range(4) for part in ("attn.w", "mlp.w")))
    check_layers(tmp_path, full, config={"model_type": "gpt9"})
    with pytest.raises(ModelError, match=r"transformer\.h\.2\.mlp\.w is missing"):
        check_layers(
            tmp_path,
            {name: full[name] for name in full if name != "transformer.h.2.mlp.w"},
            config={"model_type": "gpt9"},
        )
    # Layers of two kinds, and a first one of its own.
    hybrid = stored("h.0.attn.w", "h.1.attn.w", "h.1.norm", "h.2.ssm.w", "h.2.norm", "h.3.attn.w", "h.3.norm")
    check_layers(tmp_path, hybrid, config={"model_type": "gpt9"})
