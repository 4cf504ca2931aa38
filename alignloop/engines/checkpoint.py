"""What an engine must know of a checkpoint before it loads one: torch-free reads of its JSON files and headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from alignloop.config.engine import EngineConfig
from alignloop.errors import ModelError, UserError

EMBEDDING_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""How the names of input embeddings end."""
INDEX = "model.safetensors.index.json"
_NOT_ARCHITECTURE = frozenset(
    "_name_or_path transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id id2label "
    "label2id problem_type initializer_range attention_dropout hidden_dropout output_attentions output_hidden_states "
    "return_dict".split()
)
"""Keys of config.json that do not change which weights fit into a running engine. An unknown key counts."""


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config.json; ModelError where there is none or it is not a JSON object."""
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{checkpoint}: holds no config.json, so it is no Hugging Face model directory; give the directory that "
            "save_pretrained wrote"
        )
    return _read_object(path)


def architecture(checkpoint: Path) -> dict[str, Any]:
    """What must be equal for two checkpoints to be swapped in place."""
    config = read_config(checkpoint)
    return {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE and value is not None}


def eos_token_ids(checkpoint: Path) -> tuple[int, ...]:
    """Tokens that end a completion: of generation_config.json, else of config.json; sorted, may be empty."""
    path = checkpoint / "generation_config.json"
    found = _read_object(path).get("eos_token_id") if path.is_file() else None
    if found is None:
        found = text_config(checkpoint).get("eos_token_id")
    if found is None:
        return ()
    return tuple(sorted({found} if isinstance(found, int) else set(found)))


def text_config(checkpoint: Path) -> dict[str, Any]:
    """config.json, or the part of it that describes the language model where it is nested."""
    config = read_config(checkpoint)
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def weight_files(checkpoint: Path) -> list[Path]:
    """The checkpoint's safetensors files, in order; ModelError where there are none or the index names a missing
    one."""
    index = checkpoint / INDEX
    if index.is_file():
        names = _read_object(index).get("weight_map")
        if not isinstance(names, dict):
            raise ModelError(f"{index}: holds no weight_map; save the model again")
        files = [checkpoint / name for name in sorted(set(map(str, names.values())))]
    else:
        # Some publish the same weights a second time in their own layout beside it.
        single = checkpoint / "model.safetensors"
        files = [single] if single.is_file() else sorted(checkpoint.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing)}" if missing else "holds no .safetensors file"
        raise ModelError(f"{checkpoint}: {what}; save the model with save_pretrained (safe_serialization, its default)")
    return files


def check_servable(checkpoint: Path, config: EngineConfig) -> None:
    """Everything about serving `checkpoint` that its JSON files and its weights' headers tell, before a start.

    Raises:
        ModelError: it is incomplete, or its tokenizer is not that of its weights.
        UserError: a field of the recipe's engine section does not fit the model.
    """
    model = text_config(checkpoint)
    shapes = tensor_shapes(checkpoint)
    positions = longest_sequence(model)
    if positions is not None and config.max_model_len > positions:
        raise UserError(
            f"engine.max_model_len: {config.max_model_len} tokens, but {checkpoint} has {positions} positions: set it "
            f"to at most {positions}"
        )
    heads, layers = model.get("num_attention_heads"), model.get("num_hidden_layers")
    if isinstance(heads, int) and heads % config.tensor_parallel:
        raise UserError(
            f"engine.tensor_parallel: {config.tensor_parallel} does not divide the {heads} attention heads of "
            f"{checkpoint}: set it to a number that does"
        )
    if isinstance(layers, int) and layers < config.pipeline_parallel:
        raise UserError(
            f"engine.pipeline_parallel: {config.pipeline_parallel}, but {checkpoint} has {layers} layers: set it to at "
            f"most {layers}"
        )
    _check_vocabulary(checkpoint, model, shapes)


def longest_sequence(model: Mapping[str, Any]) -> int | None:
    """Longest sequence of a model by its `text_config`, in tokens; None where that does not say, as where positions are
    stretched (yarn, linear, ...): the number may be that before stretching."""
    rope = model.get("rope_parameters") or model.get("rope_scaling") or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3"):
        return None  # the factor counts from one number or another by type: the engine knows
    found = next((model[key] for key in ("max_position_embeddings", "n_positions") if model.get(key)), None)
    return found if isinstance(found, int) else None


def _check_vocabulary(checkpoint: Path, model: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """The embedding has config.json's rows, and the tokenizer's plain tokens have ids below them.

    Added tokens beyond the embedding are common and harmless where nothing writes them.
    """
    vocab_size = model.get("vocab_size")
    if not isinstance(vocab_size, int):
        return
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDING_NAMES) and len(shape) == 2]
    if len(rows) == 1 and rows[0] != vocab_size:
        raise ModelError(
            f"{checkpoint}: config.json says {vocab_size} tokens (vocab_size), the embedding has {rows[0]} rows: "
            "config and weights are of different models; copy both from one place"
        )
    path = checkpoint / "tokenizer.json"
    vocabulary = _read_object(path).get("model", {}).get("vocab") if path.is_file() else None
    highest = max(vocabulary.values(), default=0) if isinstance(vocabulary, dict) else 0
    if highest >= vocab_size:
        raise ModelError(
            f"{path}: gives token ids up to {highest}, the model has {vocab_size} tokens: tokenizer and weights are of "
            "different models; copy both from one place"
        )


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    dtype: str
    """In safetensors' words: `F32`, `BF16`, `I32`, ..."""
    shape: tuple[int, ...]
    start: int
    """In bytes from the start of the file."""


def num_parameters(checkpoint: Path) -> int:
    return sum(prod(shape) for shape in tensor_shapes(checkpoint).values())


def tensor_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every stored tensor; raises as `stored_tensors`."""
    return {name: tensor.shape for name, tensor in stored_tensors(checkpoint).items()}


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from the headers of the safetensors files alone.

    Raises:
        ModelError: no weights, a file that is not safetensors or is cut short, or an index that names a missing tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(checkpoint):
        tensors |= _described(file)
    index = checkpoint / INDEX
    indexed = _read_object(index)["weight_map"] if index.is_file() else {}
    lost = sorted(name for name in indexed if name not in tensors)
    if lost:
        raise ModelError(f"{index}: names {lost[0]}, which its file lacks; copy the weights again")
    return tensors


def _described(file: Path) -> dict[str, StoredTensor]:
    """A safetensors file is 8 bytes of little-endian header length, a JSON header, then the numbers."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            hint = ": it is a Git LFS pointer, fetch it with `git lfs pull`" if start == b"version " else ""
            raise ModelError(f"{file}: is no whole safetensors file ({size:,} bytes){hint or '; copy it again'}")
        text = stream.read(length)
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        tensors = {
            name: StoredTensor(
                file, str(entry["dtype"]), tuple(map(int, entry["shape"])), 8 + length + int(entry["data_offsets"][0])
            )
            for name, entry in header.items()
        }
        wanted = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{file}: its safetensors header cannot be read ({error}); copy it again") from error
    if size < wanted:
        raise ModelError(f"{file}: is cut short: {size:,} of {wanted:,} bytes; copy it again")
    return tensors


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not valid JSON ({error}); save the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a {type(value).__name__} where a JSON object is wanted; save the model again")
    return value
