"""Tools and their calls as files write them -> the JSON texts that rows carry (`alignloop.chat.tool_turns`).

Calls come as the OpenAI format has them (`tool_calls`, or the older `function_call`), bare, or as JSON text; arguments
as an object or as JSON text. Ids are left behind: a tool's turns answer calls in their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from alignloop.chat.tool_turns import as_text, tool_name
from alignloop.data.problems import BadRow, check_nested, shown

TOOLS = ("tools", "functions")
"""Columns of a row that describe tools."""
CALLS = ("tool_calls", "function_call", "function_calls", "tool_call")
"""Where an assistant's turn holds its calls."""
CALLING_ROLES = frozenset(("function_call", "tool_call", "tool_calls"))
"""Roles of turns that are calls themselves, as ShareGPT files have them."""


class Calls(NamedTuple):
    field: str
    text: str


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, or a text, list or object without anything in it, as JSON too."""
    return value is None or (isinstance(value, str | list | dict) and (not value or value in ("[]", "{}", "null")))


def calls_of(turn: Mapping[str, Any], field: str) -> Calls | None:
    """The calls of a turn; None where it makes none."""
    names = [name for name in CALLS if not is_empty(turn.get(name))]
    if len(names) > 1:
        raise BadRow(f"{field}.{names[1]}", f"stands beside {names[0]}: give one of the two")
    return Calls(f"{field}.{names[0]}", read_calls(turn[names[0]], f"{field}.{names[0]}")) if names else None


def read_calls(value: object, field: str) -> str:
    """A call or a list of them, as the JSON list of names and arguments."""
    found = _parsed(value, field)
    listed = found if isinstance(found, list) else [found]
    if not listed:
        raise BadRow(field, "is an empty list: a call has a name and arguments")
    return as_text(
        [_call(one, f"{field}[{index}]" if isinstance(found, list) else field) for index, one in enumerate(listed)]
    )


def _call(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRow(field, f"must be an object with a name and arguments, found {shown(value)}")
    inner = value.get("function", value)
    call = inner if isinstance(inner, Mapping) else value
    name = call.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRow(f"{field}.name", f"must be the name of the tool that is called, found {shown(name)}")
    key = "arguments" if "arguments" in call else "parameters"
    given = call.get(key)
    arguments = {} if is_empty(given) else _parsed(given, f"{field}.{key}")
    if not isinstance(arguments, Mapping):
        raise BadRow(f"{field}.{key}", f"must be an object, or one as JSON text, found {shown(given)}")
    check_nested(arguments, f"{field}.{key}")
    return {"name": name, "arguments": dict(arguments)}


def has_tools(value: object) -> bool:
    """Whether a row's column describes tools: a list, or one as JSON text; a column of that name may say anything."""
    if is_empty(value):
        return False
    return isinstance(value, list | Mapping) or str(value).lstrip().startswith(("[", "{"))


def read_tools(value: object, field: str) -> str:
    """A list of tools, as JSON text: each with its name, in the OpenAI format or bare."""
    found = _parsed(value, field)
    tools = found if isinstance(found, list) else [found]
    check_nested(tools, field)
    return as_text([_as_function(tool, f"{field}[{index}]") for index, tool in enumerate(tools)])


def _as_function(tool: object, field: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping) or not tool_name(tool):
        raise BadRow(field, f"must be an object that names a tool, found {shown(tool)}")
    return tool if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": dict(tool)}


def tools_in(row: Mapping[str, Any]) -> Calls | None:
    """A row's tools; None where no column describes some."""
    names = [name for name in TOOLS if has_tools(row.get(name))]
    if len(names) > 1:
        raise BadRow(names[1], f"stands beside {names[0]}: give one of the two")
    return Calls(names[0], read_tools(row[names[0]], names[0])) if names else None


def _parsed(value: object, field: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(field, f"must be JSON, found {shown(value)}") from None
