"""Templates without a place for a system turn: what stands in it goes before the first user turn."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.chat.format import ChatFormat
from alignloop.errors import ModelError
from alignloop.records import Message


def takes_system_turn(chat: ChatFormat) -> bool:
    """Whether the template has a place for a system turn; some refuse one (Gemma 2)."""
    try:
        chat.prompt_ids([Message(role="system", content="a"), Message(role="user", content="a")])
    except ModelError:
        return False
    return True


def in_first_user_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The dialog with its system turn, if it has one, at the head of the user turn that follows."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return tuple(messages)
    content = "\n\n".join(message.content.strip("\n") for message in messages[:2])
    return (Message(role="user", content=content), *messages[2:])
