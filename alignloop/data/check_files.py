"""A file looked at whole: what form and kind its rows have, and a tally of them. Long files by several processes.

file --guess_kind--> preferences, SFT rows or prompts --Reading--> Tally --FileCheck--> text or JSON
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignloop.data.files import open_bytes
from alignloop.data.forms import SFT_FORMS, compares, form_of
from alignloop.data.problems import BadRow
from alignloop.data.ranked import ANSWERS, LISTS
from alignloop.data.rawfile import open_rows
from alignloop.data.reading import Kind, Reading, first_objects, mixture_text
from alignloop.data.rows import Options
from alignloop.data.tally import Tally
from alignloop.errors import DataError

_COMPARED = frozenset({"chosen", "rejected", *LISTS}) - {ANSWERS}
MIN_PART = 8 * 2**20
"""Bytes for which another process is worth its start."""


@dataclass(frozen=True)
class FileCheck:
    """A file as it was read: `form` is that of most of its rows, `unit` what is counted (lines, elements or rows)."""

    name: str
    kind: Kind
    form: str
    unit: str
    tally: Tally

    @property
    def mixture(self) -> str | None:
        return mixture_text(self.name, self.unit, self.tally.seen)

    @property
    def is_good(self) -> bool:
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

    Without a `kind`, rows are read as what most of the first ones are. Without `workers`, a long JSON-lines file gets a
    process for each core; the result is the same.

    Raises:
        DataError: the file cannot be read, or is of no known form.
    """
    options = options or Options()
    kind = kind or guess_kind(file, columns=options.columns)
    reading: Reading[Any] = Reading(file, kind, form=form, options=options)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spans = _spans(reading.lines, workers)
    tally = Tally()
    try:
        if len(spans) < 2:
            tally.count(reading)
        else:
            count_part = partial(_count_part, file, kind, form, options, reading.form.name)
            # Forked children hash texts alike, so that what is repeated is known over all parts.
            with ProcessPoolExecutor(len(spans), mp_context=multiprocessing.get_context("fork")) as pool:
                lines = 0
                for part, num_lines in pool.map(count_part, spans):
                    tally.add(part, lines=lines)
                    lines += num_lines
            if reading.lines is not None and reading.lines.stat().st_size != spans[-1][1]:
                raise DataError(f"{file}: its size changed while it was read: check it again")
    except BrokenProcessPool:
        raise DataError(
            f"{file}: a process that read a part of it died (out of memory?); check it with --workers 1"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}. Is the file whole?") from None
    return FileCheck(reading.name, kind, reading.form.name, reading.unit, tally)


def guess_kind(file: Path | str, *, columns: Mapping[str, str] | None = None) -> Kind:
    """What most of the first rows are: preferences, dialogs that end with an answer, or prompts.

    Rows that cannot be read do not count where others can.

    Raises:
        DataError: the file cannot be read.
    """
    sure: Counter[Kind] = Counter()
    has_broken = False
    for row in first_objects(open_rows(file), columns=columns or {}):
        try:
            sure[_kind_of(row)] += 1
        except BadRow:
            has_broken = True
    if sure:
        return max(sure, key=lambda kind: sure[kind])
    return "sft" if has_broken else "preferences"


def _kind_of(row: Mapping[str, Any]) -> Kind:
    if not row.keys().isdisjoint(_COMPARED) or compares(row):
        return "preferences"
    form = form_of(row, SFT_FORMS)
    dialog = form.parts(row, False).messages if form is not None else []
    return "sft" if dialog and dialog[-1].role == "assistant" else "prompts"


def _count_part(
    file: Path | str, kind: Kind, form: str | None, options: Options, found: str, span: tuple[int, int]
) -> tuple[Tally, int]:
    tally = Tally()
    reading: Reading[Any] = Reading(file, kind, form=form, options=options, span=span, found=found)
    try:
        tally.count(reading)
    except DataError:
        if reading.num_read:
            raise  # otherwise a part of blank lines, which another part makes up for
    num_lines, left = 0, span[1] - span[0]
    with (reading.lines or Path(file)).open("rb") as stream:
        stream.seek(span[0])
        while left > 0 and (block := stream.read(min(left, 2**20))):
            num_lines += block.count(b"\n")
            left -= len(block)
    return tally, num_lines


def _spans(path: Path | None, workers: int) -> list[tuple[int, int]]:
    """Parts of a JSON-lines file that end at line ends, one for each process worth its start; none without a path."""
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
