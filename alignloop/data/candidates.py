"""Files of candidates -> prompts with the texts to choose among: what `sample` wrote, or rows of the user's own.

A row of the user's: {"prompt" | "messages" | "conversations": ..., "candidates": [text or {"completion": text}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignloop.data.jsonl import load_jsonl
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import read_prompts
from alignloop.data.reading import first_objects
from alignloop.errors import DataError
from alignloop.records import CandidateRow, PromptRow, RejectedRow, candidate_id

COLUMN = "candidates"
OWN_COLUMNS = frozenset({"prompt_id", "completion", "completion_ids"})
HOW = (
    'rows of candidates are {"prompt": text, "candidates": [text, ...]} (`messages` for `prompt`, and '
    '{"completion": text} for a text, will do), or what `alignloop sample` writes'
)


@dataclass(frozen=True)
class ReadCandidates:
    """`rows` of a prompt are adjacent. `has_ids`: alignloop wrote the rows, with token ids; a user's are texts."""

    rows: tuple[CandidateRow, ...]
    has_ids: bool
    rejected: tuple[RejectedRow, ...] = ()


def read_candidates(file: Path, *, max_bad_fraction: float) -> ReadCandidates:
    """Read a file of candidates.

    Raises:
        DataError: no such file, rows of another kind, or more than `max_bad_fraction` of them unreadable.
    """
    first = list(first_objects(open_rows(file), columns={}))
    if any(row.keys() >= OWN_COLUMNS for row in first):
        return ReadCandidates(tuple(_grouped(load_jsonl(file, CandidateRow), file)), has_ids=True)
    if not any(COLUMN in row for row in first):
        found = f"; the columns of its first row are {', '.join(first[0])}" if first else ""
        raise DataError(f"{file}: holds no candidates{found}: {HOW}")
    return _read_texts(file, max_bad_fraction=max_bad_fraction)


def _read_texts(file: Path, *, max_bad_fraction: float) -> ReadCandidates:
    read = read_prompts([file], max_bad_fraction=max_bad_fraction)
    rows: list[CandidateRow] = []
    rejected = list(read.rejected)
    for prompt in read.rows:
        try:
            rows += _candidates(prompt)
        except BadRow as bad:
            line = prompt.source.line
            rejected.append(RejectedRow(file=str(file), line=line, field=bad.field, reason=bad.reason))
    num_rows = len(read.rows) + len(read.rejected)
    if len(rejected) > max_bad_fraction * num_rows:
        first = rejected[0]
        where = f"row {first.line}" + (f", field {first.field}" if first.field else "")
        raise DataError(
            f"{file}: {len(rejected)} of {num_rows} rows cannot be read; the limit is {max_bad_fraction:.1%} "
            f"(data.max_bad_fraction). The first: {where}: {first.reason}. Mend it: {HOW}",
            rejected=rejected,
        )
    return ReadCandidates(tuple(rows), has_ids=False, rejected=tuple(rejected))


def _candidates(prompt: PromptRow) -> list[CandidateRow]:
    """The candidates in a prompt's `meta`; what else is there, and beside a candidate's text, goes to its own."""
    values = prompt.meta.get(COLUMN)
    if not isinstance(values, list):
        raise BadRow(COLUMN, f"must be a list, found {shown(values)}" if values is not None else "is missing")
    if not values:
        raise BadRow(COLUMN, "is empty: there is nothing to choose among")
    beside = {name: value for name, value in prompt.meta.items() if name != COLUMN}
    rows = []
    for k, value in enumerate(values):
        field, text, more = f"{COLUMN}[{k}]", value, {}
        if isinstance(value, Mapping):
            field, text = f"{field}.completion", value.get("completion")
            more = {str(name): item for name, item in value.items() if name != "completion"}
        row = CandidateRow(
            id=candidate_id(prompt.id, round=0, k=k),
            prompt_id=prompt.id,
            messages=prompt.messages,
            completion=check_text(text, field),
            completion_ids=[],
            finish_reason="length" if more.get("finish_reason") == "length" else "stop",
            round=0,
            policy="",
            meta=beside | more,
        )
        rows.append(row)
    return rows


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
