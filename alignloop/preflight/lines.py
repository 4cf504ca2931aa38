"""What a run is about to do, in a few lines for the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from alignloop.config import Recipe
from alignloop.preflight.check import Checked
from alignloop.run_dir.layout import RESOLVED


def opening_lines(checked: Checked, *, recipe: Recipe, run_dir: Path) -> list[str]:
    """Recipe, base, rows, run directory, and what is worth knowing."""
    size = "" if checked.base.num_parameters is None else f", {in_words(checked.base.num_parameters)} parameters"
    rejected = f", {checked.num_rejected:,} unreadable" if checked.num_rejected else ""
    forms = ", ".join(sorted(set(checked.rows.forms.values())))
    known = (run_dir / RESOLVED).is_file()
    rounds = "1 round" if recipe.rounds == 1 else f"{recipe.rounds} rounds"
    lines = [
        f"recipe   {recipe.name}: {rounds}, K {recipe.sample.num_candidates}, seed {recipe.seed}",
        f"base     {recipe.base}{size}",
        f"rows     {checked.num_preferences:,} preferences, {checked.num_heldout:,} held out{rejected} ({forms}); "
        f"{checked.num_prompts:,} prompts",
        f"run dir  {run_dir}{', which is gone on with' if known else ''}",
    ]
    return lines + note_lines(checked.notes)


def note_lines(notes: Sequence[str]) -> list[str]:
    """Notes for the screen, as the opening has them."""
    return [line for note in notes for line in _wrapped(note)]


def _wrapped(note: str) -> list[str]:
    # Paths stay whole: they are there to be copied.
    return textwrap.wrap(
        note,
        width=80,
        initial_indent="note     ",
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )


def in_words(number: float) -> str:
    """12_345_678 -> `12.3M`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def bytes_in_words(number: float) -> str:
    """12_345_678 -> `12.3 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"
