"""Rows of preference files taken apart, a function for each form.

raw object --> Parts: the messages up to the completion, what is compared, and which columns were read
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from alignloop.data.built import message
from alignloop.data.dialogs import (
    ALPACA,
    Dialog,
    FieldOf,
    RawObject,
    any_dialog,
    common_dialog,
    common_text,
    instruction,
    item_of,
    open_transcript,
    prompt_or_messages,
    read_transcript,
    turns_in,
    whole_column,
)
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.ranked import best_against_each, columns_read
from alignloop.data.turns import read_completion, read_turns
from alignloop.records import Message, PreferenceRow


class Pair(NamedTuple):
    """What is compared; `edited` is None where there is none, `meta` what is known of this pair alone."""

    chosen: str
    rejected: str
    edited: str | None = None
    meta: dict[str, Any] | None = None


class Parts(NamedTuple):
    """A row taken apart.

    Attributes:
        messages: up to the completion, as they stand in the row; a `system` column comes before them.
        pairs: one, but for ranked lists, and none where the prompt alone is wanted or there.
        field_of: of a message, by its index, the field it stands in.
        columns: those that were read; all others go to `meta`.
    """

    messages: list[Message]
    pairs: Sequence[Pair]
    field_of: FieldOf
    columns: Collection[str]


# What `PreferenceRow` has beside texts: read by `rows.preference_rows`, whatever the form; a system column likewise.
_SHARED = frozenset(PreferenceRow.model_fields) - {"messages", "source"} | {"system"}
_SHAREGPT = _SHARED | {"conversations"}
_ASKED = _SHARED | {"prompt", "messages"}
_ASKED_WITH_HISTORY = _ASKED | {"history"}


def _edited(row: RawObject) -> str | None:
    edited = row.get("edited")
    if edited is None or (type(edited) is str and (not edited or edited.isspace())):
        return None
    return read_completion(edited, "edited")


def _pair(row: RawObject) -> Pair:
    chosen, rejected = (read_completion(row.get(name), name) for name in ("chosen", "rejected"))
    return Pair(chosen, rejected, _edited(row))


def _beside(row: RawObject, dialog: Dialog, columns: Collection[str], *, prompt_only: bool) -> Parts:
    """The completions stand in columns of their own."""
    return Parts(dialog.messages, () if prompt_only else (_pair(row),), dialog.field_of, columns)


def sharegpt(row: RawObject, prompt_only: bool) -> Parts:
    return _beside(row, turns_in(row, "conversations"), _SHAREGPT, prompt_only=prompt_only)


def canonical(row: RawObject, prompt_only: bool) -> Parts:
    dialog = prompt_or_messages(row)
    columns = _ASKED_WITH_HISTORY if "history" in dialog.columns else _ASKED
    return _beside(row, dialog, columns, prompt_only=prompt_only)


def _whole_dialogs(row: RawObject, before: Sequence[Message] = ()) -> tuple[list[Message], Pair]:
    """(what both completions begin with, the pair) of completions that repeat their dialog, or some of it."""
    chosen, rejected = (_without(before, _completion_turns(row.get(name), name)) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return dialog, Pair(best, worst, _edited(row))


def _without(before: Sequence[Message], turns: list[Message]) -> list[Message]:
    repeats = len(turns) > len(before) and turns[: len(before)] == before
    return turns[len(before) :] if repeats else turns


def _completion_turns(value: object, name: str) -> list[Message]:
    if value is None:
        raise BadRow(name, f"is missing: every preference row needs {name}")
    if isinstance(value, list):
        return read_turns(value, name)
    return [Message(role="assistant", content=read_completion(value, name))]


def _compares(row: RawObject) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def trl_conversational(row: RawObject, prompt_only: bool) -> Parts:
    dialog = turns_in(row, "prompt" if row.get("prompt") is not None else "messages")
    columns = _SHARED | dialog.columns
    if prompt_only and not _compares(row):
        return Parts(dialog.messages, (), dialog.field_of, columns)
    more, pair = _whole_dialogs(row, dialog.messages)
    return Parts([*dialog.messages, *more], (pair,), dialog.field_of, columns)


def trl_implicit(row: RawObject, prompt_only: bool) -> Parts:
    messages, pair = _whole_dialogs(row)
    return Parts(messages, (pair,), item_of("chosen"), _SHARED)


def ultrafeedback(row: RawObject, prompt_only: bool) -> Parts:
    prompt = check_text(row.get("prompt"), "prompt")
    field_of, alone = item_of("chosen"), [message("user", prompt)]
    if prompt_only and not _compares(row):
        return Parts(alone, (), field_of, _ultrafeedback_columns(row))
    messages, pair = _whole_dialogs(row)
    turns = {" ".join(turn.content.split()) for turn in messages if turn.role == "user"}
    if messages and " ".join(prompt.split()) not in turns:
        raise BadRow("prompt", "is none of the user turns with which chosen and rejected begin")
    return Parts(messages or alone, (pair,), field_of, _ultrafeedback_columns(row))


def _ultrafeedback_columns(row: RawObject) -> frozenset[str]:
    """Without `messages` where they are another dialog than the row's."""
    messages, chosen = row.get("messages"), row.get("chosen")
    repeats = type(chosen) is list and messages in (chosen, chosen[:-1], row.get("rejected"))
    return _ASKED if repeats else _ASKED - {"messages"}


def hh_transcript(row: RawObject, prompt_only: bool) -> Parts:
    columns = _SHARED | {"prompt"}
    if row.get("prompt") is not None:
        return _beside(row, open_transcript(row), columns, prompt_only=prompt_only)
    chosen, rejected = (read_transcript(row.get(name), name) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return Parts(dialog, (Pair(best, worst, _edited(row)),), whole_column("chosen"), columns)


def text_pair(row: RawObject, prompt_only: bool) -> Parts:
    chosen, rejected = (check_text(row.get(name), name) for name in ("chosen", "rejected"))
    prompt, best, worst = common_text(chosen, rejected)
    if not prompt.strip():
        raise BadRow("chosen", "begins with no words that rejected begins with, too: there is no prompt; add a column")
    pair = _pair({**row, "chosen": best, "rejected": worst})
    return Parts([message("user", prompt.rstrip())], (pair,), whole_column("chosen"), _SHARED)


def alpaca(row: RawObject, prompt_only: bool) -> Parts:
    output = row.get("output")
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return _beside(row, instruction(row), _SHARED | ALPACA, prompt_only=prompt_only)
    columns = (_SHARED | ALPACA | {"output"}) - {"chosen", "rejected"}
    if prompt_only or output is None:
        return _beside(row, instruction(row), columns, prompt_only=prompt_only)
    if not isinstance(output, list) or len(output) != 2:
        raise BadRow("output", f"must be two texts, the better one first, found {shown(output)}")
    best, worst = (read_completion(text, f"output[{index}]") for index, text in enumerate(output))
    pair = Pair(best, worst, _edited(row))
    dialog = instruction(row)
    return Parts(dialog.messages, (pair,), dialog.field_of, columns)


def ranked(row: RawObject, prompt_only: bool) -> Parts:
    ranked = [] if prompt_only else best_against_each(row)
    dialog = any_dialog(row)
    columns = (_SHARED - {"chosen", "rejected", "edited"}) | dialog.columns | columns_read(row)
    return Parts(dialog.messages, [Pair(b.text, w.text, meta=meta) for b, w, meta in ranked], dialog.field_of, columns)
