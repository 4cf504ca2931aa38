"""A file looked at whole: what form and kind its rows have, and a tally of them. Long files by several processes.

file --guess_kind--> preferences, SFT rows or prompts --Reading--> Tally --FileCheck--> text or JSON
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignloop.data.opened import open_bytes
from alignloop.data.problems import BadRow
from alignloop.data.ranked import LISTS
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import DETECT_ROWS, Kind, Reading, mixture_text
from alignloop.data.rows import Options
from alignloop.data.sft_forms import SFT_FORMS
from alignloop.data.tables import HUB
from alignloop.data.tally import Tally
from alignloop.errors import DataError

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
    kind = kind or guess_kind(file)
    reading: Reading[Any] = Reading(file, kind, form=form, options=options)
    spans = _spans(file, reading.unit, workers if workers is not None else _num_cores())
    tally = Tally()
    if len(spans) < 2:
        tally.count(reading)
    else:
        parts = [_Part(str(file), kind, form, reading.form.name, options, span) for span in spans]
        tally = _count_parts(parts)
    return FileCheck(reading.name, kind, reading.form.name, reading.unit, tally)


def guess_kind(file: Path | str) -> Kind:
    """What the first rows are: preferences, else dialogs that end with an answer, else prompts.

    Raises:
        DataError: the file cannot be read.
    """
    rows = (raw.value for raw in open_rows(file).rows if type(raw.value) is dict)
    votes: Counter[Kind] = Counter()
    for row in islice(rows, DETECT_ROWS):
        if not row.keys().isdisjoint({"chosen", "rejected", *LISTS}) or type(row.get("output")) is list:
            votes["preferences"] += 1
        else:
            votes["sft" if _is_sft(row) else "prompts"] += 1
    return max(votes, key=lambda kind: votes[kind]) if votes else "preferences"


def _is_sft(row: dict[str, object]) -> bool:
    for form in SFT_FORMS:
        if form.matches(row):
            try:
                return form.compare(row).dialog[-1].role == "assistant"
            except (BadRow, IndexError):
                return False
    return False


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
    return tally, _num_lines(Path(part.file).expanduser(), part.span)


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


def _spans(file: Path | str, unit: str, workers: int) -> list[tuple[int, int]]:
    """Parts of a JSON-lines file that end at line ends; one for each process that is worth it."""
    if (
        unit != "line"
        or workers < 2
        or str(file).startswith(HUB)
        or "fork" not in multiprocessing.get_all_start_methods()
    ):
        return []
    path = Path(file).expanduser()
    with open_bytes(path, str(file)) as stream:
        if stream.name != str(path):  # decompressed: it can only be read from its start
            return []
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
