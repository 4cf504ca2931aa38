"""Calls of tools, and the tools there are, in the one form that rows carry them in; and how a template is given them.

An assistant's text that calls ends with its calls, a JSON list of names and arguments between tags on lines of their
own. A dialog's tools are a turn of their own before the others, with the JSON list of their descriptions as its text.
Chat templates write both their own way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignloop.records import Message

CALLS_START, CALLS_END = "<tool_calls>", "</tool_calls>"
TOOL_ROLES = ("tool", "ipython")
"""What templates call a tool's turn, in the order to try."""


@dataclass(frozen=True)
class ToolStyle:
    """How a template takes tools: `tools` is the JSON list, empty where a dialog has none; `text_arguments`: a call's
    arguments as JSON text, not as an object; `role`: of `TOOL_ROLES`."""

    tools: str = ""
    text_arguments: bool = False
    role: str = TOOL_ROLES[0]

    def functions(self) -> list[Any] | None:
        return json.loads(self.tools) if self.tools else None

    def call_objects(self, calls: str) -> list[dict[str, Any]]:
        """As the OpenAI format has them. Ids are counted: a file's say nothing, and some templates write them."""
        return [
            {
                "id": call_id(number),
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": as_text(call["arguments"]) if self.text_arguments else call["arguments"],
                },
            }
            for number, call in enumerate(json.loads(calls))
        ]


def call_id(number: int) -> str:
    """Nine letters and digits, which is what Mistral's templates ask for."""
    return f"call{number:05d}"


def call_names(calls: str) -> list[str]:
    return [call["name"] for call in json.loads(calls)]


def as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def join_calls(text: str, calls: str) -> str:
    """The text that `split_calls` takes apart again."""
    return f"{text}\n{CALLS_START}\n{calls}\n{CALLS_END}" if text else f"{CALLS_START}\n{calls}\n{CALLS_END}"


def split_calls(text: str) -> tuple[str, str]:
    """An assistant's text, and the JSON list of the calls behind it; empty where there are none."""
    if not text.endswith(f"]\n{CALLS_END}"):
        return text, ""
    start = text.rfind(f"{CALLS_START}\n[")
    if start < 0 or (start and text[start - 1] != "\n"):
        return text, ""
    calls = text[start + len(CALLS_START) + 1 : -len(CALLS_END) - 1]
    return (text[: max(start - 1, 0)], calls) if _are_calls(calls) else (text, "")


def _are_calls(text: str) -> bool:
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(calls) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        for call in calls
    )


def split_tools(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The JSON list of a dialog's tools, empty where it has none, and its other turns."""
    if not any(message.role == "tools" for message in messages):
        return "", messages
    (tools, *_) = (message.content for message in messages if message.role == "tools")
    return tools, [message for message in messages if message.role != "tools"]


def uses_tools(messages: Sequence[Message]) -> bool:
    """Whether a dialog has tools, a tool's turn or a call."""
    return any(
        message.role in ("tools", "tool") or (message.role == "assistant" and split_calls(message.content)[1])
        for message in messages
    )


def tool_name(tool: Mapping[str, Any]) -> str:
    """A tool's name, as the OpenAI format has it or beside its description."""
    function = tool.get("function")
    return str((function if isinstance(function, Mapping) else tool).get("name", ""))
