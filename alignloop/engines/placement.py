"""Which part of this machine each engine gets: cores on a CPU, devices on a GPU machine. Refused before a start."""

from __future__ import annotations

import os
from dataclasses import dataclass

from alignloop.config.engine import EngineConfig
from alignloop.errors import UserError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class EnginePlace:
    """One engine's share of the machine.

    Attributes:
        num_threads: OpenMP threads.
        devices: names of its GPUs as CUDA_VISIBLE_DEVICES has them; None leaves it all that are visible.
    """

    num_threads: int
    devices: tuple[str, ...] | None = None

    def environment(self) -> dict[str, str]:
        """What the engine's process must find set."""
        return {} if self.devices is None else {_VISIBLE: ",".join(self.devices)}


def places(config: EngineConfig) -> tuple[EnginePlace, ...]:
    """A place for each of the `data_parallel` engines: cores in equal parts, GPUs in blocks, in order.

    Raises:
        UserError: the engine named cannot do what is asked, or there are fewer GPUs than that takes.
    """
    num_engines = config.data_parallel
    a_block = config.tensor_parallel * config.pipeline_parallel
    _check_name(config)
    threads = max(1, num_cores() // num_engines)
    if num_engines * a_block == 1:
        return (EnginePlace(threads),)
    devices = visible_devices()
    if not devices:
        _check_cpu(config)
        return (EnginePlace(threads),) * num_engines
    if len(devices) < num_engines * a_block:
        raise UserError(
            f"engine: data_parallel {num_engines} x tensor_parallel {config.tensor_parallel} x pipeline_parallel "
            f"{config.pipeline_parallel} take {num_engines * a_block} GPUs, and {len(devices)} can be seen "
            f"({_VISIBLE}): lower one of them"
        )
    if num_engines == 1:
        return (EnginePlace(threads),)
    blocks = [devices[i * a_block : (i + 1) * a_block] for i in range(num_engines)]
    return tuple(EnginePlace(threads, block) for block in blocks)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> tuple[str, ...]:
    """The GPUs this process sees, by the names its children can be given them under."""
    import torch

    count = torch.cuda.device_count()  # asks the driver without starting CUDA in this process
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(index) for index in range(count))


def _check_name(config: EngineConfig) -> None:
    if config.name == "vllm":
        return
    for field in ("tensor_parallel", "pipeline_parallel"):
        if getattr(config, field) > 1:
            raise UserError(
                f"engine.{field}: {getattr(config, field)}, but engine.name: transformers serves a model on one "
                "device: set it to 1, or engine.name: vllm; engine.data_parallel sets engines side by side"
            )
    if config.quantization is not None:
        raise UserError(
            f"engine.quantization: {config.quantization}, but engine.name: transformers serves weights as written: "
            "leave it out, or set engine.name: vllm"
        )


def _check_cpu(config: EngineConfig) -> None:
    for field in ("tensor_parallel", "pipeline_parallel"):
        if getattr(config, field) > 1:
            raise UserError(
                f"engine.{field}: {getattr(config, field)}, but no GPU can be seen: a model is split over GPUs only. "
                f"Set it to 1; engine.data_parallel sets engines side by side on a CPU too"
            )
