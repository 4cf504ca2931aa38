"""The forms files come in: two tables. A new form is one more entry in one of them, and its function in `parts`.

Files to fine-tune on hold dialogs that end with their target, or come in any form of preferences: of these the best
completion (`edited`, else `chosen`) is the target.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from alignloop.data import parts
from alignloop.data.dialogs import (
    Dialog,
    RawObject,
    any_dialog,
    instruction,
    is_open_transcript,
    is_transcript,
    turns_in,
)
from alignloop.data.parts import Parts
from alignloop.data.ranked import is_ranked, is_scored
from alignloop.data.turns import REASONING, is_turns, read_completion, read_reasoning
from alignloop.records import Message

_QUESTION = re.compile(r"(^|_|-)(prompt|question|query|instruction|input|user|ask|post|context)$", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Attributes:
        name: shown to the user, and what `data.form` takes.
        wants: the columns, shown where no form fits.
        matches: whether a row looks like this form (its columns and their kinds; values may still be wrong).
        parts: of a row; where True stands beside it, its prompt alone is wanted.
        grouped: rows that follow each other with the same prompt are one row of the form.
        weak: its columns are some of another form's, so a row that has only these may be one of those with a gap.
    """

    name: str
    wants: str
    matches: Callable[[RawObject], bool]
    parts: Callable[[RawObject, bool], parts.Parts]
    grouped: bool = False
    weak: bool = False


def form_of(row: RawObject, forms: Sequence[Form]) -> Form | None:
    """The first of `forms` that the row looks like."""
    return next((form for form in forms if form.matches(row)), None)


def detect(rows: Iterable[RawObject], forms: Sequence[Form]) -> Form | None:
    """The form most of `rows` have; the first in the table among equals; None where no row has any."""
    votes = Counter(form.name for row in rows if (form := form_of(row, forms)) is not None)
    return max(forms, key=lambda form: votes[form.name]) if votes else None


def _is_canonical(row: RawObject) -> bool:
    if "prompt" not in row and "messages" not in row:
        return False
    prompt = row.get("prompt")
    return not (is_turns(prompt) or is_turns(row.get("chosen")) or is_open_transcript(prompt))


def _is_hh(row: RawObject) -> bool:
    if "prompt" in row:
        return is_open_transcript(row["prompt"])
    return is_transcript(row.get("chosen")) and type(row.get("rejected")) is str


def _is_text_pair(row: RawObject) -> bool:
    """Two texts, and no column that seems to hold what was asked: that one needs its name (`data.columns`)."""
    if type(row.get("chosen")) is not str or type(row.get("rejected")) is not str:
        return False
    return not any(type(value) is str and value and _QUESTION.search(name) for name, value in row.items())


FORMS: tuple[Form, ...] = (
    Form(
        "sharegpt",
        "conversations (turns with from, value), chosen, rejected",
        matches=lambda row: "conversations" in row,
        parts=parts.sharegpt,
    ),
    Form(
        "ranked",
        "prompt, ranking (best first), or completions, responses or answers with rank, score or rating",
        matches=is_ranked,
        parts=parts.ranked,
    ),
    Form(
        "scored",
        "prompt, response (or completion), helpfulness (or score, rating, reward): a row for each response",
        matches=is_scored,
        parts=parts.ranked,
        grouped=True,
    ),
    Form(
        "ultrafeedback",
        "prompt (a text), chosen, rejected (turns that repeat it)",
        matches=lambda row: type(row.get("prompt")) is str and is_turns(row.get("chosen")),
        parts=parts.ultrafeedback,
    ),
    Form(
        "trl_conversational",
        "prompt, chosen, rejected (turns with role, content)",
        matches=lambda row: (
            is_turns(row.get("prompt")) or (is_turns(row.get("messages")) and is_turns(row.get("chosen")))
        ),
        parts=parts.trl_conversational,
    ),
    Form(
        "trl_implicit",
        "chosen, rejected (whole conversations, turns with role, content)",
        matches=lambda row: (
            is_turns(row.get("chosen")) and row.keys().isdisjoint({"prompt", "messages", "instruction"})
        ),
        parts=parts.trl_implicit,
    ),
    Form(
        "hh_transcript",
        "chosen, rejected (texts of `Human:` and `Assistant:` turns)",
        matches=_is_hh,
        parts=parts.hh_transcript,
    ),
    Form("canonical", "prompt (or messages), chosen, rejected", matches=_is_canonical, parts=parts.canonical),
    Form(
        "alpaca",
        "instruction, input, output (two texts, or chosen and rejected)",
        matches=lambda row: "instruction" in row,
        parts=parts.alpaca,
    ),
    Form(
        "text_pair",
        "chosen, rejected (texts that begin alike)",
        matches=_is_text_pair,
        parts=parts.text_pair,
        weak=True,
    ),
    Form(
        "best_first",
        "prompt, completions (or responses), best first; never guessed, only by name",
        matches=lambda row: False,
        parts=parts.ranked,
    ),
)


_SHARED = frozenset({"id", "meta", "system"})


def _answered(column: str, asked: Callable[[RawObject], Dialog]) -> Callable[[RawObject, bool], Parts]:
    """What was asked, and the answer of a column, what was thought before it in front."""

    def parts(row: RawObject, prompt_only: bool) -> Parts:
        answer, reasoning = read_completion(row.get(column), column), read_reasoning(row, "")
        text = answer if reasoning is None else reasoning.before(answer)
        dialog = asked(row)
        read = _SHARED | dialog.columns | {column, *REASONING}
        return Parts([*dialog.messages, Message(role="assistant", content=text)], (), dialog.field_of, read)

    return parts


def _turns(column: str) -> Callable[[RawObject, bool], Parts]:
    def parts(row: RawObject, prompt_only: bool) -> Parts:
        dialog = turns_in(row, column)
        return Parts(dialog.messages, (), dialog.field_of, _SHARED | dialog.columns)

    return parts


def compares(row: RawObject) -> bool:
    """Whether a row looks like one of a preference file."""
    return row.get("chosen") is not None or type(row.get("output")) is list or is_ranked(row) or is_scored(row)


def _if_compared(form: Form) -> Form:
    return replace(form, matches=lambda row: compares(row) and form.matches(row))


SFT_FORMS: tuple[Form, ...] = (
    *(_if_compared(form) for form in FORMS),
    Form(
        "sharegpt_sft",
        "conversations (turns with from, value), the last the assistant's",
        matches=lambda row: "conversations" in row,
        parts=_turns("conversations"),
    ),
    Form(
        "prompt_completion",
        "prompt, completion (texts, or turns with role, content)",
        matches=lambda row: "completion" in row and ("prompt" in row or "messages" in row),
        parts=_answered("completion", any_dialog),
    ),
    Form(
        "messages",
        "messages (turns with role, content), the last the assistant's",
        matches=lambda row: "messages" in row,
        parts=_turns("messages"),
    ),
    Form(
        "alpaca_sft",
        "instruction, input, output (a text)",
        matches=lambda row: "instruction" in row and "output" in row,
        parts=_answered("output", instruction),
    ),
)
