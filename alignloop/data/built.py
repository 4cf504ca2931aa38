"""Rows made of values that were checked already: as pydantic would make them, at a quarter of its time.

Readers check every value themselves, for a reason that names its place in the file; pydantic's checks would only repeat
them. A test holds these rows against validated ones.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from alignloop.records import Message, PreferenceRow, Role, Row, Source

R = TypeVar("R", bound=Row)
_SLOTS = vars(BaseModel)
_set_values = _SLOTS["__dict__"].__set__
_set_fields = _SLOTS["__pydantic_fields_set__"].__set__
_set_extra = _SLOTS["__pydantic_extra__"].__set__
_set_private = _SLOTS["__pydantic_private__"].__set__
_MESSAGE_FIELDS = set(Message.model_fields)
_SOURCE_FIELDS = set(Source.model_fields)
_PREFERENCE_FIELDS = set(PreferenceRow.model_fields)


def message(role: Role, content: str) -> Message:
    """A turn."""
    return _built(Message, {"role": role, "content": content}, _MESSAGE_FIELDS)


def source(file: str, line: int | None) -> Source:
    """A place in a file."""
    return _built(Source, {"file": file, "line": line}, _SOURCE_FIELDS)


def preference(**values: Any) -> PreferenceRow:
    """A preference row; every field must be given, in the order of the model's."""
    return _built(PreferenceRow, values, _PREFERENCE_FIELDS)


def _built(model: type[R], values: dict[str, Any], fields: set[str]) -> R:
    row = object.__new__(model)
    _set_values(row, values)
    _set_fields(row, fields)
    _set_extra(row, None)
    _set_private(row, None)
    return row
