"""The forms of files to fine-tune on: dialogs that end with their target, and every form of preferences.

Of a preference the best completion (`edited`, else `chosen`) is the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alignloop.data.asked import Dialog, RawObject, any_dialog, instruction, turns_in
from alignloop.data.forms import FORMS, Form
from alignloop.data.parts import Parts
from alignloop.data.ranked import is_ranked
from alignloop.data.scored import is_scored
from alignloop.data.turns import REASONING, read_completion, read_reasoning
from alignloop.records import Message

_SHARED = frozenset({"id", "meta", "system"})


def _answered(column: str, asked: Callable[[RawObject], Dialog]) -> Callable[[RawObject, bool], Parts]:
    """What was asked, and the answer of a column, what was thought before it in front."""

    def parts(row: RawObject, prompt_only: bool) -> Parts:
        answer, reasoning = read_completion(row.get(column), column), read_reasoning(row, "")
        text = answer if reasoning is None else reasoning.before(answer)
        dialog = asked(row)
        read = _SHARED | dialog.columns | {column, *REASONING}
        return Parts([*dialog.messages, Message(role="assistant", content=text)], (), dialog.place, read)

    return parts


def _turns(column: str) -> Callable[[RawObject, bool], Parts]:
    def parts(row: RawObject, prompt_only: bool) -> Parts:
        dialog = turns_in(row, column)
        return Parts(dialog.messages, (), dialog.place, _SHARED | dialog.columns)

    return parts


def compares(row: RawObject) -> bool:
    """Whether a row looks like one of a preference file."""
    return row.get("chosen") is not None or type(row.get("output")) is list or is_ranked(row) or is_scored(row)


def _if_compared(form: Form) -> Form:
    return replace(form, matches=lambda row: compares(row) and form.matches(row))


SFT_FORMS: tuple[Form, ...] = (
    *(_if_compared(form) for form in FORMS),
    Form(
        "sharegpt_sft",
        "conversations (turns with from, value), the last the assistant's",
        matches=lambda row: "conversations" in row,
        parts=_turns("conversations"),
    ),
    Form(
        "prompt_completion",
        "prompt, completion (texts, or turns with role, content)",
        matches=lambda row: "completion" in row and ("prompt" in row or "messages" in row),
        parts=_answered("completion", any_dialog),
    ),
    Form(
        "messages",
        "messages (turns with role, content), the last the assistant's",
        matches=lambda row: "messages" in row,
        parts=_turns("messages"),
    ),
    Form(
        "alpaca_sft",
        "instruction, input, output (a text)",
        matches=lambda row: "instruction" in row and "output" in row,
        parts=_answered("output", instruction),
    ),
)
