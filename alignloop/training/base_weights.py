"""Whether a base's weights can be trained at all: seen from config.json and the headers of their files, or read once.

    pickled? quantised? in all layers of these shapes?  <- headers alone: plan, and the stage `base`
    every number finite?                                <- the numbers: the stage `base`; plan where they are few
    nothing missing, every shape as the model's?        <- the model made without memory: the stage `base`

Torch-free, but for the last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from alignloop.engines.checkpoint import StoredTensor
from alignloop.errors import ModelError
from alignloop.training.stored_rows import as_float32, has_floats, stored_numbers

PICKLES = ("pytorch_model*.bin", "model*.bin")
LAYER = re.compile(r"(?P<before>(?:^|.*\.)(?:layers|h|blocks)\.)(?P<number>\d+)\.(?P<rest>.+)")
QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|absmax|SCB|weight\.quant_state\..*|\w+_blocks)$"
)
"""How GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes and MXFP4 name what they store beside or instead of a weight."""
BLOCK_NUMBERS = 2**22
"""Numbers looked at together; a block of float32 takes 16 MiB."""
SQUARE_HEADS = ("llama", "mistral", "qwen2", "olmo", "olmo2", "granite")
"""Model types whose heads are `hidden_size / num_attention_heads` wide where config.json names no `head_dim`."""
_REMEDY = "copy config.json and weights from one place"
PLAIN_LAYERS = (*SQUARE_HEADS, "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
"""Model types whose layers are the four projections of attention and the gated three of the feed-forward part."""


def check_is_safetensors(folder: Path) -> None:
    """Refuse a folder whose weights are pickles alone.

    Raises:
        ModelError: it says how to convert them.
    """
    found = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not found or any(folder.glob("*.safetensors")):
        return
    new = f"{folder}-safetensors"
    command = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"[kind.from_pretrained('{folder}').save_pretrained('{new}') for kind in (M, T)]"
    )
    raise ModelError(
        f"{folder}: its weights are pickles ({', '.join(found[:2])}{', ...' if len(found) > 2 else ''}): reading them "
        "can run code, and what is in them cannot be seen beforehand. Save them as safetensors and give that folder: "
        f'python -c "{command}"'
    )


def check_not_quantized(folder: Path, tensors: Mapping[str, StoredTensor], *, config: Mapping[str, Any]) -> None:
    """Refuse weights in fewer bits than can be trained.

    Args:
        config: the model's `text_config`.

    Raises:
        ModelError: it names the method, and a tensor where config.json names none.
    """
    named = config.get("quantization_config") or config.get("compression_config")
    sign = next((name for name in tensors if QUANTIZED.search(name)), None)
    small = next((name for name, tensor in tensors.items() if tensor.dtype.startswith("F8")), None)
    if not named and sign is None and small is None:
        return
    if isinstance(named, Mapping):
        method = str(named.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in named else "its own method"))
        what = f"quantised ({method}, by the quantization_config of its config.json)"
    else:
        what = f"quantised: it holds {sign or small}"
    raise ModelError(
        f"{folder} is {what}: such weights are neither trained nor merged here - give the base it was made from, in "
        "bfloat16 or float32 (to train over 4 bits set lora: {quantize: nf4} in the recipe: they are quantised then)"
    )


def check_layers(folder: Path, tensors: Mapping[str, StoredTensor], *, config: Mapping[str, Any]) -> None:
    """Hold the shapes of the layers against each other, and against config.json where its architecture is plain.

    Args:
        config: the model's `text_config`.

    Raises:
        ModelError: a tensor is missing in one layer, or has another shape than it must.
    """
    layers: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if found := LAYER.fullmatch(name):
            layers.setdefault((found["before"], int(found["number"])), {})[found["rest"]] = tensor.shape
    _check_missing(folder, layers, config=config)
    wanted = _plain_shapes(config)
    for (before, number), parts in layers.items():
        for rest, shape in parts.items():
            if (expected := wanted.get(rest, shape)) != shape:
                raise ModelError(
                    f"{folder}: {before}{number}.{rest} is {_by(shape)}, and by config.json {_by(expected)}: they "
                    "are of different models, or damaged; copy both from one place"
                )


def check_finite(tensors: Mapping[str, StoredTensor]) -> None:
    """Read all weights once, a block at a time.

    Raises:
        ModelError: a number is NaN or infinite; it names file and tensor.
    """
    import numpy as np

    for name, tensor in tensors.items():
        if not has_floats(tensor):
            continue
        numbers = stored_numbers(tensor).reshape(-1)
        for start in range(0, len(numbers), BLOCK_NUMBERS):
            block = as_float32(numbers[start : start + BLOCK_NUMBERS], tensor)
            bad = np.flatnonzero(~np.isfinite(block))
            if len(bad):
                where = f"number {start + int(bad[0]) + 1:,} of {len(numbers):,}"
                raise ModelError(
                    f"{tensor.file}: {name} holds {block[bad[0]]} ({where}): the weights are damaged, or from a "
                    "training that diverged; copy them again, or take another checkpoint"
                )


def check_complete(folder: Path) -> None:
    """Make the model without memory for its numbers, and hold every tensor against it, as loading will.

    Raises:
        ModelError: a tensor is missing or of another shape, or there is no such model.
    """
    from transformers import AutoModelForCausalLM

    from alignloop.training.models import quiet_transformers

    try:
        with quiet_transformers():
            _, info = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: no causal language model could be made of its config: {error}") from error
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{folder}: its weights lack {missing[0]}{more}, which its config.json asks for; {_REMEDY}")
    check_loaded_shapes(folder, info)


def check_loaded_shapes(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights were not taken over for their shape.

    Args:
        info: what from_pretrained tells with `output_loading_info`.

    Raises:
        ModelError: it names the first of them.
    """
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(f"{folder}: {name} is {_by(stored)}, and by config.json {_by(wanted)}; {_REMEDY}")


def _check_missing(
    folder: Path, layers: Mapping[tuple[str, int], Mapping[str, Any]], *, config: Mapping[str, Any]
) -> None:
    """A layer that has some of what others have and nothing else, and is alone in that, lacks the rest.

    Not the first one: of some architectures it is another than the rest.
    """
    first = min((number for _, number in layers), default=0)
    kinds = Counter((before, frozenset(parts)) for (before, _), parts in layers.items())
    for (before, number), parts in layers.items():
        own = frozenset(parts)
        whole = next(
            (kind for (where, kind), count in kinds.items() if where == before and own < kind and count > 1), own
        )
        required = set(_plain_shapes(config)) if config.get("model_type") in PLAIN_LAYERS else set()
        alone = kinds[before, own] == 1 and number > first
        if lost := sorted((whole - own if alone else set()) | (required - own)):
            raise ModelError(
                f"{folder}: {before}{number}.{lost[0]} is missing from the weights: they are incomplete; copy them "
                "again, or save the model again with save_pretrained"
            )


def _plain_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Part of a layer -> [out, in] of its weight, where config.json says it all; empty for other architectures."""
    if config.get("model_type") not in PLAIN_LAYERS:
        return {}
    numbers = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, inner, heads = (numbers.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    width, key_heads = numbers.get("head_dim"), numbers.get("num_key_value_heads")
    shapes: dict[str, tuple[int, ...]] = {}
    if hidden is None:
        return shapes
    if inner is not None:
        shapes |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes["mlp.down_proj.weight"] = (hidden, inner)
    if heads is not None and width is None and config["model_type"] in SQUARE_HEADS:
        width = hidden // heads
    if heads is not None and width is not None:
        shapes["self_attn.q_proj.weight"] = (heads * width, hidden)
        shapes["self_attn.o_proj.weight"] = (hidden, heads * width)
    if key_heads is not None and width is not None:
        shapes |= {f"self_attn.{name}_proj.weight": (key_heads * width, hidden) for name in ("k", "v")}
    return shapes


def num_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Of the tensors that `check_finite` reads."""
    sizes = {"F64": 8, "F32": 4}
    return sum(prod(tensor.shape) * sizes.get(tensor.dtype, 2) for tensor in tensors.values() if has_floats(tensor))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
