"""The rules a dialog keeps, and dialogs that are written as texts or inside completions.

A dialog is: at most one system turn, first; then user and assistant in turn, the user first; no turn without text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from alignloop.data.problems import BadRow, check_text, shown
from alignloop.records import Message, Role

_HUMAN, _ASSISTANT = "Human:", "Assistant:"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
Place = Callable[[int], str]
"""Index of a message -> the field of the file it stands in."""


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


def place_in(column: str) -> Place:
    """Messages stand in a list of turns."""
    return lambda index: f"{column}[{index}]"


def place_at(column: str) -> Place:
    """All messages come of one column."""
    return lambda _: column
