"""Where the things that come with the package lie: recipes and the quickstart's model and data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
QUICKSTART = PACKAGE / "quickstart"
RECIPES = next((folder for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if folder.is_dir()), PACKAGE)
"""Inside the package in a wheel, beside it in a checkout."""
_BENCHMARKS = {
    "ifeval_dev": "ifeval_dev.jsonl",
    "ifeval": "ifeval.jsonl",
    "ifeval_unseen": "ifeval_unseen.jsonl",
    "mmlu": "mmlu",
}
"""The quickstart's benchmarks, in its data: what rounds are chosen on, what is reported, instructions that nothing
trains, questions."""
_NAMED_IFEVAL = re.compile(r"ifeval_[\w-]+", re.ASCII)


class LocalBenchmark(NamedTuple):
    """A benchmark whose data lie on this machine.

    Attributes:
        name: of its figures, for example `ifeval_dev`.
        kind: `ifeval` for every name `ifeval_...`, else the name: whether there is such a kind is not looked at.
        bundled: whether it is the quickstart's.
    """

    name: str
    kind: str
    path: Path
    bundled: bool


def resolve_base(base: str) -> str:
    """A base model's path or hub id; `quickstart` is the bundled base."""
    return str(QUICKSTART / "base") if base == "quickstart" else base


def bundled_benchmarks() -> dict[str, Path]:
    """Name -> data of the quickstart's benchmarks."""
    paths = {name: QUICKSTART / "data" / file for name, file in _BENCHMARKS.items()}
    return {name: path for name, path in paths.items() if path.exists()}


def benchmark_data(task: str, *, bundled: bool) -> LocalBenchmark | None:
    """A benchmark's local data; None for tasks whose data lm-eval fetches.

    Args:
        task: as in a recipe: `name=PATH`, or a task's name.
        bundled: whether the quickstart's names are the bundled ones.
    """
    name, has_path, path = task.partition("=")
    kind = "ifeval" if _NAMED_IFEVAL.fullmatch(name) else name
    if has_path:
        return LocalBenchmark(name, kind, Path(path).expanduser(), bundled=False)
    data = bundled_benchmarks().get(name) if bundled else None
    return None if data is None else LocalBenchmark(name, kind, data, bundled=True)


def resolve_file(file: str, *, kind: str) -> Path:
    """A data file's path; `quickstart` is the bundled file of that kind (`preferences` or `prompts`)."""
    return QUICKSTART / "data" / f"{kind}.jsonl" if file == "quickstart" else Path(file).expanduser()
