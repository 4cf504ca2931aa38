"""Memory that runs out: given back, and where fewer rows would not help, said in words: what, how large, what to do."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from alignloop.engines.checkpoint import num_parameters
from alignloop.errors import ModelError, TrainingError
from alignloop.packing.check import is_out_of_memory
from alignloop.training.job import TrainJob

GB = 1e9
TRAINED_BYTES = 16
"""Of a weight that trains: itself, its gradient and two moments of AdamW, in float32."""


def free_memory() -> None:
    """Give back what dropped models held, on every device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def loading_memory(checkpoint: Path, *, dtype: torch.dtype, device: torch.device, remedy: str) -> Iterator[None]:
    """Around what loads a model and moves it to its device.

    Args:
        remedy: what to do, beside taking a smaller model.

    Raises:
        ModelError: memory ran out; it names the model and its size.
    """
    with _explained(
        lambda: ModelError(
            f"out of memory while {checkpoint} was loaded: {_size(checkpoint, dtype)}, {_device_memory(device)}. "
            f"{remedy}{'use' if remedy else 'Use'} a smaller model"
        )
    ):
        yield


@contextmanager
def stepping_memory(job: TrainJob, module: nn.Module, *, device: torch.device, step: str) -> Iterator[None]:
    """Around the optimiser's step, the first of which makes its moments.

    Raises:
        TrainingError: memory ran out; it says how much training takes.
    """
    count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    num = job.training.num_processes
    shared = f" (over {num} processes)" if num > 1 and job.training.accelerate != "ddp" else ""
    with _explained(
        lambda: TrainingError(
            f"{job.objective}: out of memory in the optimiser's update at {step}: {count:,} weights train, which take "
            f"{count * TRAINED_BYTES / GB:,.1f} GB with gradients and moments{shared}, {_device_memory(device)}. "
            f"{remedy_of(job)}use a smaller model"
        )
    ):
        yield


@contextmanager
def _explained(explain: Callable[[], Exception]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        raise explain() from error


def out_of_memory_elsewhere(job: TrainJob, error: BaseException, *, device: torch.device) -> TrainingError:
    """For memory that ran out anywhere else in a training."""
    words = str(error).strip().splitlines()
    return TrainingError(
        f"{job.objective}: out of memory: {job.checkpoint} ({_size(job.checkpoint, torch.float32)}), "
        f"{_device_memory(device)}; torch says: {words[0] if words else type(error).__name__}. "
        f"{remedy_of(job)}use a smaller model"
    )


def remedy_of(job: TrainJob) -> str:
    """What of this training's settings would take less memory; to be followed by `use a smaller model`."""
    ways = []
    lora, training = job.config.lora, job.training
    if lora is None:
        ways.append(f"Train adapters ({job.objective}.lora: {{}})")
    elif lora.quantize == "none":
        ways.append(f"Hold the frozen weights in 4 bits ({job.objective}.lora.quantize: nf4, needs a GPU)")
    if training.num_processes == 1 or training.accelerate == "ddp":
        ways.append("shard the model over several GPUs (training.num_processes, training.accelerate: fsdp2)")
    else:
        ways.append("shard it over more GPUs (training.num_processes)")
    if not job.config.gradient_checkpointing:
        ways.append(f"set {job.objective}.gradient_checkpointing: true")
    text = ", ".join(ways)
    return f"{text[0].upper()}{text[1:]}, or "


def _size(checkpoint: Path, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    try:
        count = num_parameters(checkpoint)
    except ModelError:  # pickled weights tell no sizes
        return f"its weights are held in {name}"
    return f"{count:,} weights take {count * dtype.itemsize / GB:,.1f} GB in {name}"


def _device_memory(device: torch.device) -> str:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} has {total / GB:,.0f} GB"
    if device.type == "cpu":
        return f"this machine has {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GB:,.0f} GB"
    return f"on {device}"
