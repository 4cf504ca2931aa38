"""What `data check` and `data convert` found, in lines of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from alignloop.alone.data_check import CheckedFile
from alignloop.data.convert import Converted
from alignloop.data.forms import FORMS, SFT_FORMS
from alignloop.data.tally import QUANTILE_NAMES, AnyRow, Tally, counted, num_repeated, scores_text
from alignloop.records import PreferenceRow, RejectedRow
from alignloop.terminal import printable

WIDTH = 80
LABEL = 12
_KINDS = {"preferences": "preferences", "sft": "dialogs to fine-tune on", "prompts": "prompts"}


def check_text(checked: CheckedFile, *, num_rows: int, num_bad: int) -> str:
    """A file's check.

    Args:
        num_rows: first rows shown as they were read.
        num_bad: rows that cannot be read, shown with their reasons.
    """
    if checked.check is None:
        return "\n".join([checked.name, *_wrapped(str(checked.problem), indent=2)])
    check, tally = checked.check, checked.check.tally
    wants = next((form.wants for form in (*FORMS, *SFT_FORMS) if form.name == check.form), "")
    lines = [check.name]
    lines += _field("form", f"{check.form}: {wants}; read as {_KINDS[check.kind]}")
    if check.mixture is not None:
        lines += _field("MIXTURE", check.mixture.removeprefix(f"{check.name}: "))
    lines += _field("rows", _counts(tally))
    lines += _lengths(checked, tally)
    lines += _field("turns", _turns(tally))
    lines += _field("repeated", _repeated(tally))
    if check.kind == "preferences" and tally.num_rows:
        lines += _field("strengths", counted(tally.strengths))
        annotators = [f"by {counted(tally.annotators)}", f"{tally.edited:,} with an edited completion"]
        lines += _field("annotated", "; ".join(annotators))
        if scores := scores_text(tally.scores["against"], tally.scores["tie"], of=tally.num_rows):
            lines += _field("SCORES", scores)
    if tally.num_with_ids:
        rows = "1 row has" if tally.num_with_ids == 1 else f"{tally.num_with_ids:,} rows have"
        lines += _field("left out", f"{rows} token ids (chosen_ids, rejected_ids): a run tokenises the texts itself")
    if tally.carried:
        lines += _field("not trained", f"{counted(tally.carried_columns)}: columns that are carried along in meta")
    if checked.scripts:
        lines += _field(
            "scripts", ", ".join(f"{name} {share:.0%}" for name, share in list(checked.scripts.items())[:6])
        )
    for row in tally.first[:num_rows]:
        lines += _row_lines(row, check.unit)
    lines += _objective_lines(checked, check.unit)
    if tally.num_rejected:
        lines += _bad_lines(tally, check.unit, num_bad=num_bad)
    return "\n".join(lines)


def _counts(tally: Tally) -> str:
    text = _read_text(tally)
    if tally.num_rows != tally.num_kept:
        text += f"; {tally.num_rows:,} rows come of them"
    return text


def _read_text(counts: Tally | Converted) -> str:
    return f"{counts.num_read:,} read = {counts.num_kept:,} kept + {counts.num_rejected:,} that cannot be read"


def _lengths(checked: CheckedFile, tally: Tally) -> Iterator[str]:
    if not tally.num_rows:
        return
    yield f"{'lengths':<{LABEL}}{'':<24}" + "".join(f"{name:>8}" for name in QUANTILE_NAMES)
    for name, values in checked.lengths.items():
        if name.startswith("prompt") or any(values):
            yield f"{'':<{LABEL}}{name.replace('_', ', '):<24}" + "".join(f"{value:>8,}" for value in values)
    if checked.num_tokenised is not None:
        which = "all rows" if checked.num_tokenised == tally.num_rows else f"{checked.num_tokenised:,} of the rows"
        yield from _field("", f"tokens of {which}, by the tokenizer of {checked.base}")
    elif checked.note is not None:
        yield from _field("", f"no tokens: {checked.note}")


def _turns(tally: Tally) -> str:
    several = sum(count for turns, count in tally.turns.items() if turns > 1)
    longest = max(tally.turns, default=0)
    text = f"{several:,} with several user turns (at most {longest})" if several else "one user turn each"
    return f"{text}; {tally.systems:,} with a system turn"


def _repeated(tally: Tally) -> str:
    return (
        f"{num_repeated(tally.prompts):,} rows whose prompt stood before, "
        f"{num_repeated(tally.rows):,} that stood before whole"
    )


def _row_lines(row: AnyRow, unit: str) -> Iterator[str]:
    yield ""
    yield f"{unit} {row.source.line}, id {_short(row.id, 50)}"
    for message in row.messages:
        yield _labelled(message.role, message.content)
    if isinstance(row, PreferenceRow):
        if row.edited is not None:
            yield _labelled("edited", row.edited)
        yield _labelled("chosen", row.chosen)
        yield _labelled("rejected", row.rejected)
        if row.strength:
            yield f"  {'strength':<{LABEL - 2}}{row.strength}"


def _labelled(label: str, text: str) -> str:
    return f"  {label:<{LABEL - 2}}{_short(text, WIDTH - LABEL)}"


def _objective_lines(checked: CheckedFile, unit: str) -> Iterator[str]:
    if not checked.views or checked.check is None:
        return
    yield ""
    yield f"what each objective would train on of {unit} {checked.check.tally.first[0].source.line}"
    for view in checked.views:
        yield from _field(f"  {view.objective}", view.about)
        if view.dropped is not None:
            yield from _field("", f"LEFT OUT: {view.dropped}")
        for part in view.parts:
            yield from _field(f"    {part.name}", part.facts, width=16)
    yield from _wrapped(f"token by token: alignloop inspect {checked.name}:LINE", indent=2)


def _bad_lines(tally: Tally, unit: str, *, num_bad: int) -> Iterator[str]:
    yield ""
    yield f"{tally.num_rejected:,} rows cannot be read"
    for (name, reason), count in tally.reasons.most_common(8):
        yield from _wrapped(f"{count:>8,}  {f'{name}: ' if name else ''}{reason}", indent=0, rest=10)
    for row in tally.bad[:num_bad]:
        yield from bad_row_lines(row, unit)
    if tally.num_rejected > num_bad:
        yield f"  and {tally.num_rejected - num_bad:,} more: --bad shows more, `data convert` writes them all"


def bad_row_lines(row: RejectedRow, unit: str) -> Iterator[str]:
    """A row that cannot be read: place, reason, value."""
    place = f"{Path(row.file).name}, {unit} {row.line}" + (f", field {row.field}" if row.field else "")
    yield from _wrapped(f"{place}: {row.reason}", indent=2, rest=4)
    found = row.value or row.text
    if found:
        yield f"    found: {_short(found, WIDTH - 11)}"


def converted_text(done: Converted) -> str:
    """What was written."""
    rows = f"{done.num_rows:,} rows  {done.out}"
    forms = [f"  {name}: {form}" for name, form in done.forms.items()]
    mixtures = [line for mixture in done.mixtures for line in _wrapped(mixture, indent=2)]
    rejected = [f"  their places and reasons: {done.rejected}"] if done.rejected is not None else []
    return "\n".join([rows, *forms, *mixtures, f"  {_read_text(done)}", *rejected])


def _field(label: str, text: str, *, width: int = LABEL) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - width, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label if number == 0 else '':<{width}}{line}" for number, line in enumerate(lines)]


def _wrapped(text: str, *, indent: int, rest: int | None = None) -> list[str]:
    lines: list[str] = []
    for line in text.split("\n"):
        later = " " * (indent if rest is None else rest)
        lines += textwrap.wrap(
            line,
            WIDTH,
            initial_indent=" " * indent,
            subsequent_indent=later,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
    return lines


def _short(text: str, room: int) -> str:
    """One line of at most `room` cells; what would steer the terminal as its escape."""
    from rich.cells import cell_len, set_cell_size

    text = text[: 4 * room].replace("\r", "").replace("\n", "↵").replace("\t", " ")
    text = printable(text, keep="")
    return text if cell_len(text) <= room else set_cell_size(text, room - 1) + "…"
