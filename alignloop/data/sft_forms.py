"""The forms of files to fine-tune on: dialogs that end with their target, and every form of preferences.

Of a preference the best completion (`edited`, else `chosen`) is the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alignloop.data.forms import FORMS, Comparison, Form, RawObject
from alignloop.data.problems import check_text
from alignloop.data.ranked import is_ranked
from alignloop.data.turns import Place, history_turns, is_turns, place_in, read_completion, read_turns, system_turn
from alignloop.records import Message


def _conversations(row: RawObject) -> list[Message]:
    return [*system_turn(row), *read_turns(row.get("conversations"), "conversations")]


def _messages(row: RawObject) -> list[Message]:
    return [*system_turn(row), *read_turns(row.get("messages"), "messages")]


def _prompt_completion(row: RawObject) -> list[Message]:
    prompt = row.get("prompt")
    asked = read_turns(prompt, "prompt") if is_turns(prompt) else [_user(check_text(prompt, "prompt"))]
    return [*system_turn(row), *asked, _assistant(read_completion(row.get("completion"), "completion"))]


def _alpaca(row: RawObject) -> list[Message]:
    text, given = check_text(row.get("instruction"), "instruction"), row.get("input")
    if given is not None and given != "":
        text = "\n".join([text, check_text(given, "input")]).lstrip("\n")
    answer = read_completion(row.get("output"), "output")
    return [*system_turn(row), *history_turns(row.get("history"), "history"), _user(text), _assistant(answer)]


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def _form(
    name: str,
    *,
    wants: str,
    matches: Callable[[RawObject], bool],
    dialog: Callable[[RawObject], list[Message]],
    place: Callable[[RawObject], Place],
    columns: set[str],
) -> Form:
    return Form(
        name=name,
        wants=wants,
        matches=matches,
        compare=lambda row: Comparison(dialog(row), ()),
        dialog=dialog,
        place=place,
        columns=frozenset(columns | {"id", "meta", "system"}),
    )


def _prompt_place(row: RawObject) -> Place:
    skip = len(system_turn(row))
    return (
        place_in("prompt", skip=skip) if is_turns(row.get("prompt")) else lambda i: "system" if i < skip else "prompt"
    )


def _compares(row: RawObject) -> bool:
    return row.get("chosen") is not None or type(row.get("output")) is list or is_ranked(row)


def _if_compared(form: Form) -> Form:
    return replace(form, matches=lambda row: _compares(row) and form.matches(row))


SFT_FORMS: tuple[Form, ...] = (
    *(_if_compared(form) for form in FORMS),
    _form(
        "sharegpt_sft",
        wants="conversations (turns with from, value), the last the assistant's",
        matches=lambda row: "conversations" in row,
        dialog=_conversations,
        place=lambda row: place_in("conversations", skip=len(system_turn(row))),
        columns={"conversations"},
    ),
    _form(
        "messages",
        wants="messages (turns with role, content), the last the assistant's",
        matches=lambda row: "messages" in row,
        dialog=_messages,
        place=lambda row: place_in("messages", skip=len(system_turn(row))),
        columns={"messages"},
    ),
    _form(
        "prompt_completion",
        wants="prompt, completion (texts, or turns with role, content)",
        matches=lambda row: "prompt" in row and "completion" in row,
        dialog=_prompt_completion,
        place=_prompt_place,
        columns={"prompt", "completion"},
    ),
    _form(
        "alpaca_sft",
        wants="instruction, input, output (a text)",
        matches=lambda row: "instruction" in row and "output" in row,
        dialog=_alpaca,
        place=lambda row: lambda index: "instruction",
        columns={"instruction", "input", "output", "history"},
    ),
)
