"""Digests of what training depends on: weights and groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from alignloop.packing.groups import PromptGroup

READ_BYTES = 2**20


def weights_digest(checkpoint: Path) -> str:
    """sha256 over a checkpoint's safetensors files and its config: equal where the models are equal."""
    digest = hashlib.sha256()
    for path in [checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def groups_digest(groups: Sequence[PromptGroup]) -> str:
    """sha256 over ids, tokens, masks and ranks, in order."""
    digest = hashlib.sha256()
    for group in groups:
        completions = [(c.token_ids, c.formatting_mask) for c in group.completions]
        row = (group.id, group.prompt_ids, completions, group.ranks, group.prompt_loss_mask)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def key_of(**parts: object) -> str:
    """One digest of named values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
