"""Users' files -> our rows. A bad row is kept aside with its place and reason, never skipped in silence.

file --open_rows--> raw rows --columns.py--> our names --detect--> Form --rows.py--> rows, or RejectedRow

One at a time: `iter_*`, `Reading`; whole files: `read_*`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import ValidationError

from alignloop.data.built import source
from alignloop.data.columns import NOTICED, check_columns, in_file, named, refuse_columns
from alignloop.data.forms import FORMS, Form, detect, form_of
from alignloop.data.problems import BadRow, plain_problems, shown, value_at
from alignloop.data.rawfile import RawFile, RawRow, no_rows, open_rows, part_of
from alignloop.data.rows import Dialogs, Maker, Options, has_ids, preference_rows, prompt_rows, sft_rows
from alignloop.data.scored import Placed, check_scored, groups, merged
from alignloop.data.sft_forms import SFT_FORMS
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow

T = TypeVar("T", PreferenceRow, PromptRow, SftRow)
Kind = Literal["preferences", "prompts", "sft"]
DETECT_ROWS = 64
"""Objects looked at to tell the form."""
_NO_NAMES: Mapping[str, str] = {}
_MOST_REJECTED = 100_000
"""Rows named, at most, of a file in which none can be read."""
_KINDS: dict[Kind, tuple[tuple[Form, ...], Maker]] = {
    "preferences": (FORMS, preference_rows),
    "prompts": (FORMS, prompt_rows),
    "sft": (SFT_FORMS, sft_rows),
}


@dataclass(frozen=True)
class ReadResult(Generic[T]):
    """What was read.

    Attributes:
        rows: readable rows, files in the order given, rows in file order; ids are unique.
        rejected: unreadable ones with file, line, field, value and reason.
        forms: file as given -> name of the form its rows have.
    """

    rows: list[T]
    rejected: list[RejectedRow]
    forms: dict[str, str]


@dataclass
class Seen:
    """Rows of a form in a file: how many, and the line of the first."""

    count: int
    first: int


class Reading(Generic[T]):
    """A file being read: go through it once; the counts are those of what was gone through.

    Args:
        form: a form's name; None: the form most of its first rows have.
        span: bytes [start, end) of a JSON-lines file, at line ends: a part of it. Then `found` names the form of the
            whole file.

    Attributes:
        num_read: rows of the file, `num_kept + num_rejected`.
        num_kept: those that were read. A ranked list, or a dialog with `every_turn`, is one of them however many
            rows come of it.
        seen: form -> its rows. The file's own form is among them, with the rows that look like it.
        num_with_ids: kept rows whose token ids (`chosen_ids`, `rejected_ids`) are left out.
        cut_short: the row at which the file breaks off, though it should go on.

    Raises:
        DataError: no such file or form, or of no known form.
    """

    def __init__(
        self,
        file: Path | str,
        kind: Kind,
        *,
        form: str | None = None,
        options: Options | None = None,
        span: tuple[int, int] | None = None,
        found: str | None = None,
    ) -> None:
        self.kind = kind
        self._forms, self._make = _KINDS[kind]
        self._options = options or Options()
        self._raw = open_rows(file) if span is None else part_of(file, span)
        self.name, self.unit, self.lines = self._raw.name, self._raw.unit, self._raw.lines
        self._named = form is not None
        name = form or found
        self._prompt_only, self._columns = kind == "prompts", self._options.columns
        if self._columns and span is None:
            check_columns(list(_objects(self._raw)), self._columns, file=self.name)
        self.form = self._found_form() if name is None else _named(name, self._forms)
        if self.form.grouped:
            self.lines = None
        self.num_read = self.num_kept = self.num_rejected = self.num_with_ids = 0
        self._own = Seen(0, 0)
        self.seen: dict[str, Seen] = {self.form.name: self._own}
        self.cut_short: RejectedRow | None = None

    def __iter__(self) -> Iterator[T | RejectedRow]:
        if self.form.grouped:
            yield from self._groups()
        else:
            yield from self._singles()
        if not self.num_read:
            raise no_rows(self._raw)

    def mixture(self) -> str | None:
        """What to say of a file whose rows have several forms."""
        return mixture_text(self.name, self.unit, self.seen)

    def _singles(self) -> Iterator[T | RejectedRow]:
        for raw in self._raw.rows:
            self.num_read += 1
            try:
                row, names = self._object(raw)
                made = self._made(row, names, raw.line)
            except BadRow as bad:
                yield self._reject(raw, bad)
            else:
                self.num_kept += 1
                self.num_with_ids += self.kind == "preferences" and has_ids(row)
                yield from cast("Sequence[T]", made)

    def _groups(self) -> Iterator[T | RejectedRow]:
        """Rows of a form that stands in several of the file's."""
        rejected: list[RejectedRow] = []
        for group in groups(self._sound(rejected)):
            yield from _drained(rejected)
            line, row = group[0]
            try:
                made = self._made(merged(group), {}, line)
            except BadRow as bad:
                for line, row in group:
                    yield self._reject(
                        RawRow(line, row),
                        BadRow(None, f"with the rows of its prompt: {bad.field or 'the row'} {bad.reason}"),
                    )
            else:
                self.num_kept += len(group)
                yield from cast("Sequence[T]", made)
        yield from _drained(rejected)

    def _sound(self, rejected: list[RejectedRow]) -> Iterator[Placed]:
        """Rows that can be read by themselves; the others go to `rejected`."""
        for raw in self._raw.rows:
            self.num_read += 1
            try:
                row, names = self._object(raw)
                try:
                    check_scored(row)
                except BadRow as bad:
                    raise BadRow(in_file(bad.field, names), bad.reason) from None
            except BadRow as bad:
                rejected.append(self._reject(raw, bad))
            else:
                yield raw.line, row

    def _object(self, raw: RawRow) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """A raw row under the names that forms know, and the names; whether it has the file's form is counted."""
        if raw.problem is not None:
            raise raw.problem
        value = raw.value
        if type(value) is not dict:
            raise BadRow(None, f"must be a JSON object, found {shown(value)}")
        names: Mapping[str, str] = _NO_NAMES
        if self._columns or not NOTICED.isdisjoint(value):
            value, names = named(value, columns=self._columns, prompt_only=self._prompt_only)
            refuse_columns(value)
        if self.form.matches(value):
            self._own.count += 1
            if self._own.count == 1:
                self._own.first = raw.line
        elif not self._named:
            self._check_form(value, raw.line)
        return value, names

    def _made(
        self, row: Mapping[str, Any], names: Mapping[str, str], line: int
    ) -> Sequence[PreferenceRow | PromptRow | SftRow]:
        try:
            return self._make(row, self.form, source(self.name, line), self._options)
        except BadRow as bad:
            raise BadRow(in_file(bad.field, names), bad.reason) from None
        except ValidationError as error:
            field, sentence = plain_problems(error)[0]
            raise BadRow(field, sentence) from None

    def _reject(self, raw: RawRow, bad: BadRow) -> RejectedRow:
        self.num_rejected += 1
        rejected = _rejected(raw, self.name, bad)
        if raw.ends:
            self.cut_short = rejected
        return rejected

    def _found_form(self) -> Form:
        form = detect(first_objects(self._raw, columns=self._columns, prompt_only=self._prompt_only), self._forms)
        if form is None:
            raise _no_form(self._raw, self._forms)
        return form

    def _check_form(self, row: Mapping[str, Any], line: int) -> None:
        other = form_of(row, self._forms)
        if other is None or other is self.form or other.weak:
            return
        self.seen.setdefault(other.name, Seen(0, line)).count += 1
        raise BadRow(
            None,
            f"has the form {other.name}, while the file's rows have {self.form.name}: a file holds one form. Split it, "
            "or name the form (data.form, --form)",
        )


def iter_preferences(
    file: Path | str,
    *,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[PreferenceRow | RejectedRow]:
    """The rows of a preference file, one at a time, in flat memory; ids are as in the file, so they may repeat.

    Raises:
        DataError: the file is missing, empty, of no known form, or (a Parquet file, a hub) breaks off.
    """
    reading: Reading[PreferenceRow] = Reading(
        file, "preferences", form=form, options=Options(dialogs, max_characters, columns or {})
    )
    return iter(reading)


def iter_prompts(
    file: Path | str,
    *,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[PromptRow | RejectedRow]:
    """The prompts of a file, as `iter_preferences`; with `every_turn` one for each user turn.

    Raises:
        DataError: as `iter_preferences`.
    """
    reading: Reading[PromptRow] = Reading(
        file, "prompts", form=form, options=Options(dialogs, max_characters, columns or {})
    )
    return iter(reading)


def iter_sft(
    file: Path | str,
    *,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[SftRow | RejectedRow]:
    """Dialogs to fine-tune on, as `iter_preferences`; with `every_turn` one for each assistant turn.

    Of preference files the best completion is the target; rows that alignloop wrote keep all their columns.

    Raises:
        DataError: as `iter_preferences`.
    """
    reading: Reading[SftRow] = Reading(file, "sft", form=form, options=Options(dialogs, max_characters, columns or {}))
    return iter(reading)


def read_preferences(
    files: Sequence[Path | str],
    *,
    max_bad_fraction: float,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> ReadResult[PreferenceRow]:
    """Read preference files of any form in `FORMS`, all rows into memory.

    A given `id` is kept; a row without one gets a hash of its content and its line. An id that was seen before,
    in this file or an earlier one, gets `~2`, `~3`, ...: files numbered from 0 can be read together.

    Raises:
        DataError: a file is missing, empty, cut short, of no known form or without a readable row, or more than
            `max_bad_fraction` of all rows are bad.
    """
    return _read(files, "preferences", max_bad_fraction, form, Options(dialogs, max_characters, columns or {}))


def read_prompts(
    files: Sequence[Path | str],
    *,
    max_bad_fraction: float,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> ReadResult[PromptRow]:
    """Read files of prompts: the same forms, of which only the dialog up to the completion is read.

    Columns of completions (`chosen`, `rejected`, `edited`, `strength`) are left out of `meta`.

    Raises:
        DataError: as `read_preferences`.
    """
    return _read(files, "prompts", max_bad_fraction, form, Options(dialogs, max_characters, columns or {}))


def read_sft(
    files: Sequence[Path | str],
    *,
    max_bad_fraction: float,
    form: str | None = None,
    dialogs: Dialogs = "last_turn",
    max_characters: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> ReadResult[SftRow]:
    """Read files of dialogs to fine-tune on, as `iter_sft`, all rows into memory.

    Raises:
        DataError: as `read_preferences`.
    """
    return _read(files, "sft", max_bad_fraction, form, Options(dialogs, max_characters, columns or {}))


def _read(
    files: Sequence[Path | str], kind: Kind, max_bad_fraction: float, form: str | None, options: Options
) -> ReadResult[T]:
    rows: list[T] = []
    rejected: list[RejectedRow] = []
    readings: list[Reading[T]] = []
    for file in files:
        reading: Reading[T] = Reading(file, kind, form=form, options=options)
        good, bad = _sorted(reading)
        readings.append(reading)
        _check_readable(reading, bad)
        rows += good
        rejected += bad
    num_rows = sum(reading.num_read for reading in readings)
    if rejected and len(rejected) / num_rows > max_bad_fraction:
        names = ", ".join(reading.name for reading in readings)
        mixtures = "".join(f"\n{mixture}" for reading in readings if (mixture := reading.mixture()) is not None)
        raise DataError(
            f"{names}: {len(rejected)} of {num_rows} rows ({len(rejected) / num_rows:.1%}) cannot be read; "
            f"the limit is {max_bad_fraction:.1%} (data.max_bad_fraction)\n{_reasons(rejected, readings)}{mixtures}\n"
            "Mend the rows, or raise data.max_bad_fraction to go on without them",
            rejected=rejected,
        )
    return ReadResult(with_unique_ids(rows), rejected, {reading.name: reading.form.name for reading in readings})


def _sorted(reading: Reading[T]) -> tuple[list[T], list[RejectedRow]]:
    good: list[T] = []
    bad: list[RejectedRow] = []
    for row in reading:
        if type(row) is RejectedRow:
            bad.append(row)
        else:
            good.append(cast("T", row))
    return good, bad


def _check_readable(reading: Reading[T], bad: Sequence[RejectedRow]) -> None:
    if reading.cut_short is not None:
        row = reading.cut_short
        raise DataError(
            f"{reading.name}, {reading.unit} {row.line}: {row.reason}. What is after it is lost: mend the file",
            rejected=bad,
        )
    if not reading.num_kept:
        what = "its one row cannot be read" if len(bad) == 1 else f"none of its {len(bad)} rows can be read"
        raise DataError(
            f"{reading.name}: {what}\n{_reasons(bad, [reading])}\nMend the rows, or name another file", rejected=bad
        )


def mixture_text(name: str, unit: str, seen: Mapping[str, Seen]) -> str | None:
    """What to say of a file whose rows have several forms; None where they have one."""
    found = {form: rows for form, rows in seen.items() if rows.count}
    if len(found) < 2:
        return None
    parts = [f"{rows.count:,} rows {form} (the first: {unit} {rows.first})" for form, rows in found.items()]
    return f"{name}: a mixture of forms: {', '.join(parts)}. Split it into a file for each form"


def _named(name: str, forms: Sequence[Form]) -> Form:
    found = next((form for form in forms if form.name == name), None)
    if found is None:
        raise DataError(f"form {name!r}: there is no such form; there are {', '.join(form.name for form in forms)}")
    return found


def first_objects(
    raw: RawFile, *, columns: Mapping[str, str], prompt_only: bool = False
) -> Iterator[Mapping[str, Any]]:
    """The first `DETECT_ROWS` objects of a file under the names that forms know, but for those that cannot be told."""
    for row in _objects(raw):
        with suppress(BadRow):
            yield named(row, columns=columns, prompt_only=prompt_only).row


def _objects(raw: RawFile) -> Iterator[Mapping[str, Any]]:
    return islice((row.value for row in raw.rows if type(row.value) is dict), DETECT_ROWS)


def _no_form(raw: RawFile, forms: Sequence[Form]) -> DataError:
    known = "".join(f"\n  - {form.name}: {form.wants}" for form in forms)
    first = next(iter(raw.rows), None)
    if first is None:
        return no_rows(raw)
    columns = next((list(row.value) for row in islice(raw.rows, DETECT_ROWS) if type(row.value) is dict), None)
    if columns is not None:
        found = f"their columns are {', '.join(columns)}" if columns else "the first has no columns at all"
        what, why = f"{raw.name}: rows of no known form: {found}", "is of no known form"
        known = f"{known}\nWhere only the names differ, give them: data.columns, --column prompt=THEIRS"
    else:
        why = first.problem.reason if first.problem else _no_object(first.value)
        what = f"{raw.name}, {raw.unit} {first.line}: {why}. No row of the file can be read"
    return DataError(f"{what}. Known forms and their columns:{known}", rejected=_all_rejected(raw, why))


def _drained(rows: list[RejectedRow]) -> list[RejectedRow]:
    found = list(rows)
    rows.clear()
    return found


def _no_object(value: object) -> str:
    return f"{shown(value)} is not a JSON object"


def _all_rejected(raw: RawFile, why: str) -> list[RejectedRow]:
    """Every row of a file that has no form: with its own problem where it has one, else with `why`."""
    found = []
    for row in islice(raw.rows, _MOST_REJECTED):
        reason = why if isinstance(row.value, dict) else _no_object(row.value)
        found.append(_rejected(row, raw.name, row.problem or BadRow(None, reason)))
    return found


def _rejected(raw: RawRow, name: str, bad: BadRow) -> RejectedRow:
    return RejectedRow(
        file=name,
        line=raw.line,
        field=bad.field,
        value=value_at(raw.value, bad.field),
        reason=bad.reason,
        text=raw.excerpt(),
    )


def with_unique_ids(rows: list[T]) -> list[T]:
    """The rows, an id that stood before with `~2`, `~3`, ... behind it."""
    given = {row.id for row in rows}
    if len(given) == len(rows):
        return rows
    last: dict[str, int] = {}
    unique: list[T] = []
    for row in rows:
        name, number = row.id, last.get(row.id, 0) + 1
        if number > 1:
            while f"{row.id}~{number}" in given:
                number += 1
            name = f"{row.id}~{number}"
        last[row.id] = number
        unique.append(row if name == row.id else row.model_copy(update={"id": name}))
    return unique


def _reasons(rejected: Sequence[RejectedRow], readings: Sequence[Reading[T]]) -> str:
    units = {reading.name: reading.unit for reading in readings}
    lines = []
    for row in rejected[:3]:
        field = f", field {row.field}" if row.field else ""
        lines.append(f"  - {row.file}, {units[row.file]} {row.line}{field}: {row.reason}")
    if len(rejected) > 3:
        lines.append(f"  - and {len(rejected) - 3} more")
    return "\n".join(lines)
