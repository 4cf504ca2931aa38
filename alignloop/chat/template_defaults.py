"""A template's own defaults: kwargs that a recipe chose, written at the head of the template itself.

A checkpoint then renders as it was trained wherever it is loaded, by every later stage and by whoever serves it, and
who serves it can still pass another value.

    {%- set enable_thinking = enable_thinking | default(true) %}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

Value = bool | int | float | str
SWITCHES = ("enable_thinking", "thinking")
"""Kwargs by which templates are asked for reasoning, tried in this order."""
_SET = re.compile(r"\{%- set (\w+) = (\w+) \| default\(")
_END = ") %}\n"


def with_defaults(jinja: str, kwargs: Mapping[str, Value]) -> str:
    """The template with these defaults, beside (or instead of) those it has."""
    kept, body = _parsed(jinja)
    lines = (
        f"{{%- set {key} = {key} | default({json.dumps(value, ensure_ascii=False)}{_END}"
        for key, value in (kept | dict(kwargs)).items()
    )
    return "".join(lines) + body


def defaults_of(jinja: str) -> dict[str, Value]:
    """The defaults that `with_defaults` put at the head of a template."""
    return _parsed(jinja)[0]


def in_yaml(kwargs: Mapping[str, Value]) -> str:
    """As a recipe takes them: `{enable_thinking: true}`."""
    return f"{{{', '.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in kwargs.items())}}}"


def _parsed(jinja: str) -> tuple[dict[str, Value], str]:
    found: dict[str, Value] = {}
    while (match := _SET.match(jinja)) and match[1] == match[2]:
        try:
            value, end = json.JSONDecoder().raw_decode(jinja, match.end())
        except ValueError:
            break
        if not jinja.startswith(_END, end):
            break
        found[match[1]] = value
        jinja = jinja[end + len(_END) :]
    return found, jinja
