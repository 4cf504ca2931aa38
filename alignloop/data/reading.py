"""Users' files -> our rows. A bad row is kept aside with its place and reason, never skipped in silence.

file --open_rows--> raw rows --columns.py--> our names --detect--> Form --rows.py--> rows, or RejectedRow

One row at a time, in flat memory; `readers.py` reads whole files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import ValidationError

from alignloop.data.columns import NOTICED, check_columns, in_file, named, refuse_columns
from alignloop.data.forms import FORMS, SFT_FORMS, Form, detect, form_of
from alignloop.data.problems import BadRow, plain_problems, shown, value_at
from alignloop.data.ranked import PlacedRow, check_scored, groups, merged
from alignloop.data.rawfile import RawFile, RawRow, no_rows, open_rows, part_of
from alignloop.data.rows import Maker, Options, has_ids, preference_rows, prompt_rows, sft_rows
from alignloop.data.turns import unchecked
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow, Source

T = TypeVar("T", PreferenceRow, PromptRow, SftRow)
Kind = Literal["preferences", "prompts", "sft"]
DETECT_ROWS = 64
"""Objects looked at to tell the form."""
_MOST_REJECTED = 100_000
"""Rows named, at most, of a file in which none can be read."""
_KINDS: dict[Kind, tuple[tuple[Form, ...], Maker]] = {
    "preferences": (FORMS, preference_rows),
    "prompts": (FORMS, prompt_rows),
    "sft": (SFT_FORMS, sft_rows),
}


@dataclass
class Seen:
    count: int
    first: int


class Reading(Generic[T]):
    """A file being read: go through it once; the counts are those of what was gone through.

    Args:
        form: a form's name; None: the form most of its first rows have.
        span: bytes [start, end) of a JSON-lines file, at line ends. Then `found` names the form of the whole file.

    Attributes:
        num_kept: rows that were read (`num_read == num_kept + num_rejected`). A ranked list, or a dialog with
            `every_turn`, is one of them however many rows come of it.
        seen: form -> its rows. The file's own form is among them, with the rows that look like it.
        num_with_ids: kept rows whose token ids (`chosen_ids`, `rejected_ids`) are left out.
        cut_short: the row at which the file breaks off, though it should go on.

    Raises:
        DataError: no such file or form, or of no known form; a Parquet file or a hub's data set that breaks off.
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
        self.form = _detected(self._raw, kind, self._columns) if name is None else _named(name, self._forms)
        if self.form.grouped:
            self.lines = None
        self.num_read = self.num_kept = self.num_rejected = self.num_with_ids = 0
        self._own = Seen(0, 0)
        self.seen: dict[str, Seen] = {self.form.name: self._own}
        self.cut_short: RejectedRow | None = None

    def __iter__(self) -> Iterator[T | RejectedRow]:
        yield from self._groups() if self.form.grouped else self._singles()
        if not self.num_read:
            raise no_rows(self._raw)

    def mixture(self) -> str | None:
        return mixture_text(self.name, self.unit, self.seen)

    def check_whole(self, rejected: Sequence[RejectedRow] = ()) -> None:
        if (row := self.cut_short) is not None:
            raise DataError(
                f"{self.name}, {self.unit} {row.line}: {row.reason}. What is after it is lost: mend the file",
                rejected=rejected,
            )

    def _singles(self) -> Iterator[T | RejectedRow]:
        for raw in self._raw.rows():
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
        """Rows made of consecutive rows of the file, for forms that group them."""
        rejected: list[RejectedRow] = []
        for group in groups(self._sound(rejected)):
            yield from rejected
            rejected.clear()
            try:
                made = self._made(merged(group), {}, group[0][0])
            except BadRow as bad:
                reason = f"with the rows of its prompt: {bad.field or 'the row'} {bad.reason}"
                for line, row in group:
                    yield self._reject(RawRow(line, row), BadRow(None, reason))
            else:
                self.num_kept += len(group)
                yield from cast("Sequence[T]", made)
        yield from rejected

    def _sound(self, rejected: list[RejectedRow]) -> Iterator[PlacedRow]:
        """Rows that can be read alone; the others are added to `rejected`."""
        for raw in self._raw.rows():
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
        names: Mapping[str, str] = {}
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
        source = unchecked(Source, {"file": self.name, "line": line})
        try:
            return self._make(row, self.form, source, self._options)
        except BadRow as bad:
            raise BadRow(in_file(bad.field, names), bad.reason) from None
        except ValidationError as error:
            raise BadRow(*plain_problems(error)[0]) from None

    def _reject(self, raw: RawRow, bad: BadRow) -> RejectedRow:
        self.num_rejected += 1
        rejected = _rejected(raw, self.name, bad)
        if raw.ends:
            self.cut_short = rejected
        return rejected

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


def mixture_text(name: str, unit: str, seen: Mapping[str, Seen]) -> str | None:
    """A sentence on a file whose rows have several forms; None where they have one."""
    found = {form: rows for form, rows in seen.items() if rows.count}
    if len(found) < 2:
        return None
    parts = [f"{rows.count:,} rows {form} (the first: {unit} {rows.first})" for form, rows in found.items()]
    return f"{name}: a mixture of forms: {', '.join(parts)}. Split it into a file for each form"


def first_objects(
    raw: RawFile, *, columns: Mapping[str, str], prompt_only: bool = False
) -> Iterator[Mapping[str, Any]]:
    """The first `DETECT_ROWS` objects of a file under the names that forms know, but for those that cannot be told."""
    for row in _objects(raw):
        with suppress(BadRow):
            yield named(row, columns=columns, prompt_only=prompt_only).row


def _objects(raw: RawFile) -> Iterator[Mapping[str, Any]]:
    return islice((row.value for row in raw.rows() if type(row.value) is dict), DETECT_ROWS)


def _named(name: str, forms: Sequence[Form]) -> Form:
    found = next((form for form in forms if form.name == name), None)
    if found is None:
        raise DataError(f"form {name!r}: there is no such form; there are {', '.join(form.name for form in forms)}")
    return found


def _detected(raw: RawFile, kind: Kind, columns: Mapping[str, str]) -> Form:
    """The form that most of the first rows have.

    Raises:
        DataError: there is no row, or none of a known form; all rows are named as rejected.
    """
    forms, _ = _KINDS[kind]
    form = detect(first_objects(raw, columns=columns, prompt_only=kind == "prompts"), forms)
    if form is not None:
        return form
    known = "".join(f"\n  - {form.name}: {form.wants}" for form in forms)
    first = next(iter(raw.rows()), None)
    if first is None:
        raise no_rows(raw)
    names = next((list(row) for row in _objects(raw)), None)
    if names is not None:
        found = f"their columns are {', '.join(names)}" if names else "the first has no columns at all"
        what, why = f"{raw.name}: rows of no known form: {found}", "is of no known form"
        known = f"{known}\nWhere only the names differ, give them: data.columns, --column prompt=THEIRS"
    else:
        why = first.problem.reason if first.problem else f"{shown(first.value)} is not a JSON object"
        what = f"{raw.name}, {raw.unit} {first.line}: {why}. No row of the file can be read"

    def problem(row: RawRow) -> BadRow:
        is_object = isinstance(row.value, dict)
        return row.problem or BadRow(None, why if is_object else f"{shown(row.value)} is not a JSON object")

    rejected = [_rejected(row, raw.name, problem(row)) for row in islice(raw.rows(), _MOST_REJECTED)]
    raise DataError(f"{what}. Known forms and their columns:{known}", rejected=rejected)


def _rejected(raw: RawRow, name: str, bad: BadRow) -> RejectedRow:
    return RejectedRow(
        file=name,
        line=raw.line,
        field=bad.field,
        value=value_at(raw.value, bad.field),
        reason=bad.reason,
        text=raw.excerpt(),
    )
