"""Which row a person means: an id, the beginning of one, or a line of a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignloop.errors import UserError
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow
from alignloop.run_dir.reader import RunReader, ids_of, marked_rows

Kind = Literal["prompt", "candidate", "preference", "pair", "verdict", "rejected row"]
_FILES: tuple[tuple[str, str, Kind], ...] = (
    ("ingest", "preferences", "preference"),
    ("ingest", "heldout", "preference"),
    ("ingest", "prompts", "prompt"),
    ("ingest", "dropped", "preference"),
    ("ingest", "dropped_prompts", "prompt"),
    ("collect", "preferences", "preference"),
    ("collect", "dropped", "preference"),
    ("collect", "prompts", "prompt"),
    ("collect", "verdicts", "verdict"),
    ("sample", "candidates", "candidate"),
    ("build_pairs", "pairs", "pair"),
)
"""Stage, output and what its rows are: every row of a run has its id in one of them."""
_MOST_LISTED = 12
_MOST_COMPARED = 20_000
"""Ids that a wrong one is held against: likeness takes time."""
_PLACE = re.compile(r"(?P<file>.+):(?P<line>[0-9]{1,12})")


@dataclass(frozen=True)
class Found:
    """A row by kind and id.

    Attributes:
        rejected: the row itself, where it is one that could not be read.
    """

    kind: Kind
    id: str
    rejected: RejectedRow | None = None


def find(row_id: str, run: RunReader) -> list[Found]:
    """The rows that are meant: one, or several where one id or one line stands for several.

    Raises:
        UserError: no such row, with names near it; or several, with all of them.
    """
    known = _index(run)
    if row_id in known:
        return [Found(kind, row_id) for kind in known[row_id]]
    place = _PLACE.fullmatch(row_id)
    if place is not None:
        found = _at_line(place["file"], int(place["line"]), run)
        if found:
            return found
    matches = _roots([name for name in known if row_id and name.startswith(row_id)])
    if len(matches) == 1:
        return [Found(kind, matches[0]) for kind in known[matches[0]]]
    if matches:
        more = f"\n  and {len(matches) - _MOST_LISTED:,} more" if len(matches) > _MOST_LISTED else ""
        listed = "\n".join(f"  {_kinds(known[name])}  {name}" for name in matches[:_MOST_LISTED])
        raise UserError(f"{row_id}: {len(matches):,} rows begin so; write more of the id:\n{listed}{more}")
    if place is not None:
        raise UserError(_no_line(place["file"], int(place["line"]), run))
    raise UserError(_nothing(row_id, known, run))


def _index(run: RunReader) -> dict[str, list[Kind]]:
    """Id -> kinds, of every row of the run."""
    known: dict[str, list[Kind]] = {}
    for number in run.rounds:
        for stage, output, kind in _FILES:
            for file in run.files(number, stage, output):
                for name in ids_of(file):
                    kinds = known.setdefault(name, [])
                    # A pair of a preference has the preference's id: it is the same row further on.
                    if kind not in kinds and not (kind == "pair" and "preference" in kinds):
                        kinds.append(kind)
    return known


def _roots(names: list[str]) -> list[str]:
    """Without the rows that belong to another of them: a prompt's candidates and pairs go with the prompt."""
    whole = set(names)
    return [name for name in names if not any(name[:at] in whole for at, letter in enumerate(name) if letter in "/>")]


def _kinds(kinds: Iterable[str]) -> str:
    return f"{' and '.join(kinds):<10}"


def _nothing(row_id: str, known: dict[str, list[Kind]], run: RunReader) -> str:
    names = list(known)
    if len(names) > _MOST_COMPARED:
        names = [name for name in names if name[:2] == row_id[:2]][:_MOST_COMPARED]
    near = difflib.get_close_matches(row_id, names, n=3, cutoff=0.6)
    hint = (
        f"; near: {', '.join(near)}" if near else f"; its {len(known):,} rows have ids such as {next(iter(known), '-')}"
    )
    return f"{row_id}: no row of {run.run_dir} has this id{hint}. ROW-ID is an id, the beginning of one, or FILE:LINE"


def same_file(given: str, known: str) -> bool:
    """Whether a person's `given` names the file that a row's source names: whole, or by its end."""
    one, other = Path(given).expanduser(), Path(known)
    return one == other or one.resolve() == other or other.parts[-len(one.parts) :] == one.parts


def _at_line(file: str, line: int, run: RunReader) -> list[Found]:
    """Rows of a line of the user's, read or rejected.

    Raises:
        UserError: files of that name lie in several places.
    """
    found: dict[Found, str] = {}
    mark = f'"line":{line}'.encode()  # JSON already: its quotes are not those of a text
    for number in run.rounds:
        for stage, output, kind in _FILES:
            if stage not in ("ingest", "collect") or output == "verdicts":
                continue
            model: type[PromptRow | PreferenceRow | DroppedRow] = PromptRow if kind == "prompt" else PreferenceRow
            if output.startswith("dropped"):
                model = DroppedRow
            for path in run.files(number, stage, output):
                for row in marked_rows(path, model, mark):
                    if row.source and row.source.line == line and same_file(file, row.source.file):
                        found.setdefault(Found(kind, row.id), row.source.file)
    for rejected in _rejected(run, mark):
        if rejected.line == line and same_file(file, rejected.file):
            found.setdefault(Found("rejected row", f"{rejected.file}:{line}", rejected), rejected.file)
    places = sorted(set(found.values()))
    if len(places) > 1:
        listed = "\n".join(f"  {place}:{line}" for place in places)
        raise UserError(f"{file}:{line}: files of this name lie in {len(places)} places; write the path:\n{listed}")
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
        for stage, output, kind in _FILES:
            if stage in ("ingest", "collect") and output in ("preferences", "heldout", "prompts"):
                model: type[PromptRow] | type[PreferenceRow] = PromptRow if kind == "prompt" else PreferenceRow
                for row in run.rows(number, stage, output, model):
                    if row.source.line is not None:
                        lines.setdefault(row.source.file, []).append(row.source.line)
    of_file = {name: numbers for name, numbers in lines.items() if same_file(file, name)}
    if not of_file:
        return f"{file}:{line}: no row of {run.run_dir} comes from this file; they come from {', '.join(sorted(lines))}"
    name, numbers = next(iter(of_file.items()))
    return (
        f"{file}:{line}: no row of {run.run_dir} comes from this line of {name}: its rows are lines {min(numbers):,} "
        f"to {max(numbers):,}; a line between them that is no row's is blank, or of a row that spans several"
    )
