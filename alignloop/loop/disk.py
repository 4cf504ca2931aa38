"""How much disk a run takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignloop.artifacts import existing_parent
from alignloop.config import Recipe
from alignloop.errors import DiskFullError
from alignloop.stages.average import num_checkpoints
from alignloop.stages.base.check import PARAMETER_BYTES

BYTES_A_TOKEN = 12
"""Of a row on disk: about four characters of text and the id's digits."""
NUM_COPIES_OF_CANDIDATES = 3
"""Sampled, scored, and in shards while sampling."""
FIXED_BYTES = 50_000_000
"""Logs, benchmark answers, tokenizers."""


def run_bytes(recipe: Recipe, *, num_parameters: int, num_prompts: int, prompt_tokens: float) -> int:
    """Bytes of a whole run: checkpoints of three stages a round, of all their variants, resume points, rows.

    Args:
        num_prompts: sampled a round.
        prompt_tokens: mean length; completions count with their longest.
    """
    checkpoint = num_parameters * PARAMETER_BYTES
    stages = (recipe.reward, recipe.sft, recipe.dpo)
    # `average` publishes one more of each stage; a resume point holds weights and two moments.
    checkpoints = sum(num_checkpoints(stage) + 1 for stage in stages)
    tokens = num_prompts * recipe.sample.num_candidates * (prompt_tokens + recipe.sample.max_tokens)
    rows = int(tokens * BYTES_A_TOKEN * NUM_COPIES_OF_CANDIDATES)
    before = num_checkpoints(recipe.sft) + 1 if recipe.bootstrap == "always" else 0
    others = 2 + before + 3  # base and final, bootstrap, a resume point
    return recipe.rounds * (checkpoints * checkpoint + rows) + others * checkpoint + FIXED_BYTES


def used_bytes(folder: Path) -> int:
    """Bytes of the files under `folder`; 0 where there is none."""
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def require_space(folder: Path, *, needed_bytes: int) -> None:
    """Refuse to start where the disk cannot hold the run.

    Raises:
        DiskFullError: fewer than `needed_bytes` are free.
    """
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed_bytes:
        raise DiskFullError(folder, needed_bytes=needed_bytes, free_bytes=free)


@contextmanager
def disk_needs_named(folder: Path, *, needed_bytes: int) -> Iterator[None]:
    """A `DiskFullError` inside says, beside the path, what the whole run still needs and what is free.

    Args:
        needed_bytes: the run's need at entry.
    """
    before = used_bytes(folder)
    try:
        yield
    except DiskFullError as error:
        written = used_bytes(folder) - before
        free = shutil.disk_usage(existing_parent(folder)).free
        raise DiskFullError(
            error.path, needed_bytes=max(needed_bytes - written, 0), free_bytes=free, reason=error.reason
        ) from error
