"""The rules a dialog keeps, and where files keep what was asked: as a text, as turns, in a transcript, in completions.

raw object --> ReadDialog: the messages up to the completion, where each stands, and the columns that were read

A dialog is: at most one system turn, first; then user and assistant in turn, the user first; no turn without text. An
assistant's turn that calls tools may be followed by what they say, a turn a call at most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignloop.chat.tool_turns import call_names, split_calls
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.turns import history_turns, is_turns, message, read_text, read_turns
from alignloop.records import Message, Role

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
RawObject = Mapping[str, Any]
ALPACA = frozenset({"instruction", "input", "history"})
FieldOf = Callable[[int], str]
"""Index of a message -> the field of the file it stands in."""


class BadTurn(Exception):
    """A dialog's turn that breaks a rule; `index` counts the messages."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason


class ReadDialog(NamedTuple):
    """`field_of`: the field that a message stands in, by its index; `columns`: those that were read."""

    messages: list[Message]
    field_of: FieldOf
    columns: frozenset[str]


def check_dialog(messages: Sequence[Message], *, ends_with: Literal["user", "assistant"]) -> None:
    if not messages:
        raise BadTurn(0, "is empty: at least one user turn is needed")
    last = messages[-1]
    if last.role != ends_with and (ends_with, last.role) != ("user", "tool"):
        raise BadTurn(len(messages) - 1, f"the last turn must be the {ends_with}'s, not the {last.role}'s")
    before: Role | None = None
    num_open = 0
    for index, turn in enumerate(messages):
        role, content = turn.role, turn.content
        if role == "system":
            if index:
                raise BadTurn(index, "a system turn must be the first, and the only one")
        elif role == "tools":
            raise BadTurn(index, "a turn that describes tools must be the first, and the only one")
        elif role == "tool":
            if not num_open:
                raise BadTurn(
                    index, "is a tool's turn that answers no call: a turn with tool_calls must come before it"
                )
            num_open -= 1
            before = role
            continue
        elif role == before:
            raise BadTurn(index, f"two {role} turns follow each other: join them, or mend the order")
        elif role == "assistant" and before not in ("user", "tool"):
            raise BadTurn(index, "the dialog begins with the assistant's turn: a user turn must come before it")
        if not content or content.isspace():
            raise BadTurn(index, f"is empty: the {role} turn has no text")
        calls = split_calls(content)[1] if role == "assistant" else ""
        num_open = len(call_names(calls)) if calls else 0
        before = role


def common_dialog(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Two whole conversations -> (the dialog both begin with, chosen completion, rejected completion).

    Raises:
        BadRow: what differs is more than one assistant turn each.
    """
    num_common = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours.content != theirs.content or ours.role != theirs.role:
            break
        num_common += 1
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        left = turns[num_common:]
        if len(left) != 1:
            raise BadRow(
                field,
                f"holds {len(left)} turns after the {num_common} that chosen and rejected have in common: only one "
                "answer can be compared",
            )
        if left[0].role != "assistant":
            raise BadRow(f"{field}[{num_common}]", f"must end with the assistant's turn, not the {left[0].role}'s")
        if not left[0].content.strip():
            raise BadRow(f"{field}[{num_common}]", "is empty")
    return chosen[:num_common], chosen[-1].content, rejected[-1].content


def common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What both texts begin with, up to a blank, and the rest of each."""
    length = min(len(chosen), len(rejected))
    same = next((index for index in range(length) if chosen[index] != rejected[index]), length)
    while same and not chosen[same - 1].isspace():
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def is_transcript(value: object) -> bool:
    return type(value) is str and value[:16].lstrip().startswith("Human:")


def is_open_transcript(value: object) -> bool:
    """Whether a text is a dialog as HH-RLHF writes it that waits for the assistant."""
    return is_transcript(value) and str(value)[-16:].rstrip().endswith("Assistant:")


def read_transcript(value: object, field: str) -> list[Message]:
    """The turns of `Human:` and `Assistant:` in a text; blanks around each are the form's, not the turn's."""
    parts = _SPEAKER.split(check_text(value, field))
    if parts[0].strip():
        raise BadRow(field, f"must begin with `Human:`, found {shown(parts[0].strip())}")
    if len(parts) == 1:
        raise BadRow(field, "holds no `Human:` or `Assistant:` turn")
    return [message(_SPEAKERS[speaker], text.strip()) for speaker, text in zip(parts[1::2], parts[2::2], strict=True)]


def item_of(column: str) -> FieldOf:
    return lambda index: f"{column}[{index}]"


def whole_column(column: str) -> FieldOf:
    return lambda _: column


def turns_in(row: RawObject, column: str) -> ReadDialog:
    return ReadDialog(read_turns(row.get(column), column), item_of(column), frozenset((column,)))


def prompt_or_messages(row: RawObject) -> ReadDialog:
    """A text, after the turns of `history`, or `messages`."""
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
    if type(row.get("history")) is list:
        return _after_history(row, last, "prompt")
    return ReadDialog([last], whole_column("prompt"), frozenset(("prompt",)))


def instruction(row: RawObject) -> ReadDialog:
    text = check_text(row.get("instruction"), "instruction")
    more = row.get("input")
    if more is not None and more != "":
        text = f"{text}\n{check_text(more, 'input')}" if text else check_text(more, "input")
    return _after_history(row, message("user", text), "instruction")._replace(columns=ALPACA)


def open_transcript(row: RawObject) -> ReadDialog:
    turns = read_transcript(row["prompt"], "prompt")
    waits = turns[-1].role == "assistant" and not turns[-1].content
    return ReadDialog(turns[:-1] if waits else turns, whole_column("prompt"), frozenset({"prompt"}))


def any_dialog(row: RawObject) -> ReadDialog:
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


def _after_history(row: RawObject, last: Message, column: str) -> ReadDialog:
    turns = history_turns(row.get("history"), "history")

    def field_of(index: int) -> str:
        return f"history[{index // 2}][{index % 2}]" if index < len(turns) else column

    return ReadDialog([*turns, last], field_of, frozenset((column, "history")))
