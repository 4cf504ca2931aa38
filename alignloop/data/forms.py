"""The forms preference files come in: a table. A new form is one more entry in `FORMS`.

raw object --Form.dialog--> messages up to the completion      (preference and prompt files)
raw object --Form.completions--> chosen, rejected, edited      (preference files)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignloop.data.problems import BadRow, check_text, shown
from alignloop.records import Message, Role

RawObject = Mapping[str, Any]
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TURN_KEYS = (("from", "value"), ("role", "content"))


@dataclass(frozen=True)
class Completions:
    """The compared completions of a row; `edited` is None where the row has none."""

    chosen: str
    rejected: str
    edited: str | None


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Attributes:
        name: shown to the user.
        wants: the columns, shown where no form fits.
        matches: whether a row looks like this form (its columns only; values may still be wrong).
        dialog: the messages up to the completion.
        completions: what is compared.
        columns: columns the form reads; all others go to `meta`.
    """

    name: str
    wants: str
    matches: Callable[[RawObject], bool]
    dialog: Callable[[RawObject], list[Message]]
    completions: Callable[[RawObject], Completions]
    columns: frozenset[str]


def detect(rows: Iterable[RawObject]) -> Form | None:
    """The form most of `rows` have; the first in the table among equals; None where no row has any."""
    votes = Counter(form.name for row in rows for form in FORMS if form.matches(row))
    return max(FORMS, key=lambda form: votes[form.name]) if votes else None


def read_turn(turn: object, field: str) -> Message:
    """One turn, as `{from, value}` or `{role, content}`; roles are mapped to ours."""
    if not isinstance(turn, Mapping):
        raise BadRow(field, f"must be an object with from and value (or role and content), found {shown(turn)}")
    for role_key, text_key in _TURN_KEYS:
        if role_key in turn:
            role = check_text(turn[role_key], f"{field}.{role_key}")
            if role.strip().lower() not in ROLES:
                raise BadRow(f"{field}.{role_key}", f"unknown role {role!r}; allowed: {', '.join(ROLES)}")
            content = check_text(turn.get(text_key), f"{field}.{text_key}")
            return Message(role=ROLES[role.strip().lower()], content=content)
    raise BadRow(field, f"has neither from nor role; its keys are {', '.join(map(str, turn)) or 'none'}")


def read_turns(turns: object, field: str) -> list[Message]:
    """A list of turns."""
    if not isinstance(turns, list):
        raise BadRow(field, f"must be a list of turns, found {shown(turns)}" if turns is not None else "is missing")
    if not turns:
        raise BadRow(field, "is empty: at least one user turn is needed")
    return [read_turn(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]


def read_completion(value: object, field: str) -> str:
    """A completion: a text, or one assistant turn. Empty ones are refused."""
    if value is None:
        raise BadRow(field, f"is missing: every preference row needs {field}")
    text_field = field
    if isinstance(value, Mapping):
        turn = read_turn(value, field)
        if turn.role != "assistant":
            raise BadRow(field, f"must be the assistant's turn, not the {turn.role}'s")
        text = turn.content
    else:
        text = check_text(value, text_field)
    if not text.strip():
        raise BadRow(field, "is empty")
    return text


def _completions(row: RawObject) -> Completions:
    edited = row.get("edited")
    blank = edited is None or (isinstance(edited, str) and not edited.strip())
    return Completions(
        chosen=read_completion(row.get("chosen"), "chosen"),
        rejected=read_completion(row.get("rejected"), "rejected"),
        edited=None if blank else read_completion(edited, "edited"),
    )


def _canonical_dialog(row: RawObject) -> list[Message]:
    if "messages" in row and row["messages"] is not None:
        if row.get("prompt") is not None:
            raise BadRow("prompt", "stands beside messages: give one of the two")
        return read_turns(row["messages"], "messages")
    if row.get("prompt") is None:
        raise BadRow("prompt", "is missing: every row needs prompt (a text) or messages (a list of turns)")
    if isinstance(row["prompt"], list):
        raise BadRow("prompt", "is a list of turns: name the column messages")
    return [Message(role="user", content=check_text(row["prompt"], "prompt"))]


def _sharegpt_dialog(row: RawObject) -> list[Message]:
    dialog = read_turns(row.get("conversations"), "conversations")
    system = row.get("system")
    if system is None or system == "":
        return dialog
    return [Message(role="system", content=check_text(system, "system")), *dialog]


_SHARED = frozenset({"chosen", "rejected", "edited", "strength", "id", "annotator", "meta"})
FORMS: tuple[Form, ...] = (
    Form(
        name="sharegpt",
        wants="conversations (turns with from, value), chosen, rejected",
        matches=lambda row: "conversations" in row,
        dialog=_sharegpt_dialog,
        completions=_completions,
        columns=_SHARED | {"conversations", "system"},
    ),
    Form(
        name="canonical",
        wants="prompt (or messages), chosen, rejected",
        matches=lambda row: "prompt" in row or "messages" in row,
        dialog=_canonical_dialog,
        completions=_completions,
        columns=_SHARED | {"prompt", "messages"},
    ),
)
