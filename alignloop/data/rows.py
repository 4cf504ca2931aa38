"""A raw object of a known form -> our rows. What is wrong with it is raised as a BadRow.

object --Form.compare--> dialog and pairs --checks--> PreferenceRow (one a pair), PromptRow or SftRow (one a turn)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignloop.data.built import preference
from alignloop.data.dialogs import BadTurn, check_dialog
from alignloop.data.forms import Form, Pair, RawObject
from alignloop.data.problems import BadRow, check_nested, check_text, is_clean, shown
from alignloop.data.turns import beside_turns, says_no, system_turn, untrained_turn
from alignloop.records import (
    STRENGTHS,
    ComparedBy,
    FinishReason,
    Message,
    PreferenceRow,
    PromptRow,
    SftRow,
    Source,
    Strength,
)

Dialogs = Literal["last_turn", "every_turn"]
_OWN_SFT = frozenset({"id", "messages", "origin", "source"})
_TURN_COLUMNS = frozenset({"messages", "prompt", "conversations", "chosen", "rejected", "edited", "completion"})
_COMPARED = frozenset({"chosen", "rejected", "edited", "strength", "annotator"})
"""Columns of completions: a prompt carries none of them."""
_LABELS = ("label", "labels", "kto_tag")
"""Whether people want the answer, as files for KTO say it."""
_SPELLINGS: dict[str, Strength] = {name: name for name in STRENGTHS}


@dataclass(frozen=True)
class Options:
    """How rows are made.

    Attributes:
        dialogs: of a dialog with several turns, one row (the last turn) or one a turn.
        max_characters: texts of a row together, at most; None: no limit.
        columns: our name of a column -> the file's, where they differ.
    """

    dialogs: Dialogs = "last_turn"
    max_characters: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def preference_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[PreferenceRow]:
    """One row; of a ranked list one for each completion that is worse than the best.

    Only the last turn was compared, so `every_turn` makes no more of it.
    """
    found = form.compare(row)
    messages = _checked(found.dialog, row, form, ends_with="user")
    strength = row.get("strength")
    strength = strength if strength is None or strength in STRENGTHS else _strength(strength)
    annotator = row.get("annotator")
    annotator = "human" if annotator is None else check_text(annotator, "annotator")
    columns = _ABSENT
    if not _COLUMN_NAMES.isdisjoint(row):
        columns = {name: read(row.get(name), name) for name, read in _COLUMNS.items()}
    if annotator == "simulated" and not row.get("compared_by"):  # the quickstart's own, which is nobody
        columns = columns | {"compared_by": "simulated"}
    meta = _meta(row, form)
    many = len(found.pairs) > 1
    dialog = [part for turn in messages for part in (turn.role, turn.content)]
    rows = []
    for number, pair in enumerate(found.pairs, start=1):
        edited = _checked_pair(pair, messages, options)
        row_id = _id(row, (*dialog, pair.chosen, pair.rejected, edited or ""), source)
        rows.append(
            preference(
                id=f"{row_id}/{number}" if many else row_id,
                messages=messages,
                chosen=pair.chosen,
                rejected=pair.rejected,
                edited=edited,
                strength=strength,
                source=source,
                annotator=annotator,
                **columns,
                meta=meta | dict(pair.meta) if pair.meta else meta,
            )
        )
    return rows


def prompt_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[PromptRow]:
    """The dialog up to the completion; with `every_turn` one row for each of its user turns."""
    messages = _checked(form.dialog(row), row, form, ends_with="user")
    _check_length(messages, (), options)
    meta = {name: value for name, value in _meta(row, form).items() if name not in _COMPARED}
    row_id = _id(row, [part for turn in messages for part in (turn.role, turn.content)], source)
    return [
        PromptRow(id=part_id, messages=part, source=source, meta=meta)
        for part_id, part in _parts(row_id, messages, "user", options)
    ]


def sft_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[SftRow]:
    """The dialog with its target; with `every_turn` one row for each of its assistant turns."""
    if row.keys() >= _OWN_SFT:
        free = {name: _meta_text(row[name]) for name in ("meta", "judge") if type(row.get(name)) is str}
        own = SftRow.model_validate({**row, **free})
        for name, value in own.model_dump().items():
            check_nested(value, name)
        _checked(own.messages, row, form, ends_with="assistant")
        _check_length(own.messages, (), options)
        return [own]
    found = form.compare(row)
    messages = found.dialog
    edited = found.pairs[0].edited if found.pairs else None
    if found.pairs:
        best = found.pairs[0].chosen if edited is None else edited
        messages = [*messages, Message(role="assistant", content=best)]
    else:
        _check_wanted(row)
    messages = _checked(messages, row, form, ends_with="assistant")
    _check_length(messages, (), options)
    meta = _meta(row, form)
    if options.dialogs == "every_turn" and (marked := untrained_turn(meta)):
        raise BadRow(marked, "says that the turn is not to be trained on, and every turn would be: leave such rows out")
    for name in ("strength", "annotator") if found.pairs else ():
        if row.get(name) is not None:
            check_nested(row[name], name)
            meta[name] = row[name]
    row_id = _id(row, [part for turn in messages for part in (turn.role, turn.content)], source)
    origin: Literal["preference", "given"] = "preference" if found.pairs else "given"
    cut = (row.get("finish_reason"), row.get("chosen_finish_reason") if found.pairs and edited is None else None)
    return [
        SftRow(
            id=part_id,
            messages=part,
            origin=origin,
            source=source,
            # Of the last turn: those before it were answered.
            finish_reason="length" if "length" in cut and len(part) == len(messages) else None,
            meta=meta,
        )
        for part_id, part in _parts(row_id, messages, "assistant", options)
    ]


Maker = Callable[[RawObject, Form, Source, Options], Sequence[PreferenceRow | PromptRow | SftRow]]


def _parts(row_id: str, messages: list[Message], role: str, options: Options) -> list[tuple[str, list[Message]]]:
    """(id, dialog up to a turn of `role`): the last alone, or each."""
    ends = [index for index, message in enumerate(messages) if message.role == role]
    if options.dialogs == "last_turn" or len(ends) == 1:
        return [(row_id, messages)]
    return [(f"{row_id}/turn-{number}", messages[: end + 1]) for number, end in enumerate(ends, start=1)]


def _check_wanted(row: RawObject) -> None:
    """Refuse an answer that people did not want: it would be a target like any other."""
    for name in _LABELS:
        value = row.get(name)
        if says_no(value):
            raise BadRow(
                name,
                f"is {str(value).strip().lower()}: people did not want this answer, and it would be a target to "
                "fine-tune on. `alignloop data convert` leaves such rows out",
            )


def _checked(
    dialog: list[Message], row: RawObject, form: Form, *, ends_with: Literal["user", "assistant"]
) -> list[Message]:
    """The dialog with the row's system column in front, and without a system turn that says nothing."""
    messages, moved = dialog, 0
    if dialog and dialog[0].role == "system" and (not dialog[0].content or dialog[0].content.isspace()):
        messages, moved = dialog[1:], -1
    if "system" in row and (system := system_turn(row)):
        if not messages or messages[0].role != "system":
            messages, moved = [*system, *messages], moved + 1
        elif messages[0].content.strip() != system[0].content.strip():
            raise BadRow("system", "stands beside a system turn that says something else: give one of the two")
    try:
        check_dialog(messages, ends_with=ends_with)
    except BadTurn as bad:
        own = bad.index - moved
        raise BadRow("system" if own < 0 else form.place(row)(own), bad.reason) from None
    return messages


def _checked_pair(pair: Pair, messages: Sequence[Message], options: Options) -> str | None:
    """The edited completion; None where there is none, or where the annotator changed nothing."""
    edited, rejected, chosen = pair.edited, pair.rejected.strip(), pair.chosen.strip()
    if chosen == rejected:
        raise BadRow(None, "chosen and rejected are the same text: nothing to learn from the row")
    if edited is not None:
        if edited.strip() == rejected:
            raise BadRow(
                "edited", "is the same text as rejected: the order edited > chosen > rejected contradicts itself"
            )
        if edited.strip() == chosen:
            edited = None
    _check_length(messages, (pair.chosen, pair.rejected, edited or ""), options)
    return edited


def _check_length(messages: Sequence[Message], texts: Sequence[str], options: Options) -> None:
    if options.max_characters is None:
        return
    num = sum(len(message.content) for message in messages) + sum(map(len, texts))
    if num > options.max_characters:
        raise BadRow(
            None, f"holds {num:,} characters of text; the limit is {options.max_characters:,} (data.max_characters)"
        )


def _finish_reason(value: object, field: str) -> FinishReason | None:
    if value is None or value == "":
        return None
    if value == "stop" or value == "length":
        return value
    raise BadRow(field, f"must be stop or length (or left out), found {shown(value)}")


def _compared_by(value: object, field: str) -> ComparedBy:
    if value is None or value == "":
        return "people"
    if value == "people" or value == "judge" or value == "simulated":
        return value
    raise BadRow(field, f"must be people, judge or simulated (or left out), found {shown(value)}")


def _number(value: object, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(field, f"must be a finite number (or left out), found {shown(value)}")
    return float(value)


def _no_ids(value: object, field: str) -> None:
    """A file does not say whose tokenizer its ids are of: the text is tokenised by the run's own."""


_COLUMNS: dict[str, Callable[[object, str], Any]] = {
    "compared_by": _compared_by,
    "chosen_ids": _no_ids,
    "chosen_finish_reason": _finish_reason,
    "rejected_ids": _no_ids,
    "rejected_finish_reason": _finish_reason,
    "chosen_reward": _number,
}
"""Columns of a preference that say more of its completions, in the order of the model's."""
_COLUMN_NAMES = frozenset(_COLUMNS)
_ABSENT: dict[str, Any] = {name: read(None, name) for name, read in _COLUMNS.items()}


_ID_COLUMNS = tuple(name for name, read in _COLUMNS.items() if read is _no_ids)


def has_ids(row: RawObject) -> bool:
    """Whether a preference brings token ids, which are left out."""
    return any(name in row and row[name] is not None for name in _ID_COLUMNS)


def _strength(value: object) -> Strength | None:
    """The strength in our spelling (`Significantly better` is the paper's)."""
    if value == "":
        return None
    given = check_text(value, "strength")
    known = _SPELLINGS.get(given) or _SPELLINGS.get(given.strip().lower().replace(" ", "_").replace("-", "_"))
    if known is None:
        raise BadRow("strength", f"unknown strength {given[:60]!r}; allowed: {', '.join(STRENGTHS)} (or leave it out)")
    return known


def _id(row: RawObject, content: Sequence[str], source: Source) -> str:
    """The id given, or one made of the row's texts and its line."""
    given = row.get("id")
    if given is None:
        return f"{_digest(content)}-{source.line}"
    if isinstance(given, int) and not isinstance(given, bool):
        try:
            return str(given)
        except ValueError:
            raise BadRow("id", "is a number of more than 4,300 digits: write it as a text") from None
    if given != "":
        return check_text(given, "id")
    return f"{_digest(content)}-{source.line}"


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:12]


def _meta(row: RawObject, form: Form) -> dict[str, Any]:
    """Its free columns; of a converted file's row also `source`, where it stood before."""
    given = row.get("meta")
    if type(given) is str and given:
        given = _meta_text(given)
    if given is not None and not isinstance(given, Mapping):
        raise BadRow("meta", f"must be an object, found {shown(given)}")
    columns = form.columns if form.reads is None else form.reads(row)
    meta = {name: value for name, value in row.items() if name not in columns}
    if given:
        meta |= given
    if beside := beside_turns(row, _TURN_COLUMNS):
        meta["beside"] = beside
    for name, value in meta.items():
        kind = type(value)
        if kind is int or value is None or (kind is str and is_clean(value) and is_clean(name)):
            continue
        check_nested(meta, "meta")
        break
    return meta


def _meta_text(text: str) -> object:
    """A free object as a Parquet file of ours holds it: written as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
