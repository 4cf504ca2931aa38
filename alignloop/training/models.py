"""Loading models for training and scoring; what they need before a first step; giving their memory back."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from alignloop.errors import ModelError
from alignloop.packing.groups import PromptGroup
from alignloop.training.base_weights import check_loaded_shapes
from alignloop.training.quantization import nf4_config

Dtype = Literal["float32", "bfloat16"]
Quantize = Literal["none", "nf4"]

SCORE_HEAD_STD = 0.02
"""Spread of a new reward head: small, so that rewards start near zero and pairs near a coin toss."""

SCORE_HEAD = "score.weight"


def load_policy(
    checkpoint: Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
    device: torch.device | None = None,
) -> nn.Module:
    """A causal language model, dropout off.

    Args:
        quantize: `nf4` holds the weights of its linear layers, but the output head, in 4 bits.
        device: where 4-bit weights are made, which they are while loading; anything else is loaded on the CPU.

    Raises:
        ModelError: the path holds no such model.
    """
    from transformers import AutoModelForCausalLM

    return _ready(_load(AutoModelForCausalLM, checkpoint, dtype=dtype, **_quantized(quantize, dtype, device)))


def load_reward_model(
    checkpoint: Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    must_have_head: bool = False,
    quantize: Quantize = "none",
    device: torch.device | None = None,
) -> nn.Module:
    """A sequence classifier with one label, dropout off.

    A checkpoint without a score head (a policy or a base) gets a new one, drawn from `seed`, unless `must_have_head`.
    `quantize` and `device` are as for `load_policy`.

    Raises:
        ModelError: the path holds no model, or its architecture has no `score` head in transformers.
    """
    from transformers import AutoModelForSequenceClassification

    how = _quantized(quantize, dtype, device)
    model, missing = _load(AutoModelForSequenceClassification, checkpoint, dtype=dtype, num_labels=1, **how)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"{checkpoint}: {type(model).__name__} has no `score` head with one output: no reward model")
    if SCORE_HEAD in missing and must_have_head:
        raise ModelError(f"{checkpoint}: no `{SCORE_HEAD}` in its weights: this is not a reward model")
    if SCORE_HEAD in missing:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(head.weight.shape, generator=generator) * SCORE_HEAD_STD
            head.weight.copy_(drawn)
    model.config.problem_type = None
    model.config.get_text_config().pad_token_id = _pad_token_id(checkpoint, model.config)
    return _ready((model, missing))


def _quantized(quantize: Quantize, dtype: torch.dtype, device: torch.device | None) -> dict[str, Any]:
    """What from_pretrained is told."""
    if quantize == "none":
        return {}
    return {"quantization_config": nf4_config(dtype), "device_map": {"": device or torch.device("cpu")}}


def _load(auto_class: Any, checkpoint: Path, *, dtype: torch.dtype, **overrides: Any) -> tuple[Any, frozenset[str]]:
    """The model, and the names of weights the checkpoint did not have."""
    if not (checkpoint / "config.json").is_file():
        raise ModelError(f"{checkpoint}: no config.json: not a Hugging Face model directory")
    devices = list(range(torch.cuda.device_count()))
    try:
        # Weights that a checkpoint lacks are drawn from torch's global generator: keep it as it was.
        with quiet_transformers(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            model, info = auto_class.from_pretrained(
                checkpoint,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **overrides,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint}: no model could be loaded: {error}") from error
    missing = frozenset(info["missing_keys"])
    check_loaded_shapes(checkpoint, info)
    if lost := sorted(name for name in missing if name != SCORE_HEAD):
        raise ModelError(f"{checkpoint}: {len(lost)} weights are missing from the checkpoint, such as {lost[0]}")
    return model, missing


def _ready(loaded: tuple[Any, frozenset[str]]) -> nn.Module:
    model: nn.Module = loaded[0]
    disable_dropout(model)
    model.eval()
    return model


def disable_dropout(model: nn.Module) -> None:
    """Training must be a function of the data and the seed alone, and equal for packed and separate rows."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _pad_token_id(checkpoint: Path, config: Any) -> int:
    """The reward is read where we say, but others who load the model find the last token by this id."""
    from transformers import AutoTokenizer

    pad_token_id = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True).pad_token_id
    if pad_token_id is None:
        pad_token_id = config.get_text_config().pad_token_id
    if pad_token_id is None:
        raise ModelError(f"{checkpoint}: its tokenizer has no pad token: prepare the base with alignloop first")
    return int(pad_token_id)


def pad_token_id_of(model: Any) -> int:
    """Filler of padded positions: they are masked, so any id of the vocabulary will do."""
    pad_token_id = model.config.get_text_config().pad_token_id
    return pad_token_id if isinstance(pad_token_id, int) and pad_token_id >= 0 else 0


def check_vocabulary(model: Any, groups: Sequence[PromptGroup], *, checkpoint: Path) -> None:
    """Raises ModelError where a token id lies outside the embedding."""
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    for group in groups:
        largest = max(max(group.prompt_ids), *(max(c.token_ids, default=0) for c in group.completions))
        if largest >= num_embeddings:
            raise ModelError(
                f"{checkpoint}: row {group.id} has token id {largest}, but the embedding has only {num_embeddings} "
                "rows: the tokenizer does not belong to this model, or its embeddings were never resized"
            )


def free_memory() -> None:
    """Give back what dropped models held, on every device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for tiny files; no warning that a policy loaded as a reward model has no head yet: that is the plan."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
