"""Whether a base can be trained at all, from config.json, its tokenizer and its weights, before a model is loaded.

    pickled? quantised? layers of these shapes? a row for every token?  <- headers alone: plan, and the stage `base`
    every number finite?                                                <- the numbers: `base`; plan where they are few
    nothing missing, every shape as the model's?                        <- `check_complete` in `model.py`: `base`

Torch-free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.engines.checkpoint import StoredTensor
from alignloop.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


INPUT_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight$")
OUTPUT_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
"""Stored only where it is not the input embedding."""
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""bfloat16, which numpy lacks, is read as the upper half of a float32's bits."""
PICKLES = ("pytorch_model*.bin", "model*.bin")
LAYER = re.compile(r"(?P<before>(?:^|.*\.)(?:layers|h|blocks)\.)(?P<number>\d+)\.(?P<rest>.+)")
QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|absmax|SCB|weight\.quant_state\..*|\w+_blocks)$"
)
"""How GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes and MXFP4 name what they store beside or instead of a weight."""
BLOCK_NUMBERS = 2**22
"""Numbers checked together; a block of float32 takes 16 MiB."""
HEADS = ("num_attention_heads", "num_key_value_heads")
SQUARE_HEADS = ("llama", "mistral", "qwen2", "olmo", "olmo2", "granite")
"""Model types whose heads are `hidden_size / num_attention_heads` wide where config.json names no `head_dim`."""
PLAIN_LAYERS = (*SQUARE_HEADS, "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
"""Model types whose layers are the four projections of attention and the gated three of the feed-forward part."""
_WITHOUT = "or leave `quantize` out: LoRA over weights in bfloat16 takes about three times their memory"


def embedding_rows(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the input embedding; None where it cannot be told by its name."""
    rows = [shape[0] for name, shape in shapes.items() if INPUT_EMBEDDING.search(name) and len(shape) == 2]
    return rows[0] if len(rows) == 1 else None


def check_tokenizer_fits(tokenizer: Any, *, num_rows: int, where: str) -> tuple[str, ...]:
    """Refuse a tokenizer that gives ids without a row of the input embedding; the tokens without one that cannot occur.

    Special tokens that nothing can produce are accepted: text is never read as a special token here, so one that the
    chat template does not write either never reaches the model (Gemma 3's image token in its text-only models).
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= num_rows)
    for number, token in beyond:
        if not _can_occur(tokenizer, token, number):
            continue
        raise ModelError(
            f"{where}: its tokenizer has {len(vocabulary):,} tokens, its embedding only {num_rows:,} rows: {token!r} "
            f"has id {number} and no row. Tokenizer and weights are of different models (copy both from one place), "
            "or the embedding was never resized (model.resize_token_embeddings(len(tokenizer)), then save it again)"
        )
    return tuple(token for _, token in beyond)


def _can_occur(tokenizer: Any, token: str, number: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(number)
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    templates = tokenizer.chat_template or ""
    text = templates if isinstance(templates, str) else "".join(templates.values())
    return added is None or not added.special or number in named or token in text


def has_floats(tensor: StoredTensor) -> bool:
    """Whether its numbers can be read here; smaller floating-point ones come with scales of their own."""
    return tensor.dtype in _NUMPY


def read_rows(tensor: StoredTensor, rows: Sequence[int]) -> NDArray[np.float32]:
    """[len(rows), ...] rows of a stored tensor for which `has_floats` holds, in float32."""
    return _as_float32(_stored_numbers(tensor)[list(rows)])


def _stored_numbers(tensor: StoredTensor) -> NDArray[Any]:
    """Mapped into memory from the file."""
    import numpy as np

    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype=_NUMPY[tensor.dtype])
    return np.memmap(tensor.file, dtype=_NUMPY[tensor.dtype], mode="r", offset=tensor.start, shape=tensor.shape)


def _as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    import numpy as np

    if numbers.dtype != np.uint16:
        return numbers.astype(np.float32)
    widened: NDArray[np.float32] = (numbers.astype(np.uint32) << 16).view(np.float32)
    return widened


def check_is_safetensors(folder: Path) -> None:
    """Refuse a folder whose weights are pickles alone, and say how to convert them."""
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
    """Refuse weights in fewer bits than can be trained; `config` is the model's `text_config`."""
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
    """Compare the shapes of the layers with each other, and with config.json where its architecture is plain.

    A layer that has some of what others have and nothing else, and is alone in that, lacks the rest; but not the first
    one: of some architectures it is another than the rest.

    Raises:
        ModelError: a tensor is missing in one layer, or has another shape than it must.
    """
    layers: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if found := LAYER.fullmatch(name):
            layers.setdefault((found["before"], int(found["number"])), {})[found["rest"]] = tensor.shape
    first = min((number for _, number in layers), default=0)
    kinds = Counter((before, frozenset(parts)) for (before, _), parts in layers.items())
    plain = _plain_shapes(config)
    for (before, number), parts in layers.items():
        own, lost = frozenset(parts), plain.keys() - parts
        if kinds[before, own] == 1 and number > first:
            fuller = (kind for (other, kind), count in kinds.items() if other == before and own < kind and count > 1)
            lost |= next(fuller, own) - own
        if lost:
            raise ModelError(
                f"{folder}: {before}{number}.{min(lost)} is missing from the weights: they are incomplete; copy them "
                "again, or save the model again with save_pretrained"
            )
    for (before, number), parts in layers.items():
        for rest, shape in parts.items():
            if (expected := plain.get(rest, shape)) != shape:
                raise ModelError(
                    f"{folder}: {before}{number}.{rest} is {by(shape)}, and by config.json {by(expected)}: they "
                    "are of different models, or damaged; copy both from one place"
                )


def check_finite(tensors: Mapping[str, StoredTensor]) -> None:
    """Read all weights once, a block at a time; a ModelError names file and tensor of a number that is not finite."""
    import numpy as np

    for name, tensor in tensors.items():
        if not has_floats(tensor):
            continue
        numbers = _stored_numbers(tensor).reshape(-1)
        for start in range(0, len(numbers), BLOCK_NUMBERS):
            block = _as_float32(numbers[start : start + BLOCK_NUMBERS])
            bad = np.flatnonzero(~np.isfinite(block))
            if len(bad):
                where = f"number {start + int(bad[0]) + 1:,} of {len(numbers):,}"
                raise ModelError(
                    f"{tensor.file}: {name} holds {block[bad[0]]} ({where}): the weights are damaged, or from a "
                    "training that diverged; copy them again, or take another checkpoint"
                )


def _plain_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Part of a layer -> [out, in] of its weight, as far as config.json says it; empty for other architectures."""
    kind, names = config.get("model_type"), ("hidden_size", "intermediate_size", "head_dim", *HEADS)
    hidden, inner, width, heads, key_heads = (
        value if isinstance(value := config.get(name), int) else None for name in names
    )
    if kind not in PLAIN_LAYERS or hidden is None:
        return {}
    if heads is not None and width is None and kind in SQUARE_HEADS:
        width = hidden // heads
    queries = None if heads is None or width is None else heads * width
    keys = None if key_heads is None or width is None else key_heads * width
    shapes = {
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
    }
    return {name: (rows, columns) for name, (rows, columns) in shapes.items() if rows and columns}


def num_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Of the tensors that `check_finite` reads."""
    sizes = {"F64": 8, "F32": 4}
    return sum(prod(tensor.shape) * sizes.get(tensor.dtype, 2) for tensor in tensors.values() if has_floats(tensor))


def by(shape: tuple[int, ...]) -> str:
    """`32 x 64`."""
    return " x ".join(map(str, shape))


def check_can_quantize(where: str) -> None:
    """Refuse `quantize: nf4` in the recipe's field `where` if it cannot run, before anything heavy is loaded."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{where}: nf4 needs bitsandbytes, which is not installed: `pip install bitsandbytes`, {_WITHOUT}"
        )
    import torch

    # device_count asks the driver without starting CUDA in this process, which later forks.
    if torch.cuda.device_count() == 0:
        raise ModelError(f"{where}: nf4 needs a CUDA GPU, and torch sees none here: run it where one is, {_WITHOUT}")
