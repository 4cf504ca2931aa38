"""Dialogs as the strings that lm-eval carries prompts as.

A rendered template as string would have to be tokenised again, and special tokens written by a user would turn into
control tokens on the way. So the "rendered" prompt is the list of messages as JSON behind a mark, and only the chat
format turns it into ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from alignloop.records import Message

MARK = "\x00alignloop/messages\x00"


def pack_messages(messages: Sequence[dict[str, str]]) -> str:
    """Messages as one marked string."""
    return MARK + json.dumps(list(messages), ensure_ascii=False)


def unpack_messages(context: str) -> tuple[Message, ...] | None:
    """The messages of a marked string; None for a plain one."""
    if not context.startswith(MARK):
        return None
    return tuple(Message(**message) for message in json.loads(context[len(MARK) :]))
