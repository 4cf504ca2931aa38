"""Which row a person means: an id, the beginning of one, or a line of a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignloop.errors import UserError
from alignloop.look.life import Kind
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow, SftRow
from alignloop.run_dir.reader import RunReader, ids_of, marked_rows

FromFile = PreferenceRow | PromptRow | SftRow | DroppedRow
_FROM_FILES: tuple[tuple[str, str, Kind, type[FromFile]], ...] = (
    ("ingest", "preferences", "preference", PreferenceRow),
    ("ingest", "heldout", "preference", PreferenceRow),
    ("ingest", "prompts", "prompt", PromptRow),
    ("ingest", "dropped", "preference", DroppedRow),
    ("ingest", "dropped_prompts", "prompt", DroppedRow),
    ("ingest", "demonstrations", "demonstration", SftRow),
    ("ingest", "dropped_demonstrations", "demonstration", DroppedRow),
    ("collect", "preferences", "preference", PreferenceRow),
    ("collect", "dropped", "preference", DroppedRow),
    ("collect", "prompts", "prompt", PromptRow),
)
"""Stage, output and what its rows are: rows of the user's."""
_MADE: tuple[tuple[str, str, Kind], ...] = (
    ("collect", "verdicts", "verdict"),
    ("sample", "candidates", "candidate"),
    ("sample", "other_candidates", "candidate"),
    ("build_pairs", "pairs", "pair"),
)
"""Rows that the run makes; every row of a run has its id in one of these outputs."""
_MOST_LISTED = 12
_MOST_COMPARED = 20_000
"""Ids that a wrong one is held against: likeness takes time."""
_LINE = re.compile(r"(?P<file>.+):(?P<line>[0-9]{1,12})")


class RowKey(NamedTuple):
    """A row by kind and id; `rejected` is the row itself, where it is one that could not be read."""

    kind: Kind
    id: str
    rejected: RejectedRow | None = None


def find(row_id: str, run: RunReader) -> list[RowKey]:
    """The rows that are meant: one, or several where one id or one line stands for several. UserError: no such row,
    with names near it; or several, with all of them."""
    known = _index(run)
    if row_id in known:
        return [RowKey(kind, row_id) for kind in known[row_id]]
    match = _LINE.fullmatch(row_id)
    if match and (found := _at_line(match["file"], int(match["line"]), run)):
        return found
    begin_so = _roots([name for name in known if row_id and name.startswith(row_id)])
    if len(begin_so) == 1:
        return [RowKey(kind, begin_so[0]) for kind in known[begin_so[0]]]
    if begin_so:
        more = f"\n  and {len(begin_so) - _MOST_LISTED:,} more" if len(begin_so) > _MOST_LISTED else ""
        listed = "\n".join(f"  {' and '.join(known[name]):<10}  {name}" for name in begin_so[:_MOST_LISTED])
        raise UserError(f"{row_id}: {len(begin_so):,} rows begin so; write more of the id:\n{listed}{more}")
    raise UserError(_no_line(match["file"], int(match["line"]), run) if match else _no_row(row_id, list(known), run))


def _index(run: RunReader) -> dict[str, list[Kind]]:
    """Id -> kinds, of every row of the run."""
    known: dict[str, list[Kind]] = {}
    outputs = [*((stage, output, kind) for stage, output, kind, _ in _FROM_FILES), *_MADE]
    files = ((file, kind) for number in run.rounds for stage, output, kind in outputs
             for file in run.files(number, stage, output))  # fmt: skip
    for file, kind in files:
        for name in ids_of(file):
            kinds = known.setdefault(name, [])
            # A pair of a preference has the preference's id: it is the same row further on.
            if kind not in kinds and not (kind == "pair" and "preference" in kinds):
                kinds.append(kind)
    return known


def _roots(names: Sequence[str]) -> list[str]:
    """Without the rows that belong to another of them: a prompt's candidates and pairs go with the prompt."""
    whole = set(names)
    return [name for name in names if not any(name[:at] in whole for at, letter in enumerate(name) if letter in "/>")]


def _no_row(row_id: str, names: Sequence[str], run: RunReader) -> str:
    if not names:
        return f"{row_id}: {run.run_dir} holds no rows yet: no stage that reads or makes them is published"
    hint = f"; its {len(names):,} rows have ids such as {names[0]}"
    if len(names) > _MOST_COMPARED:
        names = [name for name in names if name[:2] == row_id[:2]][:_MOST_COMPARED]
    if near := difflib.get_close_matches(row_id, names, n=3, cutoff=0.6):
        hint = f"; near: {', '.join(near)}"
    return f"{row_id}: no row of {run.run_dir} has this id{hint}. ROW-ID is an id, the beginning of one, or FILE:LINE"


def _is_same_file(named: str, known: str) -> bool:
    """Whether a person names the file that a row's source names: whole, or by its end."""
    one, other = Path(named).expanduser(), Path(known)
    return one == other or one.resolve() == other or other.parts[-len(one.parts) :] == one.parts


def _at_line(file: str, line: int, run: RunReader) -> list[RowKey]:
    """Rows of a line of the user's, read or rejected; UserError where several files have that name."""
    found: dict[RowKey, str] = {}
    mark = f'"line":{line}'.encode()  # JSON already: its quotes are not those of a text
    for number in run.rounds:
        for stage, output, kind, model in _FROM_FILES:
            for path in run.files(number, stage, output):
                for row in marked_rows(path, model, mark):
                    if row.source and row.source.line == line and _is_same_file(file, row.source.file):
                        found.setdefault(RowKey(kind, row.id), row.source.file)
    for rejected in _rejected(run, mark):
        if rejected.line == line and _is_same_file(file, rejected.file):
            found.setdefault(RowKey("rejected row", f"{rejected.file}:{line}", rejected), rejected.file)
    files = sorted(set(found.values()))
    if len(files) > 1:
        listed = "\n".join(f"  {name}:{line}" for name in files)
        raise UserError(f"{file}:{line}: files of this name lie in {len(files)} places; write the path:\n{listed}")
    return list(found)


def _rejected(run: RunReader, mark: bytes) -> list[RejectedRow]:
    files = [file for number in run.rounds for stage in ("ingest", "collect")
             for file in run.files(number, stage, "rejected_rows")]  # fmt: skip
    files += [file for file in [run.run_dir / "rejected_rows.jsonl"] if file.is_file()]
    rows = [row for file in files for row in marked_rows(file, RejectedRow, mark)]
    return list({(row.file, row.line, row.field): row for row in rows}.values())


def _no_line(file: str, line: int, run: RunReader) -> str:
    lines: dict[str, list[int]] = {}
    for number in run.rounds:
        for stage, output, _, model in _FROM_FILES:
            for row in run.rows(number, stage, output, model) if model is not DroppedRow else ():
                if row.source is not None and row.source.line is not None:
                    lines.setdefault(row.source.file, []).append(row.source.line)
    if not lines:
        return f"{file}:{line}: {run.run_dir} holds no rows of a file yet"
    of_file = next(((name, numbers) for name, numbers in lines.items() if _is_same_file(file, name)), None)
    if of_file is None:
        return f"{file}:{line}: no row of {run.run_dir} comes from this file; they come from {', '.join(sorted(lines))}"
    name, numbers = of_file
    return (
        f"{file}:{line}: no row of {run.run_dir} comes from this line of {name}: its rows are lines {min(numbers):,} "
        f"to {max(numbers):,}; a line between them that is no row's is blank, or of a row that spans several"
    )
