"""`alignloop data check`: files as the readers read them, and what each objective would train on. Nothing is written.

FILES --check_file--> FileCheck --with a tokenizer: lengths in tokens, views of the first row--> lines, JSON
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.chat.tool_turns import uses_tools
from alignloop.data.check_files import FileCheck, check_file
from alignloop.data.convert import Converted
from alignloop.data.forms import FORMS, SFT_FORMS
from alignloop.data.reading import Kind
from alignloop.data.rows import Options
from alignloop.data.tally import (
    QUANTILE_NAMES,
    AnyRow,
    Tally,
    counted,
    num_repeated,
    quantiles,
    scores_text,
    scripts_of,
    shares,
)
from alignloop.errors import DataError, ModelError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow
from alignloop.terminal import printable

if TYPE_CHECKING:
    from alignloop.look.setting import Setting
    from alignloop.look.views import View

NO_BASE = "none"
"""`--base none`: no tokenizer is loaded."""
NUM_TOKENISED = 500
"""Rows of the sample that are tokenised for the quantiles."""
WIDTH = 80
LABEL = 12
_KINDS = {"preferences": "preferences", "sft": "dialogs to fine-tune on", "prompts": "prompts"}


@dataclass(frozen=True)
class CheckedFile:
    """A file with what is known of it.

    Attributes:
        problem: why the file cannot be read at all; then there is no check.
        lengths: `prompt_characters`, `completion_characters`, and where there is a tokenizer the same in `_tokens`:
            least, 5 %, median, 95 %, most. Of a preference the longer completion counts.
        num_tokenised: rows whose tokens were counted; None without a tokenizer.
        views: what each objective would train on of the first row.
        note: why there are no figures in tokens; None where there are.
    """

    name: str
    check: FileCheck | None = None
    problem: DataError | None = None
    scripts: dict[str, float] | None = None
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_tokenised: int | None = None
    views: tuple[View, ...] = ()
    base: str | None = None
    note: str | None = None

    @property
    def is_good(self) -> bool:
        return self.check is not None and self.check.is_good


def check_alone(
    files: Sequence[str],
    *,
    kind: Kind | None,
    form: str | None,
    options: Options,
    base: str | None,
    chat_template: str | None,
    workers: int | None = None,
) -> list[CheckedFile]:
    """Check files one by one; one that cannot be read does not hide the next.

    `base` is the model whose tokenizer counts tokens; None: the quickstart's; `none`: no tokens are counted.
    """
    checked = []
    for file in files:
        try:
            check = check_file(file, kind=kind, form=form, options=options, workers=workers)
        except DataError as error:
            checked.append(CheckedFile(file, problem=error))
            continue
        tally = check.tally
        rows = [row for _, row in sorted(tally.sample, key=lambda item: item[0])]
        scripts = shares(scripts_of("\n".join(_texts(row))) for row in rows)
        characters = {"prompt": tally.prompt_characters, "completion": tally.completion_characters}
        lengths = {f"{name}_characters": quantiles(counts) for name, counts in characters.items()}
        one = CheckedFile(file, check, scripts=scripts, lengths=lengths)
        checked.append(_with_tokens(one, rows, base=base, chat_template=chat_template))
    return checked


def _texts(row: AnyRow) -> list[str]:
    texts = [message.content for message in row.messages]
    return [*texts, row.chosen, row.rejected] if isinstance(row, PreferenceRow) else texts


def _with_tokens(
    checked: CheckedFile, rows: Sequence[AnyRow], *, base: str | None, chat_template: str | None
) -> CheckedFile:
    first = next(iter(checked.check.tally.first), None) if checked.check is not None else None
    if first is None:
        return replace(checked, note="no row to tokenise")
    if base == NO_BASE:
        return replace(checked, note="without a base, nothing is tokenised")
    from alignloop.look.setting import find_setting
    from alignloop.look.views import views_of

    try:
        setting = find_setting(Path(checked.name), base=base or "quickstart", chat_template=chat_template, config=None)
        tokens = _token_lengths(rows[:NUM_TOKENISED], setting)
        views = () if isinstance(first, PromptRow) else views_of(first, setting, objective=None, train_on=None)
    except ModelError as error:
        return replace(checked, note=str(error))
    return replace(
        checked,
        lengths=checked.lengths | tokens,
        num_tokenised=min(len(rows), NUM_TOKENISED),
        views=tuple(views),
        base=setting.base,
    )


def _token_lengths(rows: Sequence[AnyRow], setting: Setting) -> dict[str, tuple[int, ...]]:
    prompts, completions = [], []
    for row in rows:
        messages, texts = row.messages, []
        if isinstance(row, PreferenceRow):
            texts = [row.best, row.rejected]
        elif isinstance(row, SftRow):
            messages, texts = messages[:-1], [messages[-1].content]
        try:
            prompts.append(len(setting.chat.prompt_ids(messages)))
        except ModelError as error:
            raise ModelError(f"{row.source}: {error}" if uses_tools(messages) else str(error)) from error
        if texts:
            completions.append(max(len(setting.chat.completion(text).token_ids) for text in texts))
    return {"prompt_tokens": quantiles(prompts), "completion_tokens": quantiles(completions)}


def as_json(checked: CheckedFile) -> dict[str, Any]:
    """All that is known of a file; the rows that cannot be read are the first 1,000."""
    if checked.check is None:
        assert checked.problem is not None
        rejected = [row.model_dump() for row in checked.problem.rejected]
        return {"file": checked.name, "good": False, "problem": str(checked.problem), "rejected": rejected}
    check, tally = checked.check, checked.check.tally
    lengths: dict[str, Any] = {
        name: dict(zip(QUANTILE_NAMES, values, strict=True)) for name, values in checked.lengths.items()
    }
    if checked.num_tokenised is not None:
        lengths["rows_tokenised"] = checked.num_tokenised
    return {
        "file": check.name,
        "good": check.is_good,
        "kind": check.kind,
        "form": check.form,
        "mixture": {name: vars(seen) for name, seen in tally.seen.items()} if check.mixture else None,
        "read": tally.num_read,
        "kept": tally.num_kept,
        "rejected": tally.num_rejected,
        "rows": tally.num_rows,
        "repeated_prompts": num_repeated(tally.prompts),
        "repeated_rows": num_repeated(tally.rows),
        "user_turns": {str(turns): count for turns, count in sorted(tally.turns.items())},
        "with_system": tally.systems,
        "with_edited": tally.edited,
        "strengths": dict(tally.strengths),
        "annotators": dict(tally.annotators),
        "scores_against_choice": tally.scores["against"],
        "scores_tied": tally.scores["tie"],
        "with_ids_left_out": tally.num_with_ids,
        "carried": dict(tally.carried_columns),
        "scripts": checked.scripts,
        "lengths": lengths,
        "objectives": [
            {
                "name": view.objective,
                "about": view.about,
                "parts": [(part.name, part.facts) for part in view.parts],
                "dropped": view.dropped,
            }
            for view in checked.views
        ],
        "note": checked.note,
        "first": [row.model_dump() for row in tally.first[:2]],
        "rejected_rows": [row.model_dump() for row in tally.bad],
    }


def check_text(checked: CheckedFile, *, num_rows: int, num_bad: int) -> str:
    """A file's check in lines: the first `num_rows` rows as read, and `num_bad` unreadable ones with reasons."""
    if checked.check is None:
        return "\n".join([checked.name, *_wrapped(str(checked.problem), indent=2)])
    check, tally = checked.check, checked.check.tally
    wants = next((form.wants for form in (*FORMS, *SFT_FORMS) if form.name == check.form), "")
    lines = [check.name, *_field("form", f"{check.form}: {wants}; read as {_KINDS[check.kind]}")]
    if check.mixture is not None:
        lines += _field("MIXTURE", check.mixture.removeprefix(f"{check.name}: "))
    more = f"; {tally.num_rows:,} rows come of them" if tally.num_rows != tally.num_kept else ""
    lines += _field("rows", _read_text(tally) + more)
    lines += _lengths(checked, tally)
    for label, text in _facts(checked, tally):
        lines += _field(label, text)
    for row in tally.first[:num_rows]:
        lines += _row_lines(row, check.unit)
    lines += _objective_lines(checked, check.unit)
    if tally.num_rejected:
        lines += _bad_lines(tally, check.unit, num_bad=num_bad)
    return "\n".join(lines)


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


def _facts(checked: CheckedFile, tally: Tally) -> Iterator[tuple[str, str]]:
    assert checked.check is not None
    several = sum(count for turns, count in tally.turns.items() if turns > 1)
    longest = max(tally.turns, default=0)
    turns = f"{several:,} with several user turns (at most {longest})" if several else "one user turn each"
    yield "turns", f"{turns}; {tally.systems:,} with a system turn"
    prompts, rows = num_repeated(tally.prompts), num_repeated(tally.rows)
    yield "repeated", f"{prompts:,} rows whose prompt stood before, {rows:,} that stood before whole"
    if checked.check.kind == "preferences" and tally.num_rows:
        yield "strengths", counted(tally.strengths)
        yield "annotated", f"by {counted(tally.annotators)}; {tally.edited:,} with an edited completion"
        if scores := scores_text(tally.scores["against"], tally.scores["tie"], of=tally.num_rows):
            yield "SCORES", scores
    if tally.num_with_ids:
        have = "1 row has" if tally.num_with_ids == 1 else f"{tally.num_with_ids:,} rows have"
        yield "left out", f"{have} token ids (chosen_ids, rejected_ids): a run tokenises the texts itself"
    if tally.carried:
        yield "not trained", f"{counted(tally.carried_columns)}: columns that are carried along in meta"
    if checked.scripts:
        yield "scripts", ", ".join(f"{name} {share:.0%}" for name, share in list(checked.scripts.items())[:6])


def _row_lines(row: AnyRow, unit: str) -> Iterator[str]:
    texts: list[tuple[str, str]] = [(message.role, message.content) for message in row.messages]
    if isinstance(row, PreferenceRow):
        texts += [] if row.edited is None else [("edited", row.edited)]
        texts += [("chosen", row.chosen), ("rejected", row.rejected)]
        texts += [("strength", row.strength)] if row.strength else []
    yield ""
    yield f"{unit} {row.source.line}, id {_short(row.id, 50)}"
    for label, text in texts:
        yield f"  {label:<{LABEL - 2}}{_short(text, WIDTH - LABEL)}"


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
        yield from _bad_row_lines(row, unit)
    if tally.num_rejected > num_bad:
        yield f"  and {tally.num_rejected - num_bad:,} more: --bad shows more, `data convert` writes them all"


def _bad_row_lines(row: RejectedRow, unit: str) -> Iterator[str]:
    place = f"{Path(row.file).name}, {unit} {row.line}" + (f", field {row.field}" if row.field else "")
    yield from _wrapped(f"{place}: {row.reason}", indent=2, rest=4)
    found = row.value or row.text
    if found:
        yield f"    found: {_short(found, WIDTH - 11)}"


def converted_text(done: Converted) -> str:
    """The report of `data convert`."""
    rows = f"{done.num_rows:,} rows  {done.out}"
    forms = [f"  {name}: {form}" for name, form in done.forms.items()]
    mixtures = [line for mixture in done.mixtures for line in _wrapped(mixture, indent=2)]
    rejected = [f"  their places and reasons: {done.rejected}"] if done.rejected is not None else []
    return "\n".join([rows, *forms, *mixtures, f"  {_read_text(done)}", *rejected])


_wrap = partial(textwrap.wrap, width=WIDTH, break_long_words=False, break_on_hyphens=False)


def _field(label: str, text: str, *, width: int = LABEL) -> list[str]:
    start = f"{label:<{width}}"
    return _wrap(text, initial_indent=start, subsequent_indent=" " * width) or [start]


def _wrapped(text: str, *, indent: int, rest: int | None = None) -> list[str]:
    later = " " * (indent if rest is None else rest)
    wrapped = (_wrap(line, initial_indent=" " * indent, subsequent_indent=later) for line in text.split("\n"))
    return [line for lines in wrapped for line in lines or [""]]


def _short(text: str, room: int) -> str:
    """One line of at most `room` cells, with terminal control characters escaped."""
    from rich.cells import cell_len, set_cell_size

    text = text[: 4 * room].replace("\r", "").replace("\n", "↵").replace("\t", " ")
    text = printable(text, keep="")
    return text if cell_len(text) <= room else set_cell_size(text, room - 1) + "…"
