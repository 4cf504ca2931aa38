"""Where the things that come with the package lie: recipes and the quickstart's model and data."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
QUICKSTART = PACKAGE / "quickstart"
RECIPES = next((folder for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if folder.is_dir()), PACKAGE)
"""Inside the package in a wheel, beside it in a checkout."""


def resolve_base(base: str) -> str:
    """A base model's path or hub id; `quickstart` is the bundled base."""
    return str(QUICKSTART / "base") if base == "quickstart" else base


def benchmark_data(task: str, *, bundled: bool) -> tuple[str, Path] | None:
    """Kind and path of a benchmark's local data; None for tasks whose data lm-eval fetches.

    Args:
        task: as in a recipe: `kind=PATH`, or a task's name.
        bundled: whether `ifeval` and `mmlu` are the bundled ones.
    """
    kind, has_path, path = task.partition("=")
    if has_path:
        return kind, Path(path).expanduser()
    if bundled and kind in ("ifeval", "mmlu"):
        return kind, QUICKSTART / "data" / ("mmlu" if kind == "mmlu" else "ifeval.jsonl")
    return None


def resolve_file(file: str, *, kind: str) -> Path:
    """A data file's path; `quickstart` is the bundled file of that kind (`preferences` or `prompts`)."""
    return QUICKSTART / "data" / f"{kind}.jsonl" if file == "quickstart" else Path(file).expanduser()
