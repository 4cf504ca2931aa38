"""What was asked of the assistant, in whichever columns a row has it: a text, turns, an instruction, a transcript.

raw object --> Dialog: the messages up to the completion, where each stands, and the columns that were read
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignloop.data.built import message
from alignloop.data.dialogs import Place, is_open_transcript, place_at, place_in, read_transcript
from alignloop.data.problems import BadRow, check_text
from alignloop.data.turns import history_turns, is_turns, read_text, read_turns
from alignloop.records import Message

RawObject = Mapping[str, Any]
ALPACA = frozenset({"instruction", "input", "history"})


class Dialog(NamedTuple):
    """Attributes:
    place: of a message, by its index, the field it stands in.
    columns: those that were read.
    """

    messages: list[Message]
    place: Place
    columns: frozenset[str]


def turns_in(row: RawObject, column: str) -> Dialog:
    """A column's list of turns."""
    return Dialog(read_turns(row.get(column), column), place_in(column), frozenset((column,)))


def prompt_or_messages(row: RawObject) -> Dialog:
    """A text with what was said before it in `history`, or `messages`."""
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is not None:
        if prompt is not None:
            raise BadRow("prompt", "stands beside messages: give one of the two")
        return turns_in(row, "messages")
    if prompt is None:
        raise BadRow("prompt", "is missing: every row needs prompt (a text) or messages (a list of turns)")
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], Mapping)):
        raise BadRow("prompt", "is a list that holds no turns: give a text, or turns with role and content")
    last = message("user", read_text(prompt, "prompt"))
    return _after_history(row, last, "prompt") if type(row.get("history")) is list else _alone(last, "prompt")


def instruction(row: RawObject) -> Dialog:
    """Alpaca's instruction with its input, after the history."""
    text = check_text(row.get("instruction"), "instruction")
    more = row.get("input")
    if more is not None and more != "":
        text = f"{text}\n{check_text(more, 'input')}" if text else check_text(more, "input")
    return _after_history(row, message("user", text), "instruction")._replace(columns=ALPACA)


def open_transcript(row: RawObject) -> Dialog:
    """The `prompt` of HH-RLHF: a text of turns that waits for the assistant."""
    turns = read_transcript(row["prompt"], "prompt")
    waits = turns[-1].role == "assistant" and not turns[-1].content
    return Dialog(turns[:-1] if waits else turns, place_at("prompt"), frozenset({"prompt"}))


def any_dialog(row: RawObject) -> Dialog:
    """What was asked, in whichever of these ways."""
    prompt = row.get("prompt")
    if row.get("instruction") is not None and prompt is None and row.get("messages") is None:
        dialog = instruction(row)
        columns = dialog.columns - {"history"}
    else:
        if is_turns(prompt):
            dialog = turns_in(row, "prompt")
        else:
            dialog = open_transcript(row) if is_open_transcript(prompt) else prompt_or_messages(row)
        columns = dialog.columns
    has_history = type(row.get("history")) is list and "messages" not in columns
    return dialog._replace(columns=columns | {"history"} if has_history else columns)


def _alone(last: Message, column: str) -> Dialog:
    return Dialog([last], place_at(column), frozenset((column,)))


def _after_history(row: RawObject, last: Message, column: str) -> Dialog:
    turns = history_turns(row.get("history"), "history")

    def place(index: int) -> str:
        return f"history[{index // 2}][{index % 2}]" if index < len(turns) else column

    return Dialog([*turns, last], place, frozenset((column, "history")))
