"""Checkpoints: complete Hugging Face directories, written aside and renamed, so that half of one is never seen.

Resume points inside a stage: killed at any step, training goes on from the last one and ends in the same bytes. A point
holds whole tensors by name, whatever they were split over, so that any number of processes can go on from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignloop.artifacts import is_out_of_space
from alignloop.errors import DiskFullError
from alignloop.training.adapters import ADAPTER_FOLDER, has_adapter, merged_model, save_adapter
from alignloop.training.model import quiet_transformers
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
STATE_FILE = "state.pt"
STATE_VERSION = 2


def save_checkpoint(
    model: Any, directory: Path, *, companions: Path, state_dict: Mapping[str, Tensor] | None = None
) -> Path:
    """Write `model` as a complete directory: config, safetensors, tokenizer files, chat template, generation config.

    Weights are written in the dtype they are trained in (float32): an update at a learning rate of 5e-7 is smaller than
    bfloat16's rounding of the weight. Of an adapted model the merged weights are written, and the adapter by itself to
    `adapter/`.

    Args:
        companions: the checkpoint that training started from; what is not weights or config comes from it.
        state_dict: whole tensors, where those of `model` are sharded; of an adapted model those that train are enough.
    """
    with written_aside(directory) as partial:
        if has_adapter(model):
            merged = merged_model(model, start=companions, state_dict=state_dict)
            save_model(merged, partial)
            save_adapter(model, partial / ADAPTER_FOLDER, start=companions, merged=merged, state_dict=state_dict)
        else:
            save_model(model, partial, state_dict=state_dict)
        copy_companions(companions, partial, generation=model.can_generate())
    return directory


def copy_companions(source: Path, target: Path, *, generation: bool = True) -> None:
    """Copy tokenizer files and chat template, the generation config where the model generates, and what is new."""
    copy_files(source, target, *TOKENIZER_FILES, NEW_TOKENS, *([GENERATION_CONFIG] if generation else []))


def copy_files(source: Path, target: Path, *patterns: str) -> None:
    """Copy the files of `source` whose names fit one of the patterns."""
    for path in sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, target / path.name)


def save_model(model: Any, directory: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Weights (those of `state_dict`, if any) and config alone.

    save_pretrained validates the generation config and stops at harmless combinations that bases ship with; it is
    copied byte for byte from where the model came from instead.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    try:
        if model.can_generate():
            model.generation_config = GenerationConfig()
        with quiet_transformers():
            model.save_pretrained(directory, state_dict=state_dict)
    finally:
        model.generation_config = own
    (directory / GENERATION_CONFIG).unlink(missing_ok=True)


@contextmanager
def written_aside(directory: Path) -> Iterator[Path]:
    """A new directory that is renamed to `directory` when the block ends well, and removed when it does not."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException as error:
        is_full = is_out_of_space(error, partial)
        shutil.rmtree(partial, ignore_errors=True)
        if is_full:
            raise DiskFullError(directory) from error
        raise
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


@dataclass(frozen=True)
class ResumePoints:
    """The resume points of one training stage, in `directory`, one `step-000200` at a time.

    `key` is a digest of all that the trained weights depend on; points of another key are not used.
    """

    directory: Path
    key: str

    def save(self, step: int, *, model: dict[str, Any], optimizer: dict[str, Any], rows: int) -> None:
        """Write the point after `step` steps, then drop the older ones."""
        name, older = f"step-{step:06d}", self._points()
        state = {"version": STATE_VERSION, "key": self.key, "step": step, "rows": rows}
        with written_aside(self.directory / name) as partial:
            torch.save(state | {"model": model, "optimizer": optimizer}, partial / STATE_FILE)
        for path in older:
            if path.name != name:
                shutil.rmtree(path)

    def load(self) -> dict[str, Any] | None:
        """The latest point of this key, on the CPU, or None."""
        for path in reversed(self._points()):
            # Mapped into memory: every process of a stage reads all of it.
            file = path / STATE_FILE
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if state["version"] == STATE_VERSION and state["key"] == self.key:
                return state
        return None

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _points(self) -> list[Path]:
        complete = self.directory.glob("step-*")
        return sorted(path for path in complete if path.suffix != ".partial" and (path / STATE_FILE).is_file())
