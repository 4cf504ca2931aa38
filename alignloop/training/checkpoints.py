"""Checkpoints: complete Hugging Face directories, written aside and renamed, so that half of one is never seen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alignloop.artifacts import is_out_of_space
from alignloop.errors import DiskFullError
from alignloop.training.adapters import ADAPTER_FOLDER, has_adapter, merged_model, save_adapter
from alignloop.training.models import quiet_transformers
from alignloop.training.new_tokens import NEW_TOKENS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.*",
)
GENERATION_CONFIG = "generation_config.json"


def save_checkpoint(
    model: nn.Module, directory: Path, *, companions: Path, state_dict: Mapping[str, Tensor] | None = None
) -> Path:
    """Write `model` as a complete directory: config, safetensors, tokenizer files, chat template, generation config.

    Weights are written in the dtype they are trained in (float32): an update at a learning rate of 5e-7 is smaller
    than bfloat16's rounding of the weight. Of an adapted model the merged weights are written, and the adapter by
    itself to `adapter/`.

    Args:
        companions: the checkpoint that training started from; what is not weights or config comes from it.
        state_dict: whole tensors, where those of `model` are sharded; of an adapted model those that train will do.
    """
    with written_aside(directory) as partial:
        if has_adapter(model):
            merged = merged_model(model, start=companions, state_dict=state_dict)
            save_model(merged, partial)
            save_adapter(model, partial / ADAPTER_FOLDER, start=companions, merged=merged, state_dict=state_dict)
        else:
            save_model(model, partial, state_dict=state_dict)
        copy_companions(companions, partial, generation=_generates(model))
    return directory


def copy_companions(source: Path, target: Path, *, generation: bool = True) -> None:
    """Copy tokenizer files and chat template, the generation config where the model generates, and what is new."""
    patterns = (*TOKENIZER_FILES, NEW_TOKENS) + ((GENERATION_CONFIG,) if generation else ())
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)


def _generates(model: Any) -> bool:
    return bool(model.can_generate())


def save_model(model: Any, directory: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Weights and config alone; the weights of `state_dict` where it is given.

    save_pretrained validates the generation config and stops at harmless combinations that bases ship with; it is
    copied byte for byte from where the model came from instead.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    try:
        if _generates(model):
            model.generation_config = GenerationConfig()
        with quiet_transformers():
            model.save_pretrained(directory, state_dict=state_dict)
    finally:
        model.generation_config = own
    (directory / GENERATION_CONFIG).unlink(missing_ok=True)


@contextmanager
def written_aside(directory: Path) -> Iterator[Path]:
    """A fresh directory that takes the name `directory` when the block ends well, and goes away when it does not.

    Raises:
        DiskFullError: there was no room.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush_to_disk(partial)
    except BaseException as error:
        is_full = is_out_of_space(error, partial)
        shutil.rmtree(partial, ignore_errors=True)
        if is_full:
            raise DiskFullError(directory) from error
        raise
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def _flush_to_disk(directory: Path) -> None:
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
