"""Turns and completions as files write them -> messages and texts.

A turn's text may come in parts, its reasoning and its tool calls beside it: all become one text, the reasoning in front
(`<think>`), the calls behind (`<tool_calls>`). What only a picture or a sound says cannot be trained, and is refused by
its name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from alignloop.chat.reasoning import join_reasoning, split_reasoning
from alignloop.chat.tool_turns import join_calls
from alignloop.data.problems import BadRow, check_text, is_clean, shown
from alignloop.data.tools import CALLING_ROLES, CALLS, TOOLS, calls_of, is_empty, read_calls, read_tools
from alignloop.records import Message, PreferenceRow, Role, Row, Source

R = TypeVar("R", bound=Row)
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
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_TURN_KEYS = (("from", "value"), ("role", "content"))
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Where a turn holds what was thought before its text."""
REFUSED_MEDIA = frozenset(
    "image images image_url image_urls pixel_values video videos video_url audio audios audio_url input_audio".split()
)
_REFUSED = REFUSED_MEDIA | {"refusal"}
_LEAVE_OUT = "and only texts are trained: leave such rows out (`alignloop data convert` does)"
_MARKS = ("weight", "train", "loss")
"""Whether a turn is to be trained on: the answer that trains must be."""
_READ = frozenset({"from", "value", "role", "content", *REASONING, *CALLS, *TOOLS, *_REFUSED, *_MARKS})
_TEXT_PARTS, _THOUGHT_PARTS = ("text", "input_text", "output_text"), ("thinking", "reasoning")
_FIELDS: dict[type[Row], set[str]] = {model: set(model.model_fields) for model in (Message, Source, PreferenceRow)}
_set_values, _set_fields, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def unchecked(model: type[R], values: dict[str, Any]) -> R:
    """A row of checked values: what pydantic makes of them, in a quarter of its time.

    Readers check every value themselves, for a reason that names its place in the file; a test holds these rows against
    validated ones. `values` holds every field, in the order of the model's.
    """
    row = object.__new__(model)
    _set_values(row, values)
    _set_fields(row, _FIELDS[model])
    _set_extra(row, None)
    _set_private(row, None)
    return row


def message(role: Role, content: str) -> Message:
    return unchecked(Message, {"role": role, "content": content})


def is_turns(value: object) -> bool:
    return type(value) is list and bool(value) and type(value[0]) is dict and ("role" in value[0] or "from" in value[0])


def says_no(value: object) -> bool:
    """Whether a mark of a row or a turn denies: false or 0, or a text that says so, as CSV files have it."""
    denies = ("false", "0", "0.0", "no")
    return isinstance(value, bool | int | float | str) and (value == 0 or str(value).strip().lower() in denies)


def read_turns(turns: object, field: str) -> list[Message]:
    if not isinstance(turns, list):
        raise BadRow(field, f"must be a list of turns, found {shown(turns)}" if turns is not None else "is missing")
    if not turns:
        raise BadRow(field, "is empty: at least one user turn is needed")
    last = len(turns) - 1
    return [
        _plain_turn(turn) or _read_turn(turn, f"{field}[{index}]", context=index < last)
        for index, turn in enumerate(turns)
    ]


def _plain_turn(turn: object) -> Message | None:
    """A turn in which all is as it should be; None for any other: `_read_turn` finds what is wrong."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    for role_key, text_key in _TURN_KEYS:
        if role_key in turn:
            name, text = turn[role_key], turn.get(text_key)
            role = ROLES.get(name) if type(name) is str else None
            return message(role, text) if role is not None and type(text) is str and is_clean(text) else None
    return None


def _read_turn(turn: object, field: str, *, context: bool = False) -> Message:
    """One turn, as `{role, content}` or `{from, value}`; roles are mapped to ours, reasoning goes before the text.

    `context`: other turns follow, so it may be marked as not to be trained on.
    """
    if not isinstance(turn, Mapping):
        raise BadRow(field, f"must be an object with from and value (or role and content), found {shown(turn)}")
    for role_key, text_key in _TURN_KEYS:
        if role_key in turn:
            role = _role(turn[role_key], f"{field}.{role_key}")
            refuse_untrained(turn, role, field, context=context)
            if role == "tools":
                return message(role, read_tools(turn.get(text_key), f"{field}.{text_key}"))
            reasoning = read_reasoning(turn, field)
            text = _text_with_calls(turn, role, field, text_key=text_key, role_key=role_key)
            if reasoning is None:
                return message(role, text)
            if role != "assistant":
                raise BadRow(reasoning.field, f"stands in a {role} turn: only the assistant's hold reasoning")
            return message(role, reasoning.before(text))
    raise BadRow(field, f"has neither from nor role; its keys are {', '.join(map(str, turn)) or 'none'}")


def _text_with_calls(turn: Mapping[str, Any], role: Role, field: str, *, text_key: str, role_key: str) -> str:
    """The turn's text, its calls behind it; a turn of a caller's role (`function_call`) is a call itself."""
    text, inner = turn.get(text_key), f"{field}.{text_key}"
    if str(turn[role_key]).strip().lower() in CALLING_ROLES:
        return join_calls("", read_calls(text, inner))
    calls = calls_of(turn, field)
    if calls is None:
        return "" if role == "tool" and text is None else read_text(text, inner)
    if role != "assistant":
        raise BadRow(calls.field, f"stands in a {role} turn: only the assistant calls tools")
    return join_calls("" if is_empty(text) else read_text(text, inner), calls.text)


def _role(value: object, field: str) -> Role:
    name = check_text(value, field)
    key = name.strip().lower()
    role = ROLES.get(name) or ROLES.get(key)
    if role is not None:
        return role
    if key in CALLING_ROLES:
        return "assistant"
    if key == "tools":  # of rows that alignloop wrote
        return "tools"
    raise BadRow(field, f"unknown role {name[:60]!r}; allowed: {', '.join(ROLES)}")


def refuse_untrained(turn: Mapping[str, Any], role: Role, field: str, *, context: bool = False) -> None:
    """Refuse a turn of a picture or a sound, or one that is marked as not to be trained on.

    `context` lets the mark pass: `beside_turns` carries it.
    """
    for name in _REFUSED.intersection(turn):
        if not is_empty(turn[name]):
            raise BadRow(f"{field}.{name}", f"is no text, {_LEAVE_OUT}")
    for name in TOOLS:
        if not is_empty(turn.get(name)):
            raise BadRow(f"{field}.{name}", "describes tools within a turn: give them in a column of the row (tools)")
    for name in _MARKS:
        if role == "assistant" and not context and says_no(turn.get(name)):
            raise BadRow(f"{field}.{name}", "says that the turn is not to be trained on: leave such rows out")


class Reasoning(NamedTuple):
    field: str
    text: str

    def before(self, answer: str) -> str:
        if split_reasoning(answer)[0] is not None:
            raise BadRow(self.field, "stands beside a text that begins with its own reasoning: give one")
        if not answer or answer.isspace():
            raise BadRow(self.field, "stands beside an empty text: reasoning alone is no answer")
        return join_reasoning(self.text, answer)


def read_reasoning(holder: Mapping[str, Any], field: str) -> Reasoning | None:
    """What a turn, or a row (`field` is empty then), holds of reasoning beside its text."""
    found: list[Reasoning] = []
    for key in REASONING:
        if not is_empty(holder.get(key)):
            inner = f"{field}.{key}" if field else key
            found.append(Reasoning(inner, check_text(holder[key], inner)))
            if found[-1].text != found[0].text:
                first = found[0].field.removeprefix(f"{field}.")
                raise BadRow(inner, f"differs from {first}: only one of them can be meant")
    return found[0] if found else None


def read_text(value: object, field: str) -> str:
    """A text, or one in parts (`[{"type": "text", "text": ...}]`), which are joined as templates join them."""
    if not isinstance(value, list) or not value:
        return check_text(value, field)
    texts, thoughts = [], []
    for index, part in enumerate(value):
        inner = f"{field}[{index}]"
        if not isinstance(part, Mapping):
            texts.append(check_text(part, inner))
            continue
        kind = part.get("type", "text" if "text" in part else None)
        if kind in _TEXT_PARTS:
            texts.append(check_text(part.get("text"), f"{inner}.text"))
        elif kind in _THOUGHT_PARTS:
            key = str(kind) if kind in part else "text"
            thoughts.append(check_text(part.get(key), f"{inner}.{key}"))
        else:
            raise BadRow(inner, f"is a part of type {str(kind)[:60]!r}, {_LEAVE_OUT}")
    return join_reasoning("".join(thoughts) if thoughts else None, "".join(texts))


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
        turn = _plain_turn(value) or _read_turn(value, field)
        if turn.role != "assistant":
            raise BadRow(field, f"must be the assistant's turn, not the {turn.role}'s")
        text = turn.content
    else:
        text = read_text(value, field)
    if not text or text.isspace():
        raise BadRow(field, "is empty")
    return text


def history_turns(history: object, field: str) -> list[Message]:
    if not history:
        return []
    if not isinstance(history, list):
        raise BadRow(field, f"must be a list of [question, answer], found {shown(history)}")
    turns: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{field}[{index}]", f"must be [question, answer], found {shown(pair)}")
        question, answer = (check_text(text, f"{field}[{index}][{side}]") for side, text in enumerate(pair))
        turns += [message("user", question), message("assistant", answer)]
    return turns


def system_turn(row: Mapping[str, Any]) -> list[Message]:
    system = row.get("system")
    if system is None or system == "":
        return []
    text = check_text(system, "system")
    return [] if text.isspace() else [message("system", text)]


def beside_turns(row: Mapping[str, Any], columns: Container[str]) -> dict[str, dict[str, Any]]:
    """What turns hold that no reader reads (dates, names, ...): place -> key -> value."""
    found = {}
    for column, value in row.items():
        kind = type(value)
        if (kind is not list and kind is not dict) or column not in columns:
            continue
        turns = [(column, value)] if kind is dict else [(f"{column}[{n}]", turn) for n, turn in enumerate(value)]
        for where, turn in turns:
            if type(turn) is dict and len(turn) > 2:
                more = {name: item for name, item in turn.items() if name not in _READ and not is_empty(item)}
                if ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower()) == "assistant":
                    more |= {name: turn[name] for name in _MARKS if says_no(turn.get(name))}
                if more:
                    found[where] = more
    return found


def untrained_turn(meta: Mapping[str, Any]) -> str | None:
    """The first turn in a row's `meta` (`beside`) marked as not to be trained on, and the mark; None without one."""
    beside = meta.get("beside")
    for where, more in beside.items() if isinstance(beside, Mapping) else ():
        for name in _MARKS if isinstance(more, Mapping) else ():
            if says_no(more.get(name)):
                return f"{where}.{name}"
    return None
