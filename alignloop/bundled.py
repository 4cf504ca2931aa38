"""Where the things that come with the package lie: recipes and the quickstart's model and data."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
QUICKSTART = PACKAGE / "quickstart"
RECIPES = next((folder for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if folder.is_dir()), PACKAGE)
"""Inside the package in a wheel, beside it in a checkout."""


def resolve_base(base: str) -> str:
    """A base model's path or hub id; `quickstart` is the bundled base."""
    return str(QUICKSTART / "base") if base == "quickstart" else base


def resolve_file(file: str, *, kind: str) -> Path:
    """A data file's path; `quickstart` is the bundled file of that kind (`preferences` or `prompts`)."""
    return QUICKSTART / "data" / f"{kind}.jsonl" if file == "quickstart" else Path(file).expanduser()
