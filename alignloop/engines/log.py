"""Where an engine's own words are: said when something fails, cleared away when nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignloop.errors import AlignloopError, EngineError
from alignloop.temporary import make_temporary

LOG_FILE = "engine.log"
ANY_LOG = "engine*.log"
"""Engines side by side number theirs."""


@contextmanager
def log_named(log_file: Path) -> Iterator[None]:
    """Note on an error that the engine may know more of where its log is, if there is one."""
    try:
        yield
    except Exception as error:
        logs = [] if not _is_engines(error) else sorted(log_file.parent.glob(f"{log_file.stem}*{log_file.suffix}"))
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
