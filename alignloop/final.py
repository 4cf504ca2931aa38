"""The run's result where a person looks for it: `<run>/final`, a complete Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from alignloop.artifacts import disk_errors_named
from alignloop.config import Recipe
from alignloop.engines.checkpoint import eos_token_ids
from alignloop.records import RoundRow
from alignloop.report.model_card import model_card

FINAL = "final"
LINKED = (".safetensors",)
"""Files taken over as hard links where the disk allows: large, and edited by nobody."""


def publish_final(run_dir: Path, *, rows: Sequence[RoundRow], best: RoundRow, recipe: Recipe) -> Path:
    """Put the best round's policy and its model card in `<run_dir>/final`, replacing what lay there.

    Args:
        rows: one a round, the base's first.
        best: the row whose policy is taken.

    Raises:
        DiskFullError: no space left; what lay there stays.
    """
    final = run_dir / FINAL
    aside, before = final.with_name(FINAL + ".partial"), final.with_name(FINAL + ".before")
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    with disk_errors_named(final):
        shutil.copytree(run_dir / best.policy, aside, copy_function=_link_or_copy)
        _ensure_eos(aside)
        card = model_card(run_dir, rows=rows, best=best, recipe=recipe)
        (aside / "README.md").write_text(card, encoding="utf-8")
    if final.exists():
        final.rename(before)
    aside.rename(final)
    shutil.rmtree(before, ignore_errors=True)
    return final


def _ensure_eos(folder: Path) -> None:
    """Generation must stop at the end of a turn, also in libraries that read generation_config.json alone."""
    path = folder / "generation_config.json"
    if path.is_file() and "eos_token_id" in json.loads(path.read_text(encoding="utf-8")):
        return
    from alignloop.chat.load import load_format

    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = sorted({*load_format(folder).stop_token_ids, *eos_token_ids(folder)})
    path.write_text(json.dumps({**values, "eos_token_id": ids}, indent=2) + "\n", encoding="utf-8")


def _link_or_copy(source: str, target: str) -> str:
    if Path(source).suffix in LINKED:
        try:
            os.link(source, target)
        except OSError:
            # Another file system, or one without hard links.
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)
    return target
