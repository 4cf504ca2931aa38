"""What a stage's fingerprint says of its judge, beside the recipe's words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from alignloop.artifacts import fingerprint
from alignloop.config.engine import JudgeConfig
from alignloop.judging.prompt_file import load_prompt

_PIECE = 1 << 16


def prompt_mark(config: JudgeConfig) -> str:
    """Hash of the judging prompt's content: a file of the user's may change under one name.

    Raises:
        UserError: it cannot be used.
    """
    return load_prompt(config.prompt).digest


def model_mark(config: JudgeConfig) -> str | None:
    """Hash of the judge model's files: their names, sizes, beginnings, middles and ends.

    Weights change everywhere when they change, and reading all of a large judge each round takes minutes. None
    behind an endpoint, whose model nobody here can look at.
    """
    return None if config.endpoint is not None else folder_mark(Path(config.model).expanduser())


def prompts_mark(prompts: Sequence[str]) -> str:
    """Hash of several judging prompts' contents; errors as for `prompt_mark`."""
    return fingerprint([load_prompt(prompt).digest for prompt in prompts])


def folder_mark(folder: Path) -> str | None:
    """Hash of a model folder's files, as `model_mark`; None where there is no such folder (a hub's id)."""
    if not folder.is_dir():
        return None
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = file.stat().st_size
        total.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start in (0, size // 2, max(0, size - _PIECE)):
                stream.seek(start)
                total.update(stream.read(_PIECE))
    return total.hexdigest()[:16]
