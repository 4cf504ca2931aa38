"""A raw object of a known form -> our rows. What is wrong with it is raised as a BadRow.

object --Form.parts--> messages and pairs --checks--> PreferenceRow (one a pair), PromptRow or SftRow (one a turn)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignloop.data.dialogs import BadTurn, FieldOf, RawObject, check_dialog, item_of
from alignloop.data.forms import Form, Pair
from alignloop.data.problems import BadRow, check_nested, check_text, is_clean, is_number, shown
from alignloop.data.tools import TOOLS, has_tools, tools_in
from alignloop.data.turns import beside_turns, message, says_no, system_turn, unchecked, untrained_turn
from alignloop.records import STRENGTHS, Message, PreferenceRow, PromptRow, SftRow, Source, Strength

Dialogs = Literal["last_turn", "every_turn"]
_OWN_SFT = frozenset({"id", "messages", "origin", "source"})
_TURN_COLUMNS = frozenset({"messages", "prompt", "conversations", "chosen", "rejected", "edited", "completion"})
_COMPARED = frozenset({"chosen", "rejected", "edited", "strength", "annotator"})
"""Columns of completions: a prompt carries none of them."""
_LABELS = ("label", "labels", "kto_tag")
"""Whether people want the answer, as files for KTO say it."""
_TOOL_COLUMNS = frozenset(TOOLS)
_STRENGTHS: dict[str, Strength] = {name: name for name in STRENGTHS}


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


Maker = Callable[[RawObject, Form, Source, Options], Sequence[PreferenceRow | PromptRow | SftRow]]


def preference_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[PreferenceRow]:
    """One row; of a ranked list one for each completion that is worse than the best.

    Only the last turn was compared, so `every_turn` makes no more of it.
    """
    parts = form.parts(row, False)
    messages = _checked(parts.messages, row, parts.field_of, ends_with="user")
    strength = row.get("strength")
    strength = strength if strength is None or strength in STRENGTHS else _strength(strength)
    annotator = row.get("annotator")
    annotator = "human" if annotator is None else check_text(annotator, "annotator")
    columns = _ABSENT
    if not _COLUMNS.keys().isdisjoint(row):
        columns = {name: read(row.get(name), name) for name, read in _COLUMNS.items()}
    if annotator == "simulated" and not row.get("compared_by"):  # the quickstart's own, which is nobody
        columns = columns | {"compared_by": "simulated"}
    meta = _meta(row, parts.columns)
    many = len(parts.pairs) > 1
    rows = []
    for number, pair in enumerate(parts.pairs, start=1):
        edited = _checked_pair(pair, messages, options)
        row_id = _id(row, messages, source, pair.chosen, pair.rejected, edited or "")
        values = {
            "id": f"{row_id}/{number}" if many else row_id,
            "messages": messages,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "edited": edited,
            "strength": strength,
            "source": source,
            "annotator": annotator,
            **columns,
            "meta": meta | pair.meta if pair.meta else meta,
        }
        rows.append(unchecked(PreferenceRow, values))
    return rows


def prompt_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[PromptRow]:
    """The dialog up to the completion; with `every_turn` one row for each of its user turns."""
    parts = form.parts(row, True)
    messages = _checked(parts.messages, row, parts.field_of, ends_with="user")
    _check_length(messages, (), options)
    meta = {name: value for name, value in _meta(row, parts.columns).items() if name not in _COMPARED}
    return [
        PromptRow(id=row_id, messages=dialog, source=source, meta=meta)
        for row_id, dialog in _dialogs(_id(row, messages, source), messages, "user", options)
    ]


def sft_rows(row: RawObject, form: Form, source: Source, options: Options) -> list[SftRow]:
    """The dialog with its target; with `every_turn` one row for each of its assistant turns."""
    if row.keys() >= _OWN_SFT:
        return [_own_sft_row(row, options)]
    parts = form.parts(row, False)
    pair = parts.pairs[0] if parts.pairs else None
    messages = parts.messages
    if pair is None:
        _check_wanted(row)
    else:
        messages = [*messages, message("assistant", pair.edited or pair.chosen)]
    messages = _checked(messages, row, parts.field_of, ends_with="assistant")
    _check_length(messages, (), options)
    meta = _meta(row, parts.columns)
    if options.dialogs == "every_turn" and (marked := untrained_turn(meta)):
        raise BadRow(marked, "says that the turn is not to be trained on, and every turn would be: leave such rows out")
    for name in ("strength", "annotator") if pair else ():
        if row.get(name) is not None:
            check_nested(row[name], name)
            meta[name] = row[name]
    cut = (row.get("finish_reason"), row.get("chosen_finish_reason") if pair and pair.edited is None else None)
    return [
        SftRow(
            id=row_id,
            messages=dialog,
            origin="preference" if pair else "given",
            source=source,
            # Of the last turn: those before it were answered.
            finish_reason="length" if "length" in cut and len(dialog) == len(messages) else None,
            meta=meta,
        )
        for row_id, dialog in _dialogs(_id(row, messages, source), messages, "assistant", options)
    ]


def _own_sft_row(row: RawObject, options: Options) -> SftRow:
    free = {name: _object_of(row[name]) for name in ("meta", "judge") if type(row.get(name)) is str}
    own = SftRow.model_validate({**row, **free})
    for name, value in own.model_dump().items():
        check_nested(value, name)
    _checked(own.messages, row, item_of("messages"), ends_with="assistant")
    _check_length(own.messages, (), options)
    return own


def _dialogs(row_id: str, messages: list[Message], role: str, options: Options) -> list[tuple[str, list[Message]]]:
    """The id and the dialog up to a turn of `role`: of the last such turn, or of each."""
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
    dialog: list[Message], row: RawObject, field_of: FieldOf, *, ends_with: Literal["user", "assistant"]
) -> list[Message]:
    """The dialog with the row's system column in front, and without a system turn that says nothing."""
    tools = [turn for turn in dialog[:1] if turn.role == "tools"]
    messages, moved = dialog[len(tools) :], -len(tools)
    if messages and messages[0].role == "system" and (not messages[0].content or messages[0].content.isspace()):
        messages, moved = messages[1:], moved - 1
    if "system" in row and (system := system_turn(row)):
        if not messages or messages[0].role != "system":
            messages, moved = [*system, *messages], moved + 1
        elif messages[0].content.strip() != system[0].content.strip():
            raise BadRow("system", "stands beside a system turn that says something else: give one of the two")
    try:
        check_dialog(messages, ends_with=ends_with)
    except BadTurn as bad:
        own = bad.index - moved
        raise BadRow("system" if own < 0 else field_of(own), bad.reason) from None
    described = None if _TOOL_COLUMNS.isdisjoint(row) else tools_in(row)
    if described is not None and tools:
        raise BadRow(described.field, "stands beside a turn that describes tools: give one of the two")
    if described is not None:
        tools = [message("tools", described.text)]
    return [*tools, *messages] if tools else messages


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


def _one_of(*words: str, default: str | None = None) -> Callable[[object, str], str | None]:
    def read(value: object, field: str) -> str | None:
        if value is None or value == "":
            return default
        if type(value) is str and value in words:
            return value
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise BadRow(field, f"must be {listed} (or left out), found {shown(value)}")

    return read


def _number(value: object, field: str) -> float | None:
    if value is None:
        return None
    if is_number(value):
        return float(value)
    raise BadRow(field, f"must be a finite number (or left out), found {shown(value)}")


def _no_ids(value: object, field: str) -> None:
    """A file does not say whose tokenizer its ids are of: the text is tokenised by the run's own."""


def _no_gates(value: object, field: str) -> list[str]:
    """Gates are of a run's own reward functions, whatever a file says of another's."""
    return []


_finish_reason = _one_of("stop", "length")
_COLUMNS: dict[str, Callable[[object, str], Any]] = {
    "compared_by": _one_of("people", "judge", "simulated", "function", default="people"),
    "chosen_ids": _no_ids,
    "chosen_finish_reason": _finish_reason,
    "rejected_ids": _no_ids,
    "rejected_finish_reason": _finish_reason,
    "chosen_reward": _number,
    "chosen_failed_gates": _no_gates,
}
"""Columns of a preference that say more of its completions, in the order of the model's."""
_ABSENT: dict[str, Any] = {name: read(None, name) for name, read in _COLUMNS.items()}


def has_ids(row: RawObject) -> bool:
    return row.get("chosen_ids") is not None or row.get("rejected_ids") is not None


def _strength(value: object) -> Strength | None:
    """The strength in our spelling (`Significantly better` is the paper's)."""
    if value == "":
        return None
    text = check_text(value, "strength")
    known = _STRENGTHS.get(text) or _STRENGTHS.get(text.strip().lower().replace(" ", "_").replace("-", "_"))
    if known is None:
        raise BadRow("strength", f"unknown strength {text[:60]!r}; allowed: {', '.join(STRENGTHS)} (or leave it out)")
    return known


def _id(row: RawObject, messages: Sequence[Message], source: Source, *completions: str) -> str:
    own = row.get("id")
    if isinstance(own, int) and not isinstance(own, bool):
        try:
            return str(own)
        except ValueError:
            raise BadRow("id", "is a number of more than 4,300 digits: write it as a text") from None
    if own is not None and own != "":
        return check_text(own, "id")
    texts = [part for turn in messages for part in (turn.role, turn.content)]
    digest = hashlib.sha256("\x1f".join((*texts, *completions)).encode()).hexdigest()
    return f"{digest[:12]}-{source.line}"


def _meta(row: RawObject, read: Collection[str]) -> dict[str, Any]:
    """The columns that were not read; of a converted file's row also `source`, where it stood before."""
    own = row.get("meta")
    if type(own) is str and own:
        own = _object_of(own)
    if own is not None and not isinstance(own, Mapping):
        raise BadRow("meta", f"must be an object, found {shown(own)}")
    meta = {name: value for name, value in row.items() if name not in read}
    for name in _TOOL_COLUMNS.intersection(meta):
        if has_tools(meta[name]):
            del meta[name]
    if own:
        meta |= own
    if beside := beside_turns(row, _TURN_COLUMNS):
        meta["beside"] = beside
    for name, value in meta.items():
        kind = type(value)
        if is_clean(name) and (kind is int or value is None or (kind is str and is_clean(value))):
            continue
        check_nested(meta, "meta")
        break
    return meta


def _object_of(text: str) -> object:
    """A free object, which our Parquet files hold as a text of JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
