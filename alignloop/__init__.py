"""Iterative post-training in one command: reward model, rejection sampling, SFT and DPO, round over round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignloop.config import Recipe as Recipe
    from alignloop.config import load_recipe as load_recipe
    from alignloop.loop.run import RunResult as RunResult
    from alignloop.loop.run import run as run

__version__ = "0.1.0"
__all__ = ["Recipe", "RunResult", "__version__", "load_recipe", "run"]

_HOMES = {
    "Recipe": "alignloop.config",
    "load_recipe": "alignloop.config",
    "RunResult": "alignloop.loop.run",
    "run": "alignloop.loop.run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import alignloop` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'alignloop' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
