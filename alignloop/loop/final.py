"""The run's result, `<run>/final`: a complete Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alignloop.artifacts import digest_of, disk_errors_named, files_of, link_or_copy, remove_path
from alignloop.config import Recipe
from alignloop.engines.checkpoint import eos_token_ids
from alignloop.records import RoundRow
from alignloop.report.model_card import model_card
from alignloop.run_dir.manifest import published
from alignloop.run_dir.reader import read_rounds
from alignloop.run_dir.verification import Verified

FINAL = "final"
LINKED = (".safetensors",)
"""Hard links where the disk allows: large files that nobody edits."""
OWN = ("README.md", "generation_config.json")
"""Files that may differ from the policy's."""


def publish_final(
    run_dir: Path, *, rows: Sequence[RoundRow], best: RoundRow, recipe: Recipe, verified: Verified | None = None
) -> Path:
    """Put the best round's policy and its model card in `<run_dir>/final`, replacing its content.

    Args:
        rows: one a round, the base's first.
        verified: what is known to be whole; None: as the run directory remembers it.

    Raises (the earlier content stays):
        RunDirError: the policy does not hold the bytes that were published.
        DiskFullError: no space left.
    """
    verified = verified or Verified(run_dir)
    policy = published(run_dir / best.policy)
    verified.require([policy])
    final = run_dir / FINAL
    aside, before = final.with_name(FINAL + ".partial"), final.with_name(FINAL + ".before")
    for leftover in (aside, before):
        remove_path(leftover)
    with disk_errors_named(final), verified.linking(policy):
        shutil.copytree(run_dir / best.policy, aside, copy_function=_linked_if_large)
        _ensure_eos(aside)
        card = model_card(run_dir, rows=rows, best=best, recipe=recipe)
        (aside / "README.md").write_text(card, encoding="utf-8")
    if os.path.lexists(final):
        final.rename(before)
    aside.rename(final)
    with suppress(OSError):  # who reads it still may hold its files, on some network file systems
        remove_path(before)
    return final


def final_damage(run_dir: Path) -> str | None:
    """What is wrong with `final`: its files are no round's policy; None where they are one's, or it does not exist.

    Raises:
        RunDirError: `rounds.jsonl` cannot be read.
    """
    final = run_dir / FINAL
    if not os.path.lexists(final):
        return None
    policies = [run_dir / row.policy for row in read_rounds(run_dir)]
    if final.is_dir() and any(policy.is_dir() and _holds(final, policy) for policy in policies):
        return None
    return f"{final}: is damaged: its files are those of no round's policy. Run again: it is made anew"


def _holds(final: Path, policy: Path) -> bool:
    """Whether `final` has all files of a policy with the same bytes, apart from OWN."""
    names = [file.relative_to(policy) for file in files_of(policy)]
    pairs = [(final / name, policy / name) for name in names if name.as_posix() not in OWN]
    return all(ours.is_file() and (ours.samefile(its) or digest_of(ours) == digest_of(its)) for ours, its in pairs)


def _ensure_eos(folder: Path) -> None:
    """Generation must stop at the end of a turn, also in libraries that read generation_config.json alone."""
    path = folder / "generation_config.json"
    if path.is_file() and "eos_token_id" in json.loads(path.read_text(encoding="utf-8")):
        return
    from alignloop.chat.load import load_format

    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = sorted({*load_format(folder).stop_token_ids, *eos_token_ids(folder)})
    path.write_text(json.dumps({**values, "eos_token_id": ids}, indent=2) + "\n", encoding="utf-8")


def _linked_if_large(source: str, target: str) -> str:
    if Path(source).suffix in LINKED:
        link_or_copy(Path(source), Path(target))
    else:
        shutil.copy2(source, target)
    return target
