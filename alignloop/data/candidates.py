"""Files of candidates -> prompts with the texts to choose among: what `sample` wrote, or rows of the user's own.

A row of the user's: {"prompt" | "messages" | "conversations": ..., "candidates": [text or {"completion": text}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignloop.data.jsonl import load_jsonl
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import read_prompts
from alignloop.data.reading import first_objects
from alignloop.errors import DataError
from alignloop.records import CandidateRow, Message, RejectedRow

COLUMN = "candidates"
OWN_COLUMNS = frozenset({"prompt_id", "completion", "completion_ids"})
HOW = (
    'rows of candidates are {"prompt": text, "candidates": [text, ...]} (`messages` for `prompt`, and '
    '{"completion": text} for a text, will do), or what `alignloop sample` writes'
)


@dataclass(frozen=True)
class TextCandidate:
    """A candidate that is a text so far; `meta` are the columns beside its text."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPrompt:
    """A prompt of the user's file with its candidates, in file order."""

    id: str
    messages: tuple[Message, ...]
    candidates: tuple[TextCandidate, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class ReadCandidates:
    """What was read: one of `own` and `texts` is empty.

    Attributes:
        own: rows as alignloop writes them, those of a prompt adjacent.
        texts: the user's rows.
        rejected: the user's rows that cannot be read, with line, field and reason.
    """

    own: tuple[CandidateRow, ...] = ()
    texts: tuple[TextPrompt, ...] = ()
    rejected: tuple[RejectedRow, ...] = ()


def read_candidates(file: Path, *, max_bad_fraction: float) -> ReadCandidates:
    """Read a file of candidates.

    Raises:
        DataError: no such file, rows of another kind, or more than `max_bad_fraction` of them unreadable.
    """
    first = list(first_objects(open_rows(file), columns={}))
    if any(row.keys() >= OWN_COLUMNS for row in first):
        return ReadCandidates(own=tuple(_grouped(load_jsonl(file, CandidateRow), file)))
    if not any(COLUMN in row for row in first):
        found = f"; the columns of its first row are {', '.join(first[0])}" if first else ""
        raise DataError(f"{file}: holds no candidates{found}: {HOW}")
    return _read_texts(file, max_bad_fraction=max_bad_fraction)


def _read_texts(file: Path, *, max_bad_fraction: float) -> ReadCandidates:
    read = read_prompts([file], max_bad_fraction=max_bad_fraction)
    texts, rejected = [], list(read.rejected)
    for row in read.rows:
        try:
            candidates = _candidates(row.meta.get(COLUMN))
        except BadRow as bad:
            line = row.source.line
            rejected.append(RejectedRow(file=str(file), line=line, field=bad.field, reason=bad.reason))
            continue
        meta = {name: value for name, value in row.meta.items() if name != COLUMN}
        texts.append(TextPrompt(row.id, tuple(row.messages), candidates, meta))
    num_rows = len(read.rows) + len(read.rejected)
    if len(rejected) > max_bad_fraction * num_rows:
        first = rejected[0]
        where = f"row {first.line}" + (f", field {first.field}" if first.field else "")
        raise DataError(
            f"{file}: {len(rejected)} of {num_rows} rows cannot be read; the limit is {max_bad_fraction:.1%} "
            f"(data.max_bad_fraction). The first: {where}: {first.reason}. Mend it: {HOW}",
            rejected=rejected,
        )
    return ReadCandidates(texts=tuple(texts), rejected=tuple(rejected))


def _candidates(value: object) -> tuple[TextCandidate, ...]:
    if not isinstance(value, list):
        raise BadRow(COLUMN, f"must be a list, found {shown(value)}" if value is not None else "is missing")
    if not value:
        raise BadRow(COLUMN, "is empty: there is nothing to choose among")
    candidates = []
    for index, item in enumerate(value):
        field, text, meta = f"{COLUMN}[{index}]", item, {}
        if isinstance(item, Mapping):
            field, text = f"{field}.completion", item.get("completion")
            meta = {str(name): value for name, value in item.items() if name != "completion"}
        candidates.append(TextCandidate(check_text(text, field), meta))
    return tuple(candidates)


def _grouped(rows: Iterable[CandidateRow], file: Path) -> list[CandidateRow]:
    """Rows of a prompt made adjacent: a file may have been shuffled, or be two files put together.

    Raises:
        DataError: two prompts, or two candidates, have one id.
    """
    by_prompt: dict[str, list[CandidateRow]] = {}
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        group = by_prompt.setdefault(row.prompt_id, [])
        problem = None
        if row.id in seen:
            problem = f"the id {row.id!r} stands in an earlier row, too (files put together?): give each candidate"
        elif group and group[0].messages != row.messages:
            stands = f"prompt_id {row.prompt_id!r} stands for another prompt in an earlier row"
            problem = f"{stands} (files put together?): give each prompt"
        if problem is not None:
            raise DataError(f"{file}, row {number}: {problem} an id of its own, or score the files one by one")
        seen.add(row.id)
        group.append(row)
    return [row for group in by_prompt.values() for row in group]
