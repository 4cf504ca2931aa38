"""LoRA on a tiny Llama: what trains, what is saved and merged, that DPO's reference is right, and what cannot be."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from alignloop.config.recipe import Recipe
from alignloop.config.training import LoraConfig
from alignloop.errors import ModelError
from alignloop.packing.batch import collate
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import pack
from alignloop.progress import QuietProgress
from alignloop.stages.base import look_at_base
from alignloop.stages.facts import Findings
from alignloop.training.adapter_files import base_of, check_fits, is_adapter
from alignloop.training.adapters import add_adapter, merged_model, trained_in_words, trained_state
from alignloop.training.average import average_checkpoints
from alignloop.training.base_weights import check_can_quantize
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.model import TokenLogprobs, check_head, load_policy, load_reward_model, quantized
from alignloop.training.start import prepare_base

MakeGroups = Callable[..., list[PromptGroup]]
LORA = {"rank": 4, "alpha": 8.0}
TRAINED = {"learning_rate": 3e-2, "lora": LORA}
IDS = torch.arange(2, 20)[None]
CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
can_quantize = find_spec("bitsandbytes") is not None and torch.cuda.device_count() > 0


def adapted(model: Any, *, moved: bool = True, **knobs: Any) -> Any:
    """A model with an adapter; `moved`: as if training had moved it, B away from zero."""
    add_adapter(model, LoraConfig(**{**LORA, **knobs}), seed=0)
    if moved:
        generator = torch.Generator().manual_seed(1)
        for parameter in trained_state(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def output(model: Any) -> torch.Tensor:
    """Logits, or the reward."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def digests(checkpoint: Path) -> dict[str, str]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- what trains ------------------------------------------------------------------------------------------------


def test_an_adapter_changes_nothing_at_first_and_alone_trains(policy: Path) -> None:
    model = load_policy(policy)
    before = output(model)
    adapted(model, moved=False)
    assert torch.equal(output(model), before)
    # 2 layers x (4 of attention: 4 x (32 + 32); gate, up, down: 4 x (32 + 48)) = 2 x (4 x 256 + 3 x 320) = 3,968.
    total = sum(parameter.numel() for parameter in model.parameters())
    assert trained_in_words(model) == f"LoRA: 3,968 of {total:,} parameters train ({3968 / total:.2%})"
    assert all("lora_" in name for name in trained_state(model))
    # A reward model's head trains beside it.
    reward = adapted(load_reward_model(policy, seed=0))
    assert [name for name in trained_state(reward) if "lora_" not in name] == ["score.weight"]


def test_the_seed_alone_decides_what_is_drawn(policy: Path) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return trained_state(add_adapter(load_policy(policy), LoraConfig(**LORA), seed=seed))

    state = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    a_matrices = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in a_matrices)
    assert all(first[name].abs().max() <= 1 / math.sqrt(first[name].shape[1]) for name in a_matrices)


def test_named_layers_alone_get_an_adapter(policy: Path) -> None:
    model = adapted(load_policy(policy), target_modules=("q_proj", "layers.1.mlp.down_proj"))
    layers = {name.partition(".lora_")[0] for name in trained_state(model)}
    own = {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}
    assert layers == own


@pytest.mark.parametrize("name", ["c_attn", "embed_tokens", "lm_head", "self_attn"])
def test_a_name_that_matches_no_linear_layer_names_those_there_are(policy: Path, name: str) -> None:
    expected = f"no linear layer '{name}'.*down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ModelError, match=expected):
        adapted(load_policy(policy), target_modules=("q_proj", name))


def test_gradients_flow_through_checkpointed_layers(policy: Path) -> None:
    def gradients(*, checkpointing: bool) -> dict[str, torch.Tensor]:
        model = adapted(load_policy(policy))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(checkpointing=False), gradients(checkpointing=True)
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


# ---- what is saved ----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_merged_model_and_training_is_not_disturbed(policy: Path, tmp_path: Path) -> None:
    model = adapted(load_policy(policy))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_checkpoint(model, tmp_path / "out", companions=policy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == load_file(policy / "model.safetensors").keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert_same(output(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), output(model))
    base = AutoModelForCausalLM.from_pretrained(policy)
    assert (output(base) - output(model)).abs().max() > 0.01
    assert_same(output(PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")), output(model))


def test_a_reward_adapter_is_saved_with_its_head(policy: Path, tmp_path: Path) -> None:
    model = adapted(load_reward_model(policy, seed=3))
    save_checkpoint(model, tmp_path / "out", companions=policy)
    assert_same(output(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")), output(model))
    base = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    base.config.pad_token_id = 0
    assert_same(output(PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")), output(model))


def test_a_merged_weight_is_w_plus_alpha_over_rank_times_b_a(policy: Path) -> None:
    model = adapted(load_policy(policy), target_modules=("v_proj",))
    attention = model.model.layers[1].self_attn
    layer = attention.v_proj
    expected = layer.base_layer.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merged_model(model, start=policy).state_dict()
    torch.testing.assert_close(merged["model.layers.1.self_attn.v_proj.weight"], expected.detach())
    assert torch.equal(merged["model.layers.1.self_attn.q_proj.weight"], attention.q_proj.weight)


def test_weights_held_in_bfloat16_train_and_are_merged_as_float32(policy: Path, make_groups: MakeGroups) -> None:
    """As on a GPU: float32 adapters over bfloat16 weights, with and without autocast."""
    model = adapted(load_policy(policy, dtype=torch.bfloat16), moved=False)
    assert {parameter.dtype for parameter in trained_state(model).values()} == {torch.float32}
    # B is zero: nothing is added, and nothing may be rounded.
    merged, start = merged_model(model, start=policy).state_dict(), load_policy(policy).state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in merged.items())
    module = TokenLogprobs(model)
    check_head(module)
    assert choose_layout(model.base_model, longest=64, progress=QuietProgress()) == "packed"
    batch = collate(pack(make_groups(2, completions=2), row_tokens=64, mode="packed"), pad_token_id=0, mode="packed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs = module(batch)
    logprobs.sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_saved_adapter_names_its_start_without_this_machine(policy: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(policy, tmp_path / "a" / "start"))
    model = adapted(load_policy(start))
    save_checkpoint(model, tmp_path / "a" / "stage" / "step-1", companions=start)
    moved = (tmp_path / "a").rename(tmp_path / "moved") / "stage" / "step-1" / "adapter"
    config = json.loads((moved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../../start"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tmp_path) not in (moved / "adapter_config.json").read_text()
    prepared = prepare_base(str(moved), chat_template=None, out_dir=tmp_path / "base")
    assert_same(output(AutoModelForCausalLM.from_pretrained(prepared.path)), output(model))


def test_whole_tensors_given_beside_a_sharded_model_are_what_is_saved(policy: Path, tmp_path: Path) -> None:
    stale, trained = adapted(load_policy(policy), moved=False), adapted(load_policy(policy))
    save_checkpoint(trained, tmp_path / "own", companions=policy)
    given: dict[str, dict[str, torch.Tensor]] = {"all": trained.state_dict(), "trained": trained_state(trained)}
    for name, state in given.items():
        save_checkpoint(stale, tmp_path / name, companions=policy, state_dict=state)
        assert digests(tmp_path / name) == digests(tmp_path / "own")
    # Without an adapter, too.
    other = load_policy(tmp_path / "own")
    save_checkpoint(load_policy(policy), tmp_path / "plain", companions=policy, state_dict=other.state_dict())
    name = "model.safetensors"
    assert digests(tmp_path / "plain")[name] == digests(tmp_path / "own")[name]


def test_transposed_layers_are_merged_the_right_way_round(tmp_path: Path) -> None:
    """GPT-2 keeps its linear weights as [in, out]."""
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64, n_inner=48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = adapted(load_policy(tmp_path))
    assert_same(output(merged_model(model, start=tmp_path)), output(model))


# ---- whole stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "sft", "dpo"])
def test_every_objective_learns_with_an_adapter(run: Any, objective: str, tmp_path: Path) -> None:
    result = run(objective, tmp_path, epochs=6, num_checkpoints=2, **TRAINED)
    log = run.log(tmp_path)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert any("parameters train" in line for line in run.said)
    for checkpoint in result.checkpoints:
        assert (checkpoint / "adapter" / "adapter_model.safetensors").is_file()
    first, last = (load_file(path / "model.safetensors") for path in result.checkpoints)
    mean = load_file(average_checkpoints(result.checkpoints, out_dir=tmp_path / "mean") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(mean[name], (first[name] + last[name]) / 2)
    assert not torch.equal(first[name], last[name])


def test_dpo_after_an_sft_adapter_starts_at_ln_2(run: Any, policy: Path, tmp_path: Path) -> None:
    (sft,) = run("sft", tmp_path / "sft", epochs=4, **TRAINED).checkpoints
    result = run("dpo", tmp_path / "dpo", checkpoint=sft, **TRAINED)
    assert abs(result.metrics["step_0_dpo_loss"] - math.log(2)) < 1e-4
    # The trap: the base as reference (an adapter switched off) is another model, and the loss is not ln 2.
    trapped = run("dpo", tmp_path / "trap", checkpoint=sft, reference=policy, **TRAINED)
    assert abs(trapped.metrics["step_0_dpo_loss"] - math.log(2)) > 1e-2


def test_a_killed_training_ends_in_the_same_bytes(run: Any, tmp_path: Path) -> None:
    knobs = {"epochs": 2, "num_checkpoints": 3, "average_span": 0.9, "save_every_steps": 2, **TRAINED}
    whole = run("reward", tmp_path / "whole", **knobs)
    run.killed("reward", tmp_path / "broken", after=4, **knobs)
    broken = run("reward", tmp_path / "broken", **knobs)
    assert digests(whole.checkpoints[-1]) == digests(broken.checkpoints[-1])


# ---- an adapter as the base -------------------------------------------------------------------------------------


def make_adapter(path: Path, base: Path, *, named: str | None = None) -> Path:
    """As someone else's training would have left it: rank 2 on two kinds of layers, PEFT's own files."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = PeftConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    name_base(path, named or str(base))
    return path


def name_base(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def test_a_base_that_is_an_adapter_is_merged(policy: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", policy)
    expected = output(AutoPeftModelForCausalLM.from_pretrained(adapter))
    prepared = prepare_base(str(adapter), chat_template=None, out_dir=tmp_path / "out")
    assert prepared.had_template
    assert_same(output(AutoModelForCausalLM.from_pretrained(prepared.path)), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}
    assert json.loads((prepared.path / "generation_config.json").read_text())["eos_token_id"] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"adapter .*adapter does not fit its base .*: model\.layers\.1\.mlp\.down_proj\.lora_A\.weight is "
                  r"2 x 99, and the base's model\.layers\.1\.mlp\.down_proj\.weight 32 x 48"),
        ("rank", r"has rank [23], its other half [23]"),
        ("module", r"does not fit its base .*: it has model\.layers\.7\.mlp\.down_proj\.lora_A\.weight, and the"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_names_both_and_the_tensor(
    policy: Path, tmp_path: Path, change: str, message: str
) -> None:
    adapter = make_adapter(tmp_path / "adapter", policy)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    old = tensors.pop(name)
    new = {
        "shape": {name: torch.zeros(2, 99)},
        "rank": {name: torch.zeros(3, old.shape[1])},
        "module": {name.replace("layers.1", "layers.7"): old},
    }
    save_file(tensors | new[change], adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=message):
        prepare_base(str(adapter), chat_template=None, out_dir=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_an_adapter_finds_its_base_beside_itself_first(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "models" / "base")
    adapter = make_adapter(tmp_path / "models" / "adapter", policy, named="../base")
    assert is_adapter(adapter)
    assert not is_adapter(policy)
    found = base_of(adapter)
    assert isinstance(found, Path)
    assert found.samefile(tmp_path / "models" / "base")
    for named, message in (("/nowhere/base", "no folder lies there"), ("", "names no base")):
        name_base(adapter, named)
        with pytest.raises(ModelError, match=message):
            base_of(adapter)


def test_tensors_fit_under_other_outer_names(policy: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", policy)
    shapes = {name: tuple(t.shape) for name, t in load_policy(policy).state_dict().items()}
    check_fits(adapter, shapes, base="base")
    check_fits(adapter, {name.removeprefix("model."): shape for name, shape in shapes.items()}, base="base")
    check_fits(adapter, {f"language.{name}": shape for name, shape in shapes.items()}, base="base")


# ---- a tokenizer that is larger than the embedding --------------------------------------------------------------


def make_larger(policy: Path, path: Path, token: str, *, special: bool) -> Path:
    base = Path(shutil.copytree(policy, path))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.save_pretrained(base)
    return base


def test_a_token_without_a_row_is_refused_where_something_can_write_it(policy: Path, tmp_path: Path) -> None:
    base = make_larger(policy, tmp_path / "larger", "w64", special=False)
    expected = "its tokenizer has 65 tokens, its embedding only 64 rows: 'w64' has id 64 and no row"
    with pytest.raises(ModelError, match=expected):
        prepare_base(str(base), chat_template=None, out_dir=tmp_path / "out")
    image = make_larger(policy, tmp_path / "image", "<image>", special=True)
    findings = Findings()
    look_at_base(Recipe(preferences=("quickstart",), base=str(image)), findings=findings)
    assert findings.problems == []
    prepare_base(str(image), chat_template=None, out_dir=tmp_path / "out")
    template = image / "chat_template.jinja"
    template.write_text("<image>" + template.read_text())
    with pytest.raises(ModelError, match="'<image>' has id 64 and no row"):
        prepare_base(str(image), chat_template=None, out_dir=tmp_path / "out")


# ---- QLoRA ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(can_quantize, reason="this machine can do it")
def test_nf4_says_what_it_lacks(run: Any, tmp_path: Path) -> None:
    lacking = "pip install bitsandbytes" if find_spec("bitsandbytes") is None else "needs a CUDA GPU"
    with pytest.raises(ModelError, match=lacking):
        check_can_quantize("dpo.lora.quantize")
    with pytest.raises(ModelError, match=f"sft.lora.quantize: .*{lacking}"):
        run("sft", tmp_path, lora={"quantize": "nf4"})


def test_nf4_is_qloras_own_format() -> None:
    config = quantized("nf4", torch.bfloat16, None)["quantization_config"]
    assert config.quantization_method() == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


@needs_bitsandbytes
def test_a_quantized_model_trains_and_is_merged_from_what_it_became(policy: Path, tmp_path: Path) -> None:
    """bitsandbytes has 4-bit kernels for the CPU, slow but right."""
    model: Any = load_policy(policy, quantize="nf4", device=CPU)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    total = sum(parameter.numel() for parameter in load_policy(policy).parameters())
    add_adapter(model, LoraConfig(**LORA), seed=0, new_token_ids=(5,))
    assert f"of {total + 3968 + 32:,} parameters" in trained_in_words(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)

    moved = adapted(load_policy(policy, quantize="nf4", device=CPU))
    save_checkpoint(moved, tmp_path / "out", companions=policy)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(output(merged).log_softmax(-1), output(moved).log_softmax(-1), rtol=0, atol=1e-4)


@needs_bitsandbytes
def test_a_quantized_reward_model_keeps_its_head(policy: Path) -> None:
    model: Any = load_reward_model(policy, seed=3, quantize="nf4", device=CPU)
    plain: Any = load_reward_model(policy, seed=3)
    assert type(model.score) is torch.nn.Linear
    assert torch.equal(model.score.weight, plain.score.weight)
