"""Whether config.json is of a model that writes text, and whether the weights beside it are its own."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignloop.engines.checkpoint import StoredTensor
from alignloop.errors import ModelError
from alignloop.training.base_weights import INPUT_EMBEDDING, check_finite, check_layers, check_not_quantized, num_bytes

NO_TEXT = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
READ_AT_ONCE = 2**28
"""Bytes of weights that are read before the plan is printed: a blink of them."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_causal(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no causal language model that transformers knows.

    Raises:
        ModelError: another kind of model, or a `model_type` without a causal language model.
    """
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
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"{folder}/config.json: model_type {kind!r} is no causal language model of the installed transformers{hint}"
        )


def check_stored(folder: Path, tensors: Mapping[str, StoredTensor], *, config: Mapping[str, Any]) -> None:
    """Refuse weights that cannot be trained, or are not those of config.json; a small model's numbers are read, too.

    What the numbers of a larger one are, the stage `base` reads, before anything is trained.

    Raises:
        ModelError: see `base_weights`.
    """
    check_not_quantized(folder, tensors, config=config)
    _check_shapes(folder, {name: tensor.shape for name, tensor in tensors.items()}, config=config)
    check_layers(folder, tensors, config=config)
    if num_bytes(tensors) <= READ_AT_ONCE:
        check_finite(tensors)


def _check_shapes(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, config: Mapping[str, Any]) -> None:
    """Compare what the weights' headers tell with config.json: embedding, width, number of layers.

    Raises:
        ModelError: they are of two different models; loading would fail, or draw what is missing at random.
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
