"""Adapter directories (PEFT) on disk: their base, and whether they fit it. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignloop.engines.checkpoint import tensor_shapes
from alignloop.errors import ModelError
from alignloop.training.base_weights import INPUT_EMBEDDING, by

ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""Of every tensor in PEFT's files."""

TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
"""PEFT's name for rows of single tokens: they replace those of the base, whatever they are called."""

Shapes = Mapping[str, tuple[int, ...]]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    own = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return (folder / ADAPTER_CONFIG).is_file() and not own


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Its JSON object; a ModelError where it is none, or not of a LoRA adapter of a causal language model."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not valid JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ModelError(f"{path}: peft_type is {kind!r}: only LoRA adapters can be merged into a base")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{path}: task_type is {config['task_type']}, which writes no text: give the adapter of a causal language "
            "model"
        )
    return config


def base_of(folder: Path) -> Path | str:
    """What the adapter was trained on: a folder, or a hub id.

    A relative path is searched beside the adapter first, then in the working directory.

    Raises:
        ModelError: the adapter names no base, or a path that does not exist.
    """
    name = read_adapter_config(folder).get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: names no base: set base_model_name_or_path to its folder or hub id"
        )
    path = Path(name).expanduser()
    found = next((each for each in (folder / path, path) if each.is_dir()), None)
    if found is not None:
        if is_adapter(found):
            raise ModelError(f"{folder}: its base {found} is an adapter itself: merge that one first")
        return found
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{folder}: is an adapter of {name}, and no folder lies there: set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to where the base is now"
        )
    return str(name)


def has_tokenizer(folder: Path) -> bool:
    """Whether the adapter has a tokenizer of its own: training may have added tokens or a chat template."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def check_fits(folder: Path, base_shapes: Shapes, *, base: str) -> None:
    """Check every tensor of the adapter in `folder` against those of its base.

    Raises:
        ModelError: it names adapter, base and the first tensor that does not fit.
    """
    config = read_adapter_config(folder)
    if config.get("target_parameters"):
        return  # adapters of fused expert weights follow no rule of names: PEFT tells when it loads them
    does_not_fit = f"the adapter {folder} does not fit its base {base}"
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: holds no adapter_model.safetensors; save the adapter again as safetensors")
    ranks: dict[str, int] = {}
    for stored, shape in tensor_shapes(folder).items():
        name = stored.removeprefix(PREFIX)
        module, part = _target_of(name)
        target = _find(base_shapes, module)
        if target is None:
            raise ModelError(
                f"{does_not_fit}: it has {name}, and the base no {module}; give the base it was trained on"
            )
        turned = part != "full" and config.get("fan_in_fan_out")
        weight = tuple(reversed(target)) if turned else target
        if not _agrees(part, shape, weight):
            raise ModelError(
                f"{does_not_fit}: {name} is {by(shape)}, and the base's {module} {by(target)}; give the base it was "
                "trained on"
            )
        if part == TOKEN_ROWS and (beyond := _token_beyond(config, rows=target[0])) is not None:
            raise ModelError(
                f"{does_not_fit}: it trained token {beyond}, and the base's {module} has {target[0]} rows: give the "
                "base with the tokens added that it was trained on"
            )
        if part in ("lora_A", "lora_B"):
            rank = shape[0] if part == "lora_A" else shape[1]
            if ranks.setdefault(module, rank) != rank:
                raise ModelError(f"{folder}: {name} has rank {rank}, its other half {ranks[module]}; save it again")


def _target_of(name: str) -> tuple[str, str]:
    """Name of an adapter's tensor -> (the base's weight it belongs to, which part of an adapter it is, or `full`)."""
    plain = name.replace(".base_layer", "").replace(".modules_to_save.default", "").replace(".modules_to_save", "")
    for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", TOKEN_ROWS):
        module, found, rest = plain.partition(f".{part}")
        if found:
            return (f"{module}.bias", "full") if rest.endswith("bias") else (f"{module}.weight", part)
    return plain, "full"


def _find(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    """By name; some bases are saved without the outermost part of their names, some adapters with one more."""
    if name in shapes:
        return shapes[name]
    for other, shape in shapes.items():
        if other.endswith(f".{name}") or name.endswith(f".{other}"):
            return shape
    # A tied output head is not stored: it is the input embedding.
    embeddings = [shape for other, shape in shapes.items() if INPUT_EMBEDDING.search(other)]
    return embeddings[0] if embeddings and name.endswith(("lm_head.weight", "embed_out.weight")) else None


def _agrees(part: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """`weight` is [out, in]."""
    if part == "full":
        return shape == weight
    if part in ("lora_A", TOKEN_ROWS):
        return len(shape) == 2 and shape[1] == weight[-1]
    return part != "lora_B" or (len(shape) == 2 and shape[0] == weight[0])


def _token_beyond(config: Mapping[str, Any], *, rows: int) -> int | None:
    """A token that `trainable_token_indices` names and a matrix of `rows` rows lacks."""
    named = config.get("trainable_token_indices") or []
    lists = named.values() if isinstance(named, dict) else [named]
    return next((index for indices in lists for index in indices if index >= rows), None)
