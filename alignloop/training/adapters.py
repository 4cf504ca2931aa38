"""LoRA adapters: put into a model before it trains, saved beside its checkpoints and merged into them.

    start checkpoint --> model, its own weights frozen --> + A, B per linear layer --> training
          |                                                     |
          +----> a second, plain copy  + scaling * B A <--------+--> adapter/ (PEFT's files)
                          |
                  ordinary checkpoint

Merging never touches the model in training. The plain copy is read from the start checkpoint in float32, so that
what the frozen weights lose where they are held in bfloat16 is not lost in the checkpoint. Only 4-bit weights are
taken from memory: the adapter has been trained on what they became.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignloop.config.training import LoraConfig
from alignloop.errors import ModelError
from alignloop.training.adapter_files import ADAPTER_CONFIG, PREFIX, TOKEN_ROWS, check_fits
from alignloop.training.model import ROWS, load_policy, load_reward_model, quiet_transformers

ADAPTER = "default"
ADAPTER_FOLDER = "adapter"
SCORE = "score"
ROW_IDS = "new_row_ids"
START = "new_rows_start"


def add_adapter(model: Any, config: LoraConfig, *, seed: int, new_token_ids: Sequence[int] = ()) -> Any:
    """Freeze a model and add trainable low-rank adapters to its linear layers, in place.

    B is zero, so the model computes what it did before. A reward model's score head and the rows of new tokens (in
    embedding and output head) train fully beside the adapter. What trains is float32, whatever the dtype of the frozen
    weights. `seed` is of the A matrices; torch's global generator is left as it was.

    Raises:
        ModelError: a name in `target_modules` is that of no linear layer.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    layers = _linear_layers(model)
    transposed = any(type(module).__name__ == "Conv1D" for module in layers.values())
    peft_config = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=sorted(_targets(layers, config, model=model)),
        lora_dropout=0.0,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM" if model.can_generate() else "SEQ_CLS",
    )
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} takes no LoRA adapter: {error}") from error
    head = getattr(model, SCORE, None)
    if head is not None:
        head.weight.requires_grad_(True)
    if new_token_ids:
        _add_token_rows(model, new_token_ids)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # A as PEFT draws it (uniform, Kaiming with a = sqrt 5), but from a generator of its own, layer after layer.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in _adapted_layers(model).values():
            weight = layer.lora_A[ADAPTER].weight
            bound = 1 / math.sqrt(weight.shape[1])
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    return model


def has_adapter(model: nn.Module) -> bool:
    return bool(_adapted_layers(model))


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer with an adapter, by its name before the adapter was added."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _linear_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer by name, but the output head and the score head."""
    from transformers.pytorch_utils import Conv1D

    heads = (model.get_output_embeddings(), getattr(model, SCORE, None))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(module is head for head in heads)
    }


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name: of an adapted model all that a resume point needs."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_in_words(model: nn.Module) -> str:
    """`LoRA: 1,234 of 56,789 parameters train (2.17 %), among them the rows of 3 new tokens`."""
    trained = sum(parameter.numel() for parameter in trained_state(model).values())
    total = sum(_num_numbers(parameter) for parameter in model.parameters())
    count = max((len(module.new_token_ids) for module in _matrices(model).values()), default=0)
    rows = f", among them the rows of {count} new token{'s' if count > 1 else ''}" if count else ""
    return f"LoRA: {trained:,} of {total:,} parameters train ({trained / total:.2%}){rows}"


def merged_model(model: Any, *, start: Path, state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A plain copy of an adapted model with its adapter and its trained rows in the weights, in float32 on the CPU.

    Args:
        start: the checkpoint that training started from.
        state_dict: whole tensors of what trains, where those of `model` are sharded.
    """
    trained = trained_state(model) if state_dict is None else state_dict
    plain = load_policy(start) if model.can_generate() else load_reward_model(start, seed=0)
    with torch.no_grad():
        for name, layer in _adapted_layers(model).items():
            weight = plain.get_parameter(f"{name}.weight")
            held = layer.get_base_layer().weight
            if type(held).__name__ == "Params4bit":
                from peft.utils.integrations import dequantize_bnb_weight

                weight.copy_(dequantize_bnb_weight(held, state=held.quant_state).float().cpu())
            delta = layer.scaling[ADAPTER] * (_whole(trained, name, "lora_B") @ _whole(trained, name, "lora_A"))
            weight.add_(delta.T if layer.fan_in_fan_out else delta)
        if (head := trained.get(f"{SCORE}.weight")) is not None:
            plain.get_parameter(f"{SCORE}.weight").copy_(head.float().cpu())
        for name, module in _matrices(model).items():
            # As far as training has moved them: what a matrix lost where it is held in bfloat16 stays in.
            moved = trained[f"{name}.{ROWS}"].float().cpu() - module.get_buffer(START).cpu()
            plain.get_parameter(f"{name}.weight")[list(module.new_token_ids)] += moved
    return plain


def save_adapter(
    model: Any, directory: Path, *, start: Path, merged: nn.Module, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write PEFT's own files, for PeftModel.from_pretrained on `start`, the checkpoint that training started from.

    Its config names that checkpoint relative to `directory`, so that a run can be moved as a whole. `merged` is the
    model's `merged_model`; `state_dict` is as there.
    """
    from safetensors.torch import save_file

    trained = trained_state(model) if state_dict is None else state_dict
    tensors = {
        f"{PREFIX}{name}.{part}.weight": _whole(trained, name, part)
        for name in _adapted_layers(model)
        for part in ("lora_A", "lora_B")
    }
    config = model.peft_config[ADAPTER].to_dict()
    if not model.can_generate():
        tensors[f"{PREFIX}{SCORE}.weight"] = trained[f"{SCORE}.weight"].float().cpu().contiguous()
        config["modules_to_save"] = [SCORE]
    indices = {name: list(module.new_token_ids) for name, module in _matrices(model).items()}
    for name, ids in indices.items():
        rows = merged.get_parameter(f"{name}.weight").detach()[ids]
        tensors[f"{PREFIX}{name}.{TOKEN_ROWS}"] = rows.contiguous()
    config["trainable_token_indices"] = {name.rpartition(".")[2]: ids for name, ids in indices.items()} or None
    config["inference_mode"] = True
    config["base_model_name_or_path"] = os.path.relpath(start.resolve(), directory.resolve())
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    # Sets have no order: sorted, the same training writes the same bytes.
    text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))
    (directory / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def merge_into_base(adapter: Path, base: Path) -> nn.Module:
    """Merge an adapter from elsewhere into its base, in float32; a ModelError where it does not fit."""
    from peft import PeftModel

    model = load_policy(base)
    check_fits(adapter, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, base=str(base))
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            merged: nn.Module = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the adapter {adapter} does not fit its base {base}: {reason}") from error
    return merged


def _targets(layers: Mapping[str, nn.Module], config: LoraConfig, *, model: Any) -> set[str]:
    """PEFT's `target_modules`: the last part of the layers' names, as people write them."""
    last = {name: name.rpartition(".")[2] for name in layers}
    if config.target_modules == "all-linear":
        # A layer called by a number alone (in a Sequential) is named whole: others may have that number, too.
        return {name if short.isdigit() else short for name, short in last.items()}
    for target in config.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ModelError(
                f"lora.target_modules: {type(model).__name__} has no linear layer {target!r} that could get an "
                f"adapter; it has {', '.join(sorted(set(last.values())))} (all-linear: every one of them)"
            )
    return set(config.target_modules)


def _whole(trained: Mapping[str, Tensor], name: str, part: str) -> Tensor:
    return trained[f"{name}.{part}.{ADAPTER}.weight"].float().cpu().contiguous()


def _num_numbers(parameter: Any) -> int:
    """Of a 4-bit weight, whose bytes hold two each."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else math.prod(state.shape))


# ---- rows of new tokens, which train while the rest of embedding and output head stays frozen -----------------------
#
#     ids --embedding, frozen--> vectors, those of new tokens replaced by trainable rows --> layers --> hidden states
#     hidden states --output head, its rows of new tokens replaced--> logprobs (`objectives/output_head.py`)
#
# The matrices stay as they are: a copy with the rows in it, as PEFT's `trainable_token_indices` makes one each time,
# and its gradient would each take what the whole embedding takes. What is saved is in PEFT's form.


def _add_token_rows(model: Any, token_ids: Sequence[int]) -> None:
    """Make the rows of these tokens trainable, in place, in the embedding and in the output head.

    They start as they are, in float32. Where the two are one matrix, one set of rows serves both.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings() if model.can_generate() else None
    _attach(embedding, token_ids)
    embedding.register_forward_hook(_embed_rows)
    if head is None:
        return
    if head.weight is embedding.weight:
        _register(head, embedding.get_parameter(ROWS), token_ids)
    else:
        _attach(head, token_ids)
    head.register_forward_hook(_replace_logits)


def _matrices(model: nn.Module) -> dict[str, Any]:
    """Each matrix with trainable rows, by name; one that is the embedding itself is not named again."""
    return {name: module for name, module in model.named_modules() if hasattr(module, START)}


def _attach(module: Any, token_ids: Sequence[int]) -> None:
    start = module.weight.detach()[sorted(token_ids)].float()
    _register(module, nn.Parameter(start.clone()), token_ids)
    module.register_buffer(START, start, persistent=False)


def _register(module: Any, rows: nn.Parameter, token_ids: Sequence[int]) -> None:
    module.register_parameter(ROWS, rows)
    module.register_buffer(ROW_IDS, torch.tensor(sorted(token_ids), device=rows.device), persistent=False)
    # Where numbers on the CPU are wanted: asking a GPU for them would make the CPU wait for it.
    module.new_token_ids = tuple(sorted(token_ids))


def _embed_rows(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The embedding's output with its own forward over the trainable rows where a token is one of theirs.

    For that it is an embedding of these rows alone: some scale or norm what they look up.
    """
    ids, row_ids = args[0], module.get_buffer(ROW_IDS)
    numbers = torch.searchsorted(row_ids, ids).clamp_(max=len(row_ids) - 1)
    weight, padding = module._parameters["weight"], module.padding_idx
    module._parameters["weight"], module.padding_idx = module.new_rows.to(weight.dtype), None
    try:
        replaced = module.forward(numbers)
    finally:
        module._parameters["weight"], module.padding_idx = weight, padding
    return torch.where((row_ids[numbers] == ids)[..., None], replaced, output)


def _replace_logits(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """For whoever calls the head itself; training uses `rows_of`."""
    rows, ids = module.new_rows.to(args[0].dtype), module.get_buffer(ROW_IDS)
    bias = None if module.bias is None else module.bias[ids]
    logits = nn.functional.linear(args[0], rows, bias)
    return output.index_copy(-1, ids, logits.to(output.dtype))
