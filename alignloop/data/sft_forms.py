"""The forms of files to fine-tune on: dialogs that end with their target, and every form of preferences.

Of a preference the best completion (`edited`, else `chosen`) is the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alignloop.data.dialogs import Place, place_in
from alignloop.data.forms import (
    FORMS,
    Comparison,
    Form,
    RawObject,
    alpaca_dialog,
    alpaca_place,
    asked_columns,
    asked_dialog,
    asked_place,
)
from alignloop.data.ranked import is_ranked
from alignloop.data.scored import is_scored
from alignloop.data.turns import REASONING, read_completion, read_reasoning, read_turns
from alignloop.records import Message

_SHARED = frozenset({"id", "meta", "system"})


def _answered(
    column: str, asked: Callable[[RawObject], list[Message]] = asked_dialog
) -> Callable[[RawObject], list[Message]]:
    """What was asked, and the answer of a column, what was thought before it in front."""

    def dialog(row: RawObject) -> list[Message]:
        answer, reasoning = read_completion(row.get(column), column), read_reasoning(row, "")
        text = answer if reasoning is None else reasoning.before(answer)
        return [*asked(row), Message(role="assistant", content=text)]

    return dialog


def _turns(column: str) -> Callable[[RawObject], list[Message]]:
    return lambda row: read_turns(row.get(column), column)


def _form(
    name: str,
    *,
    wants: str,
    matches: Callable[[RawObject], bool],
    dialog: Callable[[RawObject], list[Message]],
    place: Callable[[RawObject], Place],
    columns: set[str],
    reads: Callable[[RawObject], set[str]] | None = None,
) -> Form:
    return Form(
        name=name,
        wants=wants,
        matches=matches,
        compare=lambda row: Comparison(dialog(row), ()),
        dialog=dialog,
        place=place,
        columns=frozenset(columns | _SHARED),
        reads=None if reads is None else lambda row: reads(row) | _SHARED,
    )


def _compares(row: RawObject) -> bool:
    return row.get("chosen") is not None or type(row.get("output")) is list or is_ranked(row) or is_scored(row)


def _if_compared(form: Form) -> Form:
    return replace(form, matches=lambda row: _compares(row) and form.matches(row))


SFT_FORMS: tuple[Form, ...] = (
    *(_if_compared(form) for form in FORMS),
    _form(
        "sharegpt_sft",
        wants="conversations (turns with from, value), the last the assistant's",
        matches=lambda row: "conversations" in row,
        dialog=_turns("conversations"),
        place=lambda row: place_in("conversations"),
        columns={"conversations"},
    ),
    _form(
        "prompt_completion",
        wants="prompt, completion (texts, or turns with role, content)",
        matches=lambda row: "completion" in row and ("prompt" in row or "messages" in row),
        dialog=_answered("completion"),
        place=asked_place,
        columns={"prompt", "messages", "history", "completion", *REASONING},
        reads=lambda row: asked_columns(row) | {"completion", *REASONING},
    ),
    _form(
        "messages",
        wants="messages (turns with role, content), the last the assistant's",
        matches=lambda row: "messages" in row,
        dialog=_turns("messages"),
        place=lambda row: place_in("messages"),
        columns={"messages"},
    ),
    _form(
        "alpaca_sft",
        wants="instruction, input, output (a text)",
        matches=lambda row: "instruction" in row and "output" in row,
        dialog=_answered("output", alpaca_dialog),
        place=alpaca_place,
        columns={"instruction", "input", "output", "history", *REASONING},
    ),
)
