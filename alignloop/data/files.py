"""The files that names and patterns of a recipe stand for, in an order that a person expects."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignloop.config.bundled import resolve_file
from alignloop.data.file_kinds import is_pipe, is_saved
from alignloop.data.tables import HUB
from alignloop.errors import DataError


def data_files(names: Sequence[str], *, kind: str) -> list[Path]:
    """The files of `names`, in the order of the names; a pattern's in sorted order, with numbers sorted as numbers.

    `round-2.jsonl` comes before `round-10.jsonl`. A name that is a file's as it stands is no pattern, whatever letters
    are in it. Hidden files are not matched by `*`.

    Args:
        names: paths, patterns (`*`, `?`, `[...]`, `**`), or `quickstart`.
        kind: `preferences` or `prompts`: of the bundled file, and of the field that messages name.

    Raises:
        DataError: patterns that match no file, and what a run cannot read; all of them are named.
    """
    files: list[Path] = []
    problems: list[str] = []
    for name in names:
        path = resolve_file(name, kind=kind)
        if (reason := why_not_twice(name)) is not None:
            problems.append(f"{kind}: {name}: {reason}")
            continue
        if not is_pattern(name):
            files.append(path)
            continue
        found = sorted(_matching(path), key=in_natural_order)
        files += found
        if not found:
            problems.append(f"{kind}: {name}: the pattern matches no file{_nearby(path)}")
    if problems:
        raise DataError("\n".join(problems))
    return files


def why_not_twice(name: str) -> str | None:
    """Why what a name stands for cannot be read again later, byte for byte the same; None where it can.

    Whatever is made from a file keeps its digest and reads it more than once.
    """
    if name.startswith(HUB):
        what = "what is made from data keeps its digest, and a hub may change"
    elif is_pipe(Path(name).expanduser()):
        what = "a pipe or device can be read only once"
    else:
        return None
    return f"{what}: write a file (`alignloop data convert {name} --out rows.jsonl`) and name that"


def _matching(pattern: Path) -> Iterator[Path]:
    start = Path(pattern.anchor)
    for file in start.glob(str(pattern.relative_to(start))):
        if (file.is_file() or is_saved(file)) and not file.name.startswith("."):
            yield file


def is_pattern(name: str) -> bool:
    """Whether a name of a recipe is to be expanded."""
    return glob.has_magic(name) and not Path(name).expanduser().exists()


def in_natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: runs of digits compare as numbers, the rest as text."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def _nearby(path: Path) -> str:
    """What lies where a pattern looked, for the eye that seeks the slip."""
    folder = path.parent
    if glob.has_magic(str(folder)):
        return f" (looked from {Path.cwd()}) - write the path of your files"
    if not folder.is_dir():
        return f": there is no folder {folder} (looked from {Path.cwd()}) - write the path of your files"
    held = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not held:
        return f": the folder {folder} holds no file - put your files there, or write their path"
    more = f" and {len(held) - 4:,} more" if len(held) > 4 else ""
    return f": {folder} holds {', '.join(held[:4])}{more} - write a pattern that fits"
