"""Turns as files write them -> messages, and the rules a dialog keeps.

A dialog is: at most one system turn, first; then user and assistant in turn, the user first; no turn without text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from alignloop.data.built import message
from alignloop.data.problems import BadRow, check_text, is_clean, shown
from alignloop.records import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TURN_KEYS = (("from", "value"), ("role", "content"))
_HUMAN, _ASSISTANT = "Human:", "Assistant:"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
Place = Callable[[int], str]
"""Index of a message -> the field of the file it stands in."""


def is_turns(value: object) -> bool:
    """Whether a column holds a list of turns (they may still be wrong)."""
    return type(value) is list and bool(value) and type(value[0]) is dict and ("role" in value[0] or "from" in value[0])


def read_turn(turn: object, field: str) -> Message:
    """One turn, as `{role, content}` or `{from, value}`; roles are mapped to ours."""
    if not isinstance(turn, Mapping):
        raise BadRow(field, f"must be an object with from and value (or role and content), found {shown(turn)}")
    for role_key, text_key in _TURN_KEYS:
        if role_key in turn:
            content = check_text(turn.get(text_key), f"{field}.{text_key}")
            return Message(role=_role(turn[role_key], f"{field}.{role_key}"), content=content)
    raise BadRow(field, f"has neither from nor role; its keys are {', '.join(map(str, turn)) or 'none'}")


def _role(value: object, field: str) -> Role:
    name = check_text(value, field)
    role = ROLES.get(name) or ROLES.get(name.strip().lower())
    if role is None:
        raise BadRow(field, f"unknown role {name[:60]!r}; allowed: {', '.join(ROLES)}")
    return role


def read_turns(turns: object, field: str) -> list[Message]:
    """A list of turns."""
    if not isinstance(turns, list):
        raise BadRow(field, f"must be a list of turns, found {shown(turns)}" if turns is not None else "is missing")
    if not turns:
        raise BadRow(field, "is empty: at least one user turn is needed")
    return [_plain_turn(turn) or read_turn(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]


def _plain_turn(turn: object) -> Message | None:
    """A turn in which all is as it should be; None for any other, of which `read_turn` says what is wrong."""
    if type(turn) is not dict:
        return None
    for role_key, text_key in _TURN_KEYS:
        if role_key in turn:
            name, text = turn[role_key], turn.get(text_key)
            role = ROLES.get(name) if type(name) is str else None
            return message(role, text) if role is not None and type(text) is str and is_clean(text) else None
    return None


def read_completion(value: object, field: str) -> str:
    """A completion: a text, one assistant turn, or a list of one. Empty ones are refused."""
    if type(value) is str and value and is_clean(value) and not value.isspace():
        return value
    if value is None:
        raise BadRow(field, f"is missing: every preference row needs {field}")
    if is_turns(value):
        assert isinstance(value, list)
        if len(value) > 1:
            raise BadRow(field, f"holds {len(value)} turns; the one answer that is compared is needed")
        value = value[0]
    if isinstance(value, Mapping):
        turn = read_turn(value, field)
        if turn.role != "assistant":
            raise BadRow(field, f"must be the assistant's turn, not the {turn.role}'s")
        text = turn.content
    else:
        text = check_text(value, field)
    if not text or text.isspace():
        raise BadRow(field, "is empty")
    return text


class BadTurn(Exception):
    """A dialog's turn that breaks a rule; `index` counts the messages."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason


def check_dialog(messages: Sequence[Message], *, ends_with: Literal["user", "assistant"]) -> None:
    """Refuse a dialog that breaks the rules.

    Raises:
        BadTurn: names the turn and the rule.
    """
    if not messages:
        raise BadTurn(0, "is empty: at least one user turn is needed")
    last = messages[-1]
    if len(messages) == 1 and last.role == ends_with == "user" and last.content and not last.content.isspace():
        return
    if last.role != ends_with:
        raise BadTurn(len(messages) - 1, f"the last turn must be the {ends_with}'s, not the {last.role}'s")
    before: Role | None = None
    for index, turn in enumerate(messages):
        role, content = turn.role, turn.content
        if role == "system":
            if index:
                raise BadTurn(index, "a system turn must be the first, and the only one")
        elif role == before:
            raise BadTurn(index, f"two {role} turns follow each other: join them, or mend the order")
        elif role == "assistant" and before != "user":
            raise BadTurn(index, "the dialog begins with the assistant's turn: a user turn must come before it")
        if not content or content.isspace():
            raise BadTurn(index, f"is empty: the {role} turn has no text")
        before = role


def without_empty_system(messages: list[Message]) -> list[Message]:
    """The dialog without a system turn that says nothing."""
    first = messages[0] if messages else None
    if first is not None and first.role == "system" and (not first.content or first.content.isspace()):
        return messages[1:]
    return messages


def common_dialog(
    chosen: list[Message], rejected: list[Message], *, fields: tuple[str, str] = ("chosen", "rejected")
) -> tuple[list[Message], str, str]:
    """Two whole conversations -> (the dialog both begin with, chosen completion, rejected completion).

    Raises:
        BadRow: what differs is more than one assistant turn each.
    """
    num_common = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours.content != theirs.content or ours.role != theirs.role:
            break
        num_common += 1
    texts = []
    for field, turns in zip(fields, (chosen, rejected), strict=True):
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
        texts.append(left[0].content)
    return chosen[:num_common], texts[0], texts[1]


def is_transcript(value: object) -> bool:
    """Whether a text is a dialog as HH-RLHF writes it."""
    return type(value) is str and value[:16].lstrip().startswith(_HUMAN)


def is_open_transcript(value: object) -> bool:
    """Whether a text is such a dialog that waits for the assistant."""
    return is_transcript(value) and str(value)[-16:].rstrip().endswith(_ASSISTANT)


def read_transcript(value: object, field: str) -> list[Message]:
    """A text of `Human:` and `Assistant:` turns; blanks around each are the form's, not the turn's."""
    text = check_text(value, field)
    parts = _SPEAKER.split(text)
    if parts[0].strip():
        raise BadRow(field, f"must begin with `Human:`, found {shown(parts[0].strip())}")
    if len(parts) == 1:
        raise BadRow(field, "holds no `Human:` or `Assistant:` turn")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(role=roles[speaker], content=said.strip())
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two texts -> (what both begin with, up to a blank; the rest of each)."""
    length = min(len(chosen), len(rejected))
    same = next((index for index in range(length) if chosen[index] != rejected[index]), length)
    while same and not chosen[same - 1].isspace():
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def history_turns(history: object, field: str) -> list[Message]:
    """Alpaca's history: a list of [question, answer]."""
    if not history:
        return []
    if not isinstance(history, list):
        raise BadRow(field, f"must be a list of [question, answer], found {shown(history)}")
    turns: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{field}[{index}]", f"must be [question, answer], found {shown(pair)}")
        question, answer = (check_text(said, f"{field}[{index}][{side}]") for side, said in enumerate(pair))
        turns += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return turns


def place_in(column: str, *, skip: int = 0) -> Place:
    """Messages stand in a list of turns, but for the first `skip` of them (a system column)."""
    return lambda index: f"{column}[{index - skip}]" if index >= skip else "system"


def place_at(column: str) -> Place:
    """All messages come of one column."""
    return lambda _: column


def system_turn(row: Mapping[str, Any]) -> list[Message]:
    """The `system` column as a turn; none where it has no text."""
    system = row.get("system")
    if system is None or system == "":
        return []
    text = check_text(system, "system")
    return [] if text.isspace() else [Message(role="system", content=text)]
