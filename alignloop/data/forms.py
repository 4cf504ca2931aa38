"""The forms preference files come in: a table. A new form is one more entry in `FORMS`, and its function in `parts`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from alignloop.data import parts
from alignloop.data.asked import RawObject
from alignloop.data.dialogs import is_open_transcript, is_transcript
from alignloop.data.ranked import is_ranked
from alignloop.data.scored import is_scored
from alignloop.data.turns import is_turns

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
