"""The forms preference files come in: a table. A new form is one more entry in `FORMS`.

raw object --Form.dialog--> messages up to the completion                        (prompt files)
raw object --Form.compare--> the same, and what is compared                      (preference files)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignloop.data.built import message
from alignloop.data.dialogs import (
    Place,
    common_dialog,
    common_text,
    is_open_transcript,
    is_transcript,
    place_at,
    place_in,
    read_transcript,
)
from alignloop.data.problems import BadRow, check_text, shown
from alignloop.data.ranked import LISTS, NUMBER_LISTS, best_against_each, columns_read, is_ranked
from alignloop.data.scored import SCORED, is_scored
from alignloop.data.turns import history_turns, is_turns, read_completion, read_text, read_turns
from alignloop.records import Message, PreferenceRow

RawObject = Mapping[str, Any]


class Pair(NamedTuple):
    """What is compared; `edited` is None where there is none, `meta` what is known of this pair alone."""

    chosen: str
    rejected: str
    edited: str | None = None
    meta: Mapping[str, Any] | None = None


class Comparison(NamedTuple):
    """A row taken apart.

    Attributes:
        dialog: the messages up to the completion, as they stand in the row; a `system` column comes before them.
        pairs: one, but for ranked lists.
    """

    dialog: list[Message]
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Attributes:
        name: shown to the user, and what `data.form` takes.
        wants: the columns, shown where no form fits.
        matches: whether a row looks like this form (its columns and their kinds; values may still be wrong).
        compare: dialog and completions.
        dialog: the dialog alone.
        place: of a row's message, the field it stands in.
        columns: columns the form may read; all others go to `meta`.
        reads: of a row, those that it does read, where that hangs on the row; None: all of `columns`.
        grouped: rows that follow each other with the same prompt are one row of the form.
        weak: its columns are some of another form's, so a row that has only these may be one of those with a gap.
    """

    name: str
    wants: str
    matches: Callable[[RawObject], bool]
    compare: Callable[[RawObject], Comparison]
    dialog: Callable[[RawObject], list[Message]]
    place: Callable[[RawObject], Place]
    columns: frozenset[str]
    reads: Callable[[RawObject], Collection[str]] | None = None
    grouped: bool = False
    weak: bool = False


def form_of(row: RawObject, forms: Sequence[Form]) -> Form | None:
    """The first of `forms` that the row looks like."""
    return next((form for form in forms if form.matches(row)), None)


def detect(rows: Iterable[RawObject], forms: Sequence[Form]) -> Form | None:
    """The form most of `rows` have; the first in the table among equals; None where no row has any."""
    votes = Counter(form.name for row in rows if (form := form_of(row, forms)) is not None)
    return max(forms, key=lambda form: votes[form.name]) if votes else None


def _edited(row: RawObject) -> str | None:
    edited = row.get("edited")
    if edited is None or (type(edited) is str and (not edited or edited.isspace())):
        return None
    return read_completion(edited, "edited")


def _pair(row: RawObject) -> Pair:
    return Pair(
        read_completion(row.get("chosen"), "chosen"),
        read_completion(row.get("rejected"), "rejected"),
        _edited(row),
    )


def _one_pair(dialog: Callable[[RawObject], list[Message]]) -> Callable[[RawObject], Comparison]:
    return lambda row: Comparison(dialog(row), (_pair(row),))


def _user(text: str) -> Message:
    return message("user", text)


def _canonical_dialog(row: RawObject) -> list[Message]:
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is not None:
        if prompt is not None:
            raise BadRow("prompt", "stands beside messages: give one of the two")
        return read_turns(messages, "messages")
    if prompt is None:
        raise BadRow("prompt", "is missing: every row needs prompt (a text) or messages (a list of turns)")
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], Mapping)):
        raise BadRow("prompt", "is a list that holds no turns: give a text, or turns with role and content")
    asked = _user(read_text(prompt, "prompt"))
    history = row.get("history")
    return [*history_turns(history, "history"), asked] if type(history) is list else [asked]


def _canonical_place(row: RawObject) -> Place:
    return place_in("messages") if row.get("messages") is not None else _asked_place(row, "prompt")


def _asked_place(row: RawObject, column: str) -> Place:
    """Of a text that was asked, with what was said before it."""
    history = row.get("history")
    num_history = 2 * len(history) if type(history) is list else 0
    return lambda index: f"history[{index // 2}][{index % 2}]" if index < num_history else column


def _is_canonical(row: RawObject) -> bool:
    if "prompt" not in row and "messages" not in row:
        return False
    prompt = row.get("prompt")
    return not (is_turns(prompt) or is_turns(row.get("chosen")) or is_open_transcript(prompt))


def _sharegpt_dialog(row: RawObject) -> list[Message]:
    return read_turns(row.get("conversations"), "conversations")


def _trl_column(row: RawObject) -> str:
    return "prompt" if row.get("prompt") is not None else "messages"


def _trl_dialog(row: RawObject) -> list[Message]:
    return read_turns(row.get(_trl_column(row)), _trl_column(row))


def _trl_compare(row: RawObject) -> Comparison:
    dialog = _trl_dialog(row)
    chosen, rejected = (_after(dialog, row.get(name), name) for name in ("chosen", "rejected"))
    more, best, worst = common_dialog(chosen, rejected)
    return Comparison([*dialog, *more], (Pair(best, worst, _edited(row)),))


def _trl_prompt(row: RawObject) -> list[Message]:
    compared = row.get("chosen") is not None and row.get("rejected") is not None
    return _trl_compare(row).dialog if compared else _trl_dialog(row)


def _after(dialog: list[Message], value: object, name: str) -> list[Message]:
    """A completion's turns, without the dialog where they repeat it."""
    turns = _completion_turns(value, name)
    return turns[len(dialog) :] if len(turns) > len(dialog) and turns[: len(dialog)] == dialog else turns


def _completion_turns(value: object, name: str) -> list[Message]:
    if value is None:
        raise BadRow(name, f"is missing: every preference row needs {name}")
    if isinstance(value, list):
        return read_turns(value, name)
    return [Message(role="assistant", content=read_completion(value, name))]


def _implicit_compare(row: RawObject) -> Comparison:
    chosen, rejected = (_completion_turns(row.get(name), name) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return Comparison(dialog, (Pair(best, worst, _edited(row)),))


def _implicit_dialog(row: RawObject) -> list[Message]:
    return _implicit_compare(row).dialog


def _ultrafeedback_compare(row: RawObject) -> Comparison:
    prompt = check_text(row.get("prompt"), "prompt")
    chosen, rejected = (_completion_turns(row.get(name), name) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    pair = Pair(best, worst, _edited(row))
    if not dialog:
        return Comparison([_user(prompt)], (pair,))
    said = {" ".join(message.content.split()) for message in dialog if message.role == "user"}
    if " ".join(prompt.split()) not in said:
        raise BadRow("prompt", "is none of the user turns with which chosen and rejected begin")
    return Comparison(dialog, (pair,))


def _ultrafeedback_dialog(row: RawObject) -> list[Message]:
    if row.get("chosen") is None or row.get("rejected") is None:
        return [_user(check_text(row.get("prompt"), "prompt"))]
    return _ultrafeedback_compare(row).dialog


def _is_hh(row: RawObject) -> bool:
    if "prompt" in row:
        return is_open_transcript(row["prompt"])
    return is_transcript(row.get("chosen")) and type(row.get("rejected")) is str


def _hh_compare(row: RawObject) -> Comparison:
    if row.get("prompt") is not None:
        return Comparison(_hh_prompt(row), (_pair(row),))
    chosen, rejected = (read_transcript(row.get(name), name) for name in ("chosen", "rejected"))
    dialog, best, worst = common_dialog(chosen, rejected)
    return Comparison(dialog, (Pair(best, worst, _edited(row)),))


def _hh_prompt(row: RawObject) -> list[Message]:
    turns = read_transcript(row["prompt"], "prompt")
    last = turns[-1]
    return turns[:-1] if last.role == "assistant" and not last.content else turns


def _hh_dialog(row: RawObject) -> list[Message]:
    return _hh_prompt(row) if row.get("prompt") is not None else _hh_compare(row).dialog


def _is_text_pair(row: RawObject) -> bool:
    """Two texts, and no column that seems to hold what was asked: that one needs its name (`data.columns`)."""
    if type(row.get("chosen")) is not str or type(row.get("rejected")) is not str:
        return False
    return not any(type(value) is str and value and _ASKED.search(name) for name, value in row.items())


def _text_compare(row: RawObject) -> Comparison:
    chosen, rejected = (check_text(row.get(name), name) for name in ("chosen", "rejected"))
    prompt, best, worst = common_text(chosen, rejected)
    if not prompt.strip():
        raise BadRow("chosen", "begins with no words that rejected begins with, too: there is no prompt; add a column")
    row = {**row, "chosen": best, "rejected": worst}
    return Comparison([_user(prompt.rstrip())], (_pair(row),))


def alpaca_dialog(row: RawObject) -> list[Message]:
    """An instruction with its input, after the history."""
    text = check_text(row.get("instruction"), "instruction")
    given = row.get("input")
    if given is not None and given != "":
        text = f"{text}\n{check_text(given, 'input')}" if text else check_text(given, "input")
    return [*history_turns(row.get("history"), "history"), _user(text)]


def alpaca_place(row: RawObject) -> Place:
    """Of a message of `alpaca_dialog`, the field it stands in."""
    return _asked_place(row, "instruction")


def _alpaca_compare(row: RawObject) -> Comparison:
    output = row.get("output")
    if row.get("chosen") is None and row.get("rejected") is None and output is not None:
        if not isinstance(output, list) or len(output) != 2:
            raise BadRow("output", f"must be two texts, the better one first, found {shown(output)}")
        pair = Pair(read_completion(output[0], "output[0]"), read_completion(output[1], "output[1]"), _edited(row))
        return Comparison(alpaca_dialog(row), (pair,))
    return Comparison(alpaca_dialog(row), (_pair(row),))


def _asked_by(row: RawObject) -> tuple[str, Callable[[RawObject], list[Message]], Callable[[RawObject], Place]]:
    """The column that holds what was asked, in whatever form; how it is read; the places of its messages."""
    if row.get("instruction") is not None and row.get("prompt") is None and row.get("messages") is None:
        return "instruction", alpaca_dialog, alpaca_place
    if is_turns(row.get("prompt")):
        return "prompt", _trl_dialog, lambda row: place_in("prompt")
    if is_open_transcript(row.get("prompt")):
        return "prompt", _hh_prompt, lambda row: place_at("prompt")
    return "messages" if row.get("messages") is not None else "prompt", _canonical_dialog, _canonical_place


def asked_dialog(row: RawObject) -> list[Message]:
    """What was asked: a text (with what was said before it), turns, an instruction with its input, or a transcript."""
    return _asked_by(row)[1](row)


def asked_place(row: RawObject) -> Place:
    """Of a message of `asked_dialog`, the field it stands in."""
    return _asked_by(row)[2](row)


def asked_columns(row: RawObject) -> set[str]:
    """The columns that `asked_dialog` reads of a row."""
    asked = _asked_by(row)[0]
    found = {asked, "input"} if asked == "instruction" else {asked}
    return found | {"history"} if asked != "messages" and type(row.get("history")) is list else found


def _ranked_reads(row: RawObject) -> set[str]:
    return {*asked_columns(row), *columns_read(row), *(_SHARED - {"chosen", "rejected", "edited"})}


def _ultrafeedback_reads(row: RawObject) -> frozenset[str]:
    """Without `messages` where they are another dialog than the row's."""
    messages, chosen = row.get("messages"), row.get("chosen")
    repeats = type(chosen) is list and messages in (chosen, chosen[:-1], row.get("rejected"))
    return _ULTRAFEEDBACK if repeats else _ULTRAFEEDBACK - {"messages"}


def _canonical_reads(row: RawObject) -> frozenset[str]:
    return _CANONICAL if type(row.get("history")) is list and row.get("messages") is None else _CANONICAL_ALONE


def _trl_reads(row: RawObject) -> frozenset[str]:
    return _SHARED | {_trl_column(row)}


def _alpaca_reads(row: RawObject) -> frozenset[str]:
    pair = row.get("chosen") is not None or row.get("rejected") is not None
    return _SHARED | _ALPACA - ({"output"} if pair else {"chosen", "rejected"})


def _ranked_compare(row: RawObject) -> Comparison:
    ranked = best_against_each(row)
    pairs = [Pair(best.text, worse.text, meta=meta) for best, worse, meta in ranked]
    return Comparison(asked_dialog(row), pairs)


# What `PreferenceRow` has beside texts: read by `rows.preference_rows`, whatever the form; a system column likewise.
_SHARED = frozenset(PreferenceRow.model_fields) - {"messages", "source"} | {"system"}
_ALPACA = frozenset({"instruction", "input", "output", "history"})
_ULTRAFEEDBACK = _SHARED | {"prompt", "messages"}
_CANONICAL_ALONE = _SHARED | {"prompt", "messages"}
_CANONICAL = _CANONICAL_ALONE | {"history"}
_RANKED = _SHARED | _ALPACA | {"prompt", "messages", *LISTS, *NUMBER_LISTS}
_ASKED = re.compile(r"(^|_|-)(prompt|question|query|instruction|input|user|ask|post|context)$", re.IGNORECASE)
FORMS: tuple[Form, ...] = (
    Form(
        name="sharegpt",
        wants="conversations (turns with from, value), chosen, rejected",
        matches=lambda row: "conversations" in row,
        compare=_one_pair(_sharegpt_dialog),
        dialog=_sharegpt_dialog,
        place=lambda row: place_in("conversations"),
        columns=_SHARED | {"conversations"},
    ),
    Form(
        name="ranked",
        wants="prompt, ranking (best first), or completions, responses or answers with rank, score or rating",
        matches=is_ranked,
        compare=_ranked_compare,
        dialog=asked_dialog,
        place=asked_place,
        columns=_RANKED,
        reads=_ranked_reads,
    ),
    Form(
        name="scored",
        wants="prompt, response (or completion), helpfulness (or score, rating, reward): a row for each response",
        matches=is_scored,
        compare=_ranked_compare,
        dialog=asked_dialog,
        place=asked_place,
        columns=_RANKED | SCORED,
        reads=_ranked_reads,
        grouped=True,
    ),
    Form(
        name="ultrafeedback",
        wants="prompt (a text), chosen, rejected (turns that repeat it)",
        matches=lambda row: type(row.get("prompt")) is str and is_turns(row.get("chosen")),
        compare=_ultrafeedback_compare,
        dialog=_ultrafeedback_dialog,
        place=lambda row: place_in("chosen"),
        columns=_ULTRAFEEDBACK,
        reads=_ultrafeedback_reads,
    ),
    Form(
        name="trl_conversational",
        wants="prompt, chosen, rejected (turns with role, content)",
        matches=lambda row: (
            is_turns(row.get("prompt")) or (is_turns(row.get("messages")) and is_turns(row.get("chosen")))
        ),
        compare=_trl_compare,
        dialog=_trl_prompt,
        place=lambda row: place_in(_trl_column(row)),
        columns=_SHARED | {"prompt", "messages"},
        reads=_trl_reads,
    ),
    Form(
        name="trl_implicit",
        wants="chosen, rejected (whole conversations, turns with role, content)",
        matches=lambda row: (
            is_turns(row.get("chosen")) and row.keys().isdisjoint({"prompt", "messages", "instruction"})
        ),
        compare=_implicit_compare,
        dialog=_implicit_dialog,
        place=lambda row: place_in("chosen"),
        columns=_SHARED,
    ),
    Form(
        name="hh_transcript",
        wants="chosen, rejected (texts of `Human:` and `Assistant:` turns)",
        matches=_is_hh,
        compare=_hh_compare,
        dialog=_hh_dialog,
        place=lambda row: place_at("prompt" if row.get("prompt") is not None else "chosen"),
        columns=_SHARED | {"prompt"},
    ),
    Form(
        name="canonical",
        wants="prompt (or messages), chosen, rejected",
        matches=_is_canonical,
        compare=_one_pair(_canonical_dialog),
        dialog=_canonical_dialog,
        place=_canonical_place,
        columns=_CANONICAL,
        reads=_canonical_reads,
    ),
    Form(
        name="alpaca",
        wants="instruction, input, output (two texts, or chosen and rejected)",
        matches=lambda row: "instruction" in row,
        compare=_alpaca_compare,
        dialog=alpaca_dialog,
        place=alpaca_place,
        columns=_SHARED | _ALPACA,
        reads=_alpaca_reads,
    ),
    Form(
        name="text_pair",
        wants="chosen, rejected (texts that begin alike)",
        matches=_is_text_pair,
        compare=_text_compare,
        dialog=lambda row: _text_compare(row).dialog,
        place=lambda row: place_at("chosen"),
        columns=_SHARED,
        weak=True,
    ),
    Form(
        name="best_first",
        wants="prompt, completions (or responses), best first; never guessed, only by name",
        matches=lambda row: False,
        compare=_ranked_compare,
        dialog=asked_dialog,
        place=asked_place,
        columns=_RANKED,
        reads=_ranked_reads,
    ),
)
