"""A file looked at whole: what form and kind its rows have, and a tally of them. Long files by several processes.

file --guess_kind--> preferences, SFT rows or prompts --Reading--> Tally --FileCheck--> text or JSON
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.data.file_kinds import open_bytes
from alignloop.data.forms import form_of
from alignloop.data.problems import BadRow
from alignloop.data.ranked import ANSWERS, LISTS
from alignloop.data.rawfile import open_rows
from alignloop.data.reading import Kind, Reading, first_objects, mixture_text
from alignloop.data.rows import Options
from alignloop.data.sft_forms import SFT_FORMS, compares
from alignloop.data.tally import Tally
from alignloop.errors import DataError

_COMPARED = frozenset({"chosen", "rejected", *LISTS}) - {ANSWERS}
MIN_PART = 8 * 2**20
"""Bytes for which another process is worth its start."""


@dataclass(frozen=True)
class FileCheck:
    """A file as it was read.

    Attributes:
        kind: what its rows are read as.
        form: the form of most of its rows.
        unit: what places count: lines, elements or rows.
    """

    name: str
    kind: Kind
    form: str
    unit: str
    tally: Tally

    @property
    def mixture(self) -> str | None:
        """What to say of rows of several forms."""
        return mixture_text(self.name, self.unit, self.tally.seen)

    @property
    def is_good(self) -> bool:
        """Whether every row can be read."""
        return not self.tally.num_rejected


def check_file(
    file: Path | str,
    *,
    kind: Kind | None = None,
    form: str | None = None,
    options: Options | None = None,
    workers: int | None = None,
) -> FileCheck:
    """Read a whole file and count what is in it; 24 bytes of memory a row, of its hashes and lengths.

    Args:
        kind: what to read the rows as; None: what most of the first rows are.
        workers: processes for a long JSON-lines file; None: one for each core there is. The result is the same.

    Raises:
        DataError: the file cannot be read, or is of no known form.
    """
    options = options or Options()
    kind = kind or guess_kind(file, columns=options.columns)
    reading: Reading[Any] = Reading(file, kind, form=form, options=options)
    try:
        return _checked(file, reading, kind, form, options, workers)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}. Is the file whole?") from None


def _checked(
    file: Path | str, reading: Reading[Any], kind: Kind, form: str | None, options: Options, workers: int | None
) -> FileCheck:
    spans = _spans(reading.lines, workers if workers is not None else _num_cores())
    tally = Tally()
    if len(spans) < 2:
        tally.count(reading)
    else:
        parts = [_Part(str(file), kind, form, reading.form.name, options, span) for span in spans]
        tally = _count_parts(parts)
        if reading.lines is not None and reading.lines.stat().st_size != spans[-1][1]:
            raise DataError(f"{file}: its size changed while it was read: check it again")
    return FileCheck(reading.name, kind, reading.form.name, reading.unit, tally)


def guess_kind(file: Path | str, *, columns: Mapping[str, str] | None = None) -> Kind:
    """What most of the first rows are: preferences, dialogs that end with an answer, or prompts.

    Rows that cannot be read have no say where others can.

    Raises:
        DataError: the file cannot be read.
    """
    sure: Counter[Kind] = Counter()
    broken: Counter[Kind] = Counter()
    for row in first_objects(open_rows(file), columns=columns or {}):
        try:
            sure[_kind_of(row)] += 1
        except BadRow:
            broken["sft"] += 1
    votes = sure or broken
    return max(votes, key=lambda kind: votes[kind]) if votes else "preferences"


def _kind_of(row: Mapping[str, Any]) -> Kind:
    if not row.keys().isdisjoint(_COMPARED) or compares(row):
        return "preferences"
    form = form_of(row, SFT_FORMS)
    dialog = form.parts(row, False).messages if form is not None else []
    return "sft" if dialog and dialog[-1].role == "assistant" else "prompts"


@dataclass(frozen=True)
class _Part:
    file: str
    kind: Kind
    form: str | None
    found: str
    options: Options | None
    span: tuple[int, int]


def _count_part(part: _Part) -> tuple[Tally, int]:
    """A part's tally and its number of lines."""
    tally = Tally()
    reading: Reading[Any] = Reading(
        part.file, part.kind, form=part.form, options=part.options, span=part.span, found=part.found
    )
    try:
        tally.count(reading)
    except DataError:
        if reading.num_read:
            raise  # otherwise a part of blank lines, which another part makes up for
    return tally, _num_lines(reading.lines or Path(part.file), part.span)


def _count_parts(parts: Sequence[_Part]) -> Tally:
    # Forked children hash texts alike, so that what is repeated is known over all parts.
    context = multiprocessing.get_context("fork")
    whole, lines = Tally(), 0
    try:
        with ProcessPoolExecutor(len(parts), mp_context=context) as pool:
            for tally, num_lines in pool.map(_count_part, parts):
                whole.add(tally, lines=lines)
                lines += num_lines
    except BrokenProcessPool:
        raise DataError(
            f"{parts[0].file}: a process that read a part of it died (out of memory?); check it with --workers 1"
        ) from None
    return whole


def _spans(path: Path | None, workers: int) -> list[tuple[int, int]]:
    """Parts of a JSON-lines file that end at line ends; one for each process that is worth it.

    Args:
        path: of a file that can be read in parts; None for others.
    """
    if path is None or workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return []
    with open_bytes(path, str(path)) as stream:
        size = path.stat().st_size
        num_parts = min(workers, size // MIN_PART)
        starts = [0]
        for part in range(1, num_parts):
            stream.seek(part * size // num_parts)
            stream.readline()
            if starts[-1] < stream.tell() < size:
                starts.append(stream.tell())
    return list(zip(starts, [*starts[1:], size], strict=True))


def _num_lines(path: Path, span: tuple[int, int]) -> int:
    num_lines, left = 0, span[1] - span[0]
    with path.open("rb") as stream:
        stream.seek(span[0])
        while left > 0 and (block := stream.read(min(left, 2**20))):
            num_lines += block.count(b"\n")
            left -= len(block)
    return num_lines


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
