"""What can be wrong with a row, in plain sentences.

wrong value --BadRow(field, reason)--> RejectedRow
pydantic.ValidationError --plain_problems--> (field, sentence), ...
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any, TypeGuard

from pydantic import ValidationError

EXCERPT = 200
"""Characters of a row or value that are shown."""
MAX_DEPTH = 64
"""Lists and objects within each other, in columns that are carried along."""
_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
_JSON = json.JSONEncoder(ensure_ascii=True, default=repr)
_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
}


class BadRow(Exception):
    """A row that cannot be read.

    Args:
        field: path of the wrong value in the row, as in the file (`conversations[2].value`); None: the row itself.
        reason: a sentence without the field.
    """

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def shown(value: object) -> str:
    """A value as messages show it: its kind and the start of what it holds."""
    names = {str: "text", int: "number", float: "number", bool: "boolean", list: "list", dict: "object"}
    if value is None:
        return "null"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more than 4,300 digits
        text = "that cannot be shown"
    return f"the {names.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"


def excerpt(value: object) -> str:
    """The start of a value as JSON; a text stands as it is."""
    if isinstance(value, str):
        return value[:EXCERPT].encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        return "".join(islice(_JSON.iterencode(value), EXCERPT))[:EXCERPT]
    except (RecursionError, ValueError, TypeError):
        return ""


def value_at(row: object, field: str | None) -> str | None:
    """The start of the value at `field` (`conversations[2].value`) of a row; None where there is none."""
    if field is None:
        return None
    if isinstance(row, Mapping):
        for name in (field, field.removeprefix("meta.")):
            if name in row:
                return excerpt(row[name])
    found = found_at(row, field)
    return None if found is None else excerpt(found)


def found_at(row: object, field: str) -> Any:
    """The value at `field` (`conversations[2].value`) of a row; None where there is none."""
    found: Any = row
    for index, name in _STEP.findall(field):
        if index:
            found = found[int(index)] if isinstance(found, list) and int(index) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def is_clean(text: str) -> bool:
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(value: object, field: str) -> str:
    """`value` as text that every later step can carry.

    Raises:
        BadRow: not a string, a lone surrogate (cannot be written as UTF-8), or a NUL (cut or refused by tokenizers).
    """
    if type(value) is str and is_clean(value):
        return value
    if value is None:
        raise BadRow(field, "is missing or null; a text is needed")
    if not isinstance(value, str):
        raise BadRow(field, f"must be a text, found {shown(value)}")
    if (nul := value.find("\0")) >= 0:
        raise BadRow(field, f"holds a NUL character (character {nul + 1}): remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            field,
            f"holds a lone surrogate \\u{ord(value[error.start]):04x} (character {error.start + 1}), half of a "
            "character pair that was cut apart: remove it",
        ) from None
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a float can hold it: neither infinite nor a whole number of hundreds of digits."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def check_nested(value: object, field: str, *, depth: int = 0) -> None:
    """Refuse a free column that could not be written again.

    Raises:
        BadRow: it holds a text or a number that cannot be, or is nested more than `MAX_DEPTH` deep.
    """
    if depth > MAX_DEPTH:
        raise BadRow(None, f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        check_text(value, field)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name, field)
            if type(item) is not str or not is_clean(item):
                check_nested(item, f"{field}.{name}", depth=depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_nested(item, f"{field}[{index}]", depth=depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRow(field, "is a number too large to be written again")


def plain_problems(error: ValidationError) -> tuple[tuple[str | None, str], ...]:
    """pydantic's findings as (field path, sentence): `("messages[1].role", "unknown value ...")`."""
    return tuple((_path(item["loc"]), _sentence(item)) for item in error.errors(include_url=False))


def _path(location: tuple[int | str, ...]) -> str | None:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or None


def _sentence(item: Any) -> str:
    kind, found, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a column of this kind of row"
    if kind == "literal_error":
        return f"unknown value {found!r}; allowed: {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("string_too_short", "too_short"):
        return "is empty"
    if kind == "json_invalid":
        return f"invalid JSON: {context['error']}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, found {shown(found)}"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}, found {shown(found)}"
