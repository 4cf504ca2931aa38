"""The forms files come in. A new form is a function that takes a row apart, and its entry in a table: FORMS, SFT_FORMS.

raw object --Form.parts--> Parts: the messages up to the completion, what is compared, and which columns were read

Files to fine-tune on hold dialogs that end with their target, or come in any form of preferences: of these the best
completion (`edited`, else `chosen`) is the target.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from alignloop.data.dialogs import (
    ALPACA,
    FieldOf,
    RawObject,
    ReadDialog,
    any_dialog,
    common_dialog,
    common_text,
    instruction,
    is_open_transcript,
    is_transcript,
    item_of,
    open_transcript,
    prompt_or_messages,
    read_transcript,
    turns_in,
    whole_column,
)
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.ranked import best_against_each, columns_read, is_ranked, is_scored
from alignloop.data.turns import REASONING, is_turns, message, read_completion, read_reasoning, read_turns
from alignloop.records import Message, PreferenceRow

_QUESTION = re.compile(r"(^|_|-)(prompt|question|query|instruction|input|user|ask|post|context)$", re.IGNORECASE)
# What `PreferenceRow` has beside texts: read by `rows.preference_rows`, whatever the form; a system column likewise.
_SHARED = frozenset(PreferenceRow.model_fields) - {"messages", "source"} | {"system"}
_SHARED_SFT = frozenset({"id", "meta", "system"})
_SHAREGPT = _SHARED | {"conversations"}
_ASKED = _SHARED | {"prompt", "messages"}
_ASKED_WITH_HISTORY = _ASKED | {"history"}


class Pair(NamedTuple):
    """`edited` is None where there is none; `meta` is what is known of this pair alone."""

    chosen: str
    rejected: str
    edited: str | None = None
    meta: dict[str, Any] | None = None


class Parts(NamedTuple):
    """A row taken apart.

    Attributes:
        messages: up to the completion, a `system` column first.
        pairs: one; several for ranked lists; none where only the prompt is wanted or there.
        field_of: the field a message stands in, by its index.
        columns: those that were read; all others go to `meta`.
    """

    messages: list[Message]
    pairs: Sequence[Pair]
    field_of: FieldOf
    columns: Collection[str]


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Attributes:
        name: shown to the user, and what `data.form` takes.
        wants: the columns, shown where no form fits.
        matches: whether a row looks like this form (its columns and their kinds; values may still be wrong).
        parts: takes a row, and whether its prompt alone is wanted.
        grouped: rows that follow each other with the same prompt are one row of the form.
        weak: its columns are some of another form's, so a row that has only these may be one of those with a gap.
    """

    name: str
    wants: str
    matches: Callable[[RawObject], bool]
    parts: Callable[[RawObject, bool], Parts]
    grouped: bool = False
    weak: bool = False


def form_of(row: RawObject, forms: Sequence[Form]) -> Form | None:
    return next((form for form in forms if form.matches(row)), None)


def detect(rows: Iterable[RawObject], forms: Sequence[Form]) -> Form | None:
    """The form most of `rows` have; the first in the table among equals; None where no row has any."""
    votes = Counter(form.name for row in rows if (form := form_of(row, forms)) is not None)
    return max(forms, key=lambda form: votes[form.name]) if votes else None


def compares(row: RawObject) -> bool:
    return row.get("chosen") is not None or type(row.get("output")) is list or is_ranked(row) or is_scored(row)


def _edited(row: RawObject) -> str | None:
    edited = row.get("edited")
    if edited is None or (type(edited) is str and (not edited or edited.isspace())):
        return None
    return read_completion(edited, "edited")


def _pair(row: RawObject) -> Pair:
    chosen, rejected = (read_completion(row.get(name), name) for name in ("chosen", "rejected"))
    return Pair(chosen, rejected, _edited(row))


def _beside(row: RawObject, dialog: ReadDialog, columns: Collection[str], *, prompt_only: bool) -> Parts:
    return Parts(dialog.messages, () if prompt_only else (_pair(row),), dialog.field_of, columns)


def _sharegpt(row: RawObject, prompt_only: bool) -> Parts:
    return _beside(row, turns_in(row, "conversations"), _SHAREGPT, prompt_only=prompt_only)


def _is_canonical(row: RawObject) -> bool:
    if "prompt" not in row and "messages" not in row:
        return False
    prompt = row.get("prompt")
    return not (is_turns(prompt) or is_turns(row.get("chosen")) or is_open_transcript(prompt))


def _canonical(row: RawObject, prompt_only: bool) -> Parts:
    dialog = prompt_or_messages(row)
    columns = _ASKED_WITH_HISTORY if "history" in dialog.columns else _ASKED
    return _beside(row, dialog, columns, prompt_only=prompt_only)


def _whole_dialogs(row: RawObject, before: Sequence[Message] = ()) -> tuple[list[Message], Pair]:
    """What both completions begin with, and the pair, where completions repeat some or all of their dialog."""
    chosen, rejected = (_completion_turns(row.get(name), name, before) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return dialog, Pair(best, worst, _edited(row))


def _completion_turns(value: object, name: str, before: Sequence[Message]) -> list[Message]:
    """The turns of a completion, without those of `before` with which it may begin."""
    if value is None:
        raise BadRow(name, f"is missing: every preference row needs {name}")
    turns = read_turns(value, name) if isinstance(value, list) else [message("assistant", read_completion(value, name))]
    repeats = len(turns) > len(before) and turns[: len(before)] == before
    return turns[len(before) :] if repeats else turns


def _has_both(row: RawObject) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def _trl_conversational(row: RawObject, prompt_only: bool) -> Parts:
    dialog = turns_in(row, "prompt" if row.get("prompt") is not None else "messages")
    columns = _SHARED | dialog.columns
    if prompt_only and not _has_both(row):
        return Parts(dialog.messages, (), dialog.field_of, columns)
    more, pair = _whole_dialogs(row, dialog.messages)
    return Parts([*dialog.messages, *more], (pair,), dialog.field_of, columns)


def _trl_implicit(row: RawObject, prompt_only: bool) -> Parts:
    messages, pair = _whole_dialogs(row)
    return Parts(messages, (pair,), item_of("chosen"), _SHARED)


def _ultrafeedback(row: RawObject, prompt_only: bool) -> Parts:
    prompt = check_text(row.get("prompt"), "prompt")
    # `messages` is carried along where it is another dialog than the row's.
    whole, chosen = row.get("messages"), row.get("chosen")
    repeats = type(chosen) is list and whole in (chosen, chosen[:-1], row.get("rejected"))
    columns = _ASKED if repeats else _ASKED - {"messages"}
    field_of, alone = item_of("chosen"), [message("user", prompt)]
    if prompt_only and not _has_both(row):
        return Parts(alone, (), field_of, columns)
    messages, pair = _whole_dialogs(row)
    turns = {" ".join(turn.content.split()) for turn in messages if turn.role == "user"}
    if messages and " ".join(prompt.split()) not in turns:
        raise BadRow("prompt", "is none of the user turns with which chosen and rejected begin")
    return Parts(messages or alone, (pair,), field_of, columns)


def _is_hh(row: RawObject) -> bool:
    if "prompt" in row:
        return is_open_transcript(row["prompt"])
    return is_transcript(row.get("chosen")) and type(row.get("rejected")) is str


def _hh_transcript(row: RawObject, prompt_only: bool) -> Parts:
    columns = _SHARED | {"prompt"}
    if row.get("prompt") is not None:
        return _beside(row, open_transcript(row), columns, prompt_only=prompt_only)
    chosen, rejected = (read_transcript(row.get(name), name) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return Parts(dialog, (Pair(best, worst, _edited(row)),), whole_column("chosen"), columns)


def _alpaca(row: RawObject, prompt_only: bool) -> Parts:
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


def _is_text_pair(row: RawObject) -> bool:
    """A row of two texts where no column seems to hold the prompt: such a column needs its name (`data.columns`)."""
    if type(row.get("chosen")) is not str or type(row.get("rejected")) is not str:
        return False
    return not any(type(value) is str and value and _QUESTION.search(name) for name, value in row.items())


def _text_pair(row: RawObject, prompt_only: bool) -> Parts:
    chosen, rejected = (check_text(row.get(name), name) for name in ("chosen", "rejected"))
    prompt, best, worst = common_text(chosen, rejected)
    if not prompt.strip():
        raise BadRow("chosen", "begins with no words that rejected begins with, too: there is no prompt; add a column")
    pair = _pair({**row, "chosen": best, "rejected": worst})
    return Parts([message("user", prompt.rstrip())], (pair,), whole_column("chosen"), _SHARED)


def _ranked(row: RawObject, prompt_only: bool) -> Parts:
    found = [] if prompt_only else best_against_each(row)
    dialog = any_dialog(row)
    columns = (_SHARED - {"chosen", "rejected", "edited"}) | dialog.columns | columns_read(row)
    pairs = [Pair(best.text, worse.text, meta=meta) for best, worse, meta in found]
    return Parts(dialog.messages, pairs, dialog.field_of, columns)


def _turns(column: str) -> Callable[[RawObject, bool], Parts]:
    def parts(row: RawObject, prompt_only: bool) -> Parts:
        dialog = turns_in(row, column)
        return Parts(dialog.messages, (), dialog.field_of, _SHARED_SFT | dialog.columns)

    return parts


def _answered(column: str, asked: Callable[[RawObject], ReadDialog]) -> Callable[[RawObject, bool], Parts]:
    """Parts of a prompt and the answer in a column, with its reasoning in front."""

    def parts(row: RawObject, prompt_only: bool) -> Parts:
        answer, reasoning = read_completion(row.get(column), column), read_reasoning(row, "")
        text = answer if reasoning is None else reasoning.before(answer)
        dialog = asked(row)
        columns = _SHARED_SFT | dialog.columns | {column, *REASONING}
        return Parts([*dialog.messages, message("assistant", text)], (), dialog.field_of, columns)

    return parts


def _has_turns_in_prompt(row: RawObject) -> bool:
    return is_turns(row.get("prompt")) or (is_turns(row.get("messages")) and is_turns(row.get("chosen")))


def _has_whole_dialogs(row: RawObject) -> bool:
    return is_turns(row.get("chosen")) and row.keys().isdisjoint({"prompt", "messages", "instruction"})


FORMS: tuple[Form, ...] = (
    Form(
        "sharegpt",
        "conversations (turns with from, value), chosen, rejected",
        lambda row: "conversations" in row,
        _sharegpt,
    ),
    Form(
        "ranked",
        "prompt, ranking (best first), or completions, responses or answers with rank, score or rating",
        is_ranked,
        _ranked,
    ),
    Form(
        "scored",
        "prompt, response (or completion), helpfulness (or score, rating, reward): a row for each response",
        is_scored,
        _ranked,
        grouped=True,
    ),
    Form(
        "ultrafeedback",
        "prompt (a text), chosen, rejected (turns that repeat it)",
        lambda row: type(row.get("prompt")) is str and is_turns(row.get("chosen")),
        _ultrafeedback,
    ),
    Form(
        "trl_conversational",
        "prompt, chosen, rejected (turns with role, content)",
        _has_turns_in_prompt,
        _trl_conversational,
    ),
    Form(
        "trl_implicit",
        "chosen, rejected (whole conversations, turns with role, content)",
        _has_whole_dialogs,
        _trl_implicit,
    ),
    Form("hh_transcript", "chosen, rejected (texts of `Human:` and `Assistant:` turns)", _is_hh, _hh_transcript),
    Form("canonical", "prompt (or messages), chosen, rejected", _is_canonical, _canonical),
    Form(
        "alpaca",
        "instruction, input, output (two texts, or chosen and rejected)",
        lambda row: "instruction" in row,
        _alpaca,
    ),
    Form("text_pair", "chosen, rejected (texts that begin alike)", _is_text_pair, _text_pair, weak=True),
    Form(
        "best_first",
        "prompt, completions (or responses), best first; never guessed, only by name",
        lambda row: False,
        _ranked,
    ),
)


def _if_compared(form: Form) -> Form:
    return replace(form, matches=lambda row: compares(row) and form.matches(row))


SFT_FORMS: tuple[Form, ...] = (
    *(_if_compared(form) for form in FORMS),
    Form(
        "sharegpt_sft",
        "conversations (turns with from, value), the last the assistant's",
        lambda row: "conversations" in row,
        _turns("conversations"),
    ),
    Form(
        "prompt_completion",
        "prompt, completion (texts, or turns with role, content)",
        lambda row: "completion" in row and ("prompt" in row or "messages" in row),
        _answered("completion", any_dialog),
    ),
    Form(
        "messages",
        "messages (turns with role, content), the last the assistant's",
        lambda row: "messages" in row,
        _turns("messages"),
    ),
    Form(
        "alpaca_sft",
        "instruction, input, output (a text)",
        lambda row: "instruction" in row and "output" in row,
        _answered("output", instruction),
    ),
)
