"""Checks of the base's config.json and its weights' headers."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from alignloop.config.recipe import Recipe
from alignloop.config.training import LoraConfig
from alignloop.engines.checkpoint import stored_tensors
from alignloop.errors import ModelError, did_you_mean
from alignloop.stages.facts import Findings
from alignloop.training.adapter_files import check_fits
from alignloop.training.base_weights import (
    INPUT_EMBEDDING,
    check_can_quantize,
    check_finite,
    check_is_safetensors,
    check_layers,
    check_not_quantized,
    embedding_rows,
    num_bytes,
)

Shapes = Mapping[str, tuple[int, ...]]
NO_TEXT = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
READ_AT_ONCE = 2**28
"""Bytes of weights that are read before the plan is printed, in a blink; the stage `base` checks a larger model's
numbers before anything is trained."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("lm_head", "embed_out")


def check_causal(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelError where this is no causal language model that transformers knows."""
    names = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith(NO_TEXT) for name in names):
        raise ModelError(
            f"{folder} is a {names[0]}, which writes no text: give a causal language model (a reward model is "
            "trained by the run itself)"
        )
    known, kind = _causal_types(), config.get("model_type")
    if not kind:
        raise ModelError(f"{folder}/config.json: names no model_type; save the model again with save_pretrained")
    if known and kind not in known:
        hint = did_you_mean(str(kind), known)
        raise ModelError(
            f"{folder}/config.json: model_type {kind!r} is no causal language model of the installed transformers"
            + (f"; {hint}" if hint else "")
        )


@cache
def _causal_types() -> frozenset[str]:
    """Model types of causal language models, read from the source of transformers: importing it takes seconds.

    Empty where the source looks different: then nothing is refused here, and loading the model tells.
    """
    spec = find_spec("transformers")
    file = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py" if spec and spec.origin else None
    if file is None or not file.is_file():
        return frozenset()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES" for target in targets):
            texts = [item for item in ast.walk(node) if isinstance(item, ast.Tuple) and len(item.elts) == 2]
            return frozenset(str(pair.elts[0].value) for pair in texts if isinstance(pair.elts[0], ast.Constant))
    return frozenset()


def look_at_weights(
    recipe: Recipe, folder: Path, config: Mapping[str, Any], *, adapter: Path | None, findings: Findings
) -> tuple[int, int | None]:
    """Numbers in the weights and rows of the embedding, read from the headers; a small model's numbers are read, too.

    Raises:
        ModelError: weights are missing, broken, not trainable or not those of config.json, or an adapter or the
            recipe's own names do not fit them.
    """
    check_is_safetensors(folder)
    tensors = stored_tensors(folder)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_not_quantized(folder, tensors, config=config)
    _check_shapes(folder, shapes, config=config)
    check_layers(folder, tensors, config=config)
    if num_bytes(tensors) <= READ_AT_ONCE:
        check_finite(tensors)
    _check_adapters(recipe, shapes, findings=findings)
    if adapter is not None:
        check_fits(adapter, shapes, base=str(folder))
    return sum(prod(shape) for shape in shapes.values()), embedding_rows(shapes)


def _check_shapes(folder: Path, shapes: Shapes, *, config: Mapping[str, Any]) -> None:
    """Compare the headers with config.json: embedding, width, number of layers.

    Raises:
        ModelError: they are of two models: loading would fail, or draw what is missing at random.
    """
    where = f"{folder}: config.json and the weights are of different models:"
    remedy = "copy both from one place"
    numbers = {value for value in config.values() if isinstance(value, int)}
    for name, shape in shapes.items():
        if not INPUT_EMBEDDING.search(name) or len(shape) != 2:
            continue
        rows = config.get("vocab_size")
        if rows is not None and shape[0] != rows:
            raise ModelError(f"{where} vocab_size is {rows}, {name} has {shape[0]} rows; {remedy}")
        if shape[1] not in numbers:
            width = config.get("hidden_size") or config.get("n_embd")
            raise ModelError(f"{where} the hidden size is {width}, {name} has width {shape[1]}; {remedy}")
    wanted = next((config[key] for key in _NUM_LAYERS if isinstance(config.get(key), int)), None)
    layers = {int(match[1]) for name in shapes if (match := _LAYER.search(name))}
    if wanted is not None and layers and max(layers) + 1 < wanted:
        raise ModelError(f"{where} the config has {wanted} layers, the weights {max(layers) + 1}; {remedy}")


def loras(recipe: Recipe) -> dict[str, LoraConfig]:
    """The adapters that the recipe trains, by the section of their stage."""
    return {name: stage.lora for name, stage in recipe.trainings.items() if stage.lora is not None}


def check_machine(recipe: Recipe, *, findings: Findings) -> None:
    """4-bit weights need bitsandbytes and a GPU, and are not sharded."""
    quantized = [stage for stage, lora in loras(recipe).items() if lora.quantize != "none"]
    if not quantized:
        return
    where = ", ".join(f"{stage}.lora.quantize" for stage in quantized)
    with findings.collecting():
        check_can_quantize(where)
    if recipe.training.num_processes > 1 and recipe.training.accelerate == "fsdp2":
        findings.problems.append(
            f"{where}: nf4 weights are not sharded over processes - set training.accelerate: ddp, or leave quantize out"
        )


def _check_adapters(recipe: Recipe, shapes: Shapes, *, findings: Findings) -> None:
    """A rank that a layer cannot have is a note; a name in `target_modules` that is no matrix in the weights is a
    ModelError."""
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.removesuffix(".weight").endswith(_HEADS) and not INPUT_EMBEDDING.search(name)
    }
    adapted = {stage: _adapted(lora, layers, stage=stage) for stage, lora in loras(recipe).items()}
    for stage, lora in loras(recipe).items():
        low = {name: shape for name, shape in adapted[stage].items() if lora.rank > min(shape)}
        if low:
            name, shape = min(low.items(), key=lambda item: min(item[1]))
            others = f" (and of {len(low) - 1} more)" if len(low) > 1 else ""
            findings.notes.append(
                f"{stage}.lora.rank is {lora.rank}, above the smaller side of {name}, {shape[0]} x {shape[1]}{others}: "
                f"what is above {min(shape)} costs memory and adds nothing there"
            )


def _adapted(lora: LoraConfig, layers: Shapes, *, stage: str) -> Shapes:
    """The layers that an adapter is on, of the matrices beside embedding and output head."""
    if lora.target_modules == "all-linear":
        return layers
    found: dict[str, tuple[int, ...]] = {}
    for target in lora.target_modules:
        of_target = {name: shape for name, shape in layers.items() if f".{name}".endswith(f".{target}")}
        if not of_target:
            short = sorted({name.rpartition(".")[2] for name in layers})
            raise ModelError(
                f"{stage}.lora.target_modules: the base has no linear layer {target!r}; it has {', '.join(short)} "
                "(all-linear: every one of them)"
            )
        found |= of_target
    return {name: shape for name, shape in layers.items() if name in found}
