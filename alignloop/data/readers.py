"""Users' files -> our rows. A bad row is kept aside with its place and reason, never skipped in silence.

files --read_raw--> raw rows --detect--> Form --_preference / _prompt--> rows + rejected
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from alignloop.data.forms import FORMS, Form, RawObject, detect
from alignloop.data.problems import BadRow, check_text, plain_problems, shown
from alignloop.data.rawfile import RawFile, RawRow, read_raw
from alignloop.errors import DataError
from alignloop.records import STRENGTHS, Message, PreferenceRow, PromptRow, RejectedRow, Row, Source

T = TypeVar("T", PreferenceRow, PromptRow)
_DETECT_ROWS = 64
_MAX_DEPTH = 64


@dataclass(frozen=True)
class ReadResult(Generic[T]):
    """What was read.

    Attributes:
        rows: readable rows, files in the order given, rows in file order; ids are unique.
        rejected: unreadable ones with file, line, field and reason.
        forms: file as given -> name of the form its rows have.
    """

    rows: list[T]
    rejected: list[RejectedRow]
    forms: dict[str, str]


def read_preferences(files: Sequence[Path | str], *, max_bad_fraction: float) -> ReadResult[PreferenceRow]:
    """Read preference files (canonical or ShareGPT rows, as JSON lines or one JSON array).

    A given `id` is kept; a row without one gets a hash of its content and its line. An id that was seen before,
    in this file or an earlier one, gets `~2`, `~3`, ...: files numbered from 0 can be read together.

    Raises:
        DataError: a file is missing, empty, of no known form or without a readable row, or more than
            `max_bad_fraction` of all rows are bad.
    """
    return _read(files, _preference, max_bad_fraction)


def read_prompts(files: Sequence[Path | str], *, max_bad_fraction: float) -> ReadResult[PromptRow]:
    """Read files of prompts: the same forms, of which only the dialog up to the completion is read.

    Columns of completions (`chosen`, `rejected`, `edited`, `strength`) are left out of `meta`.

    Raises:
        DataError: as `read_preferences`.
    """
    return _read(files, _prompt, max_bad_fraction)


def _read(
    files: Sequence[Path | str], make: Callable[[RawObject, Form, Source], T], max_bad_fraction: float
) -> ReadResult[T]:
    rows: list[T] = []
    rejected: list[RejectedRow] = []
    forms: dict[str, str] = {}
    units: dict[str, str] = {}
    for raw in map(read_raw, files):
        form = _form_of(raw)
        forms[raw.name], units[raw.name] = form.name, raw.unit
        good, bad = _read_file(raw, form, make)
        if not good:
            what = "its one row cannot be read" if len(bad) == 1 else f"none of its {len(bad)} rows can be read"
            raise DataError(
                f"{raw.name}: {what}\n{_reasons(bad, units)}\nMend the rows, or name another file", rejected=bad
            )
        rows += good
        rejected += bad
    num_rows = len(rows) + len(rejected)
    if rejected and len(rejected) / num_rows > max_bad_fraction:
        raise DataError(
            f"{', '.join(forms)}: {len(rejected)} of {num_rows} rows ({len(rejected) / num_rows:.1%}) cannot be read; "
            f"the limit is {max_bad_fraction:.1%} (data.max_bad_fraction)\n{_reasons(rejected, units)}\n"
            "Mend the rows, or raise data.max_bad_fraction to go on without them",
            rejected=rejected,
        )
    return ReadResult(_with_unique_ids(rows), rejected, forms)


def _form_of(raw: RawFile) -> Form:
    objects = [row.value for row in raw.rows if isinstance(row.value, dict)]
    form = detect(objects[:_DETECT_ROWS])
    if form is not None:
        return form
    known = "".join(f"\n  - {form.name}: {form.wants}" for form in FORMS)
    first = raw.rows[0]
    if objects:
        found = f"their columns are {', '.join(objects[0])}" if objects[0] else "the first has no columns at all"
        what, why = f"{raw.name}: rows of no known form: {found}", "is of no known form"
    else:
        why = first.problem.reason if first.problem else _no_object(first.value)
        what = f"{raw.name}, {raw.unit} {first.line}: {why}. No row of the file can be read"
    raise DataError(f"{what}. Known forms and their columns:{known}", rejected=_all_rejected(raw, why))


def _reason(row: RawRow, why: str) -> str:
    if row.problem is not None:
        return row.problem.reason
    return why if isinstance(row.value, dict) else _no_object(row.value)


def _no_object(value: object) -> str:
    return f"{shown(value)} is not a JSON object"


def _all_rejected(raw: RawFile, why: str) -> list[RejectedRow]:
    """Every row of a file that has no form: with its own problem where it has one, else with `why`."""
    return [
        RejectedRow(
            file=raw.name,
            line=row.line,
            field=row.problem.field if row.problem else None,
            reason=_reason(row, why),
            text=row.excerpt(),
        )
        for row in raw.rows
    ]


def _read_file(
    raw: RawFile, form: Form, make: Callable[[RawObject, Form, Source], T]
) -> tuple[list[T], list[RejectedRow]]:
    good: list[T] = []
    bad: list[RejectedRow] = []
    for row in raw.rows:
        try:
            good.append(_row(row, raw.name, form, make))
        except BadRow as verdict:
            bad.append(
                RejectedRow(
                    file=raw.name, line=row.line, field=verdict.field, reason=verdict.reason, text=row.excerpt()
                )
            )
    return good, bad


def _row(row: RawRow, file: str, form: Form, make: Callable[[RawObject, Form, Source], T]) -> T:
    if row.problem is not None:
        raise row.problem
    if not isinstance(row.value, dict):
        raise BadRow(None, f"must be a JSON object, found {shown(row.value)}")
    try:
        return make(row.value, form, Source(file=file, line=row.line))
    except ValidationError as error:
        field, sentence = plain_problems(error)[0]
        raise BadRow(field, sentence) from None


def _preference(row: RawObject, form: Form, source: Source) -> PreferenceRow:
    completions = form.completions(row)
    messages = _checked_dialog(form.dialog(row))
    edited = completions.edited
    if edited is not None and edited.strip() == completions.rejected.strip():
        raise BadRow("edited", "is the same text as rejected: the order edited > chosen > rejected contradicts itself")
    if edited is not None and edited.strip() == completions.chosen.strip():
        edited = None  # an annotator who changed nothing edited nothing
    dialog = [[message.role, message.content] for message in messages]
    return PreferenceRow(
        id=_id(row, [dialog, completions.chosen, completions.rejected, edited], source),
        messages=messages,
        chosen=completions.chosen,
        rejected=completions.rejected,
        edited=edited,
        strength=_strength(row.get("strength")),
        source=source,
        annotator=check_text(row["annotator"], "annotator") if row.get("annotator") is not None else "human",
        meta=_meta(row, form),
    )


def _prompt(row: RawObject, form: Form, source: Source) -> PromptRow:
    messages = _checked_dialog(form.dialog(row))
    dialog = [[message.role, message.content] for message in messages]
    return PromptRow(id=_id(row, dialog, source), messages=messages, source=source, meta=_meta(row, form))


def _checked_dialog(messages: list[Message]) -> list[Message]:
    last = messages[-1]
    if last.role != "user":
        raise BadRow(f"messages[{len(messages) - 1}]", f"the last turn must be the user's, not the {last.role}'s")
    if not last.content.strip():
        raise BadRow("prompt", "is empty: the last user turn has no text")
    return messages


def _strength(value: object) -> Any:
    """The strength in our spelling (`Significantly better` is the paper's)."""
    if value is None or value == "":
        return None
    name = check_text(value, "strength").strip().lower().replace(" ", "_").replace("-", "_")
    if name not in STRENGTHS:
        raise BadRow("strength", f"unknown strength {value!r}; allowed: {', '.join(STRENGTHS)} (or leave it out)")
    return name


def _id(row: RawObject, content: object, source: Source) -> str:
    given = row.get("id")
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if given is not None and given != "":
        return check_text(given, "id")
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:12]
    return f"{digest}-{source.line}"


def _meta(row: RawObject, form: Form) -> dict[str, Any]:
    given = row.get("meta")
    if given is not None and not isinstance(given, Mapping):
        raise BadRow("meta", f"must be an object, found {shown(given)}")
    meta = {name: value for name, value in row.items() if name not in form.columns} | dict(given or {})
    _check_nested(meta, "meta")
    return meta


def _check_nested(value: object, field: str, *, depth: int = 0) -> None:
    """Free columns are carried along and written again: every value in them must be writable."""
    if depth > _MAX_DEPTH:
        raise BadRow(None, f"is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        check_text(value, field)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name, field)
            _check_nested(item, f"{field}.{name}", depth=depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_nested(item, f"{field}[{index}]", depth=depth + 1)


def _with_unique_ids(rows: list[T]) -> list[T]:
    given = {row.id for row in rows}
    last: dict[str, int] = {}
    unique: list[T] = []
    for row in rows:
        name, number = row.id, last.get(row.id, 0) + 1
        if number > 1:
            while f"{row.id}~{number}" in given:
                number += 1
            name = f"{row.id}~{number}"
        last[row.id] = number
        unique.append(row if name == row.id else _renamed(row, name))
    return unique


def _renamed(row: T, name: str) -> T:
    assert isinstance(row, Row)
    return row.model_copy(update={"id": name})


def _reasons(rejected: Sequence[RejectedRow], units: Mapping[str, str]) -> str:
    lines = []
    for row in rejected[:3]:
        field = f", field {row.field}" if row.field else ""
        lines.append(f"  - {row.file}, {units[row.file]} {row.line}{field}: {row.reason}")
    if len(rejected) > 3:
        lines.append(f"  - and {len(rejected) - 3} more")
    return "\n".join(lines)
