"""People as annotators: pairs of candidates out as questions, answers in, checked line by line.

pairs --questions--> ToAnnotateRow, a file --a person--> AnnotatedRow, a file --annotations_of--> preferences, verdicts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignloop.chat.reasoning import answer_of, has_answer
from alignloop.data.jsonl import numbered_lines
from alignloop.data.parsing import parse_row
from alignloop.data.problems import BadRow, check_nested, check_text, plain_problems, shown
from alignloop.errors import DataError, did_you_mean
from alignloop.judging.annotate import Annotations, Pair, best_first, preference
from alignloop.judging.edits import edited_completion
from alignloop.records import (
    STRENGTHS,
    AnnotatedRow,
    PreferenceRow,
    ToAnnotateRow,
    VerdictRow,
    Winner,
    question_id,
)

ANSWER_COLUMNS = {
    "id": "the pair's",
    "choice": "first, second or tie",
    "strength": f"may be left out: {', '.join(STRENGTHS[:2])},",
    "": ", ".join(STRENGTHS[2:]),
    "edited": "may be left out: an improved text of the chosen one",
}
"""Column -> what people write in it; an empty name goes on with the line before."""
CHOICES = ("first", "second", "tie")
_OWN = tuple(AnnotatedRow.model_fields)
_SHOWN_PROBLEMS = 8


def questions(pairs: Sequence[Pair]) -> list[ToAnnotateRow]:
    """The questions for people; nothing in them tells the two candidates apart but their answers.

    As for a judge, the reasoning before them is left out: what is chosen trains whole.
    """
    return [
        ToAnnotateRow(
            id=question_id(first.id, second.id),
            messages=prompt.messages,
            first=answer_of(first.completion),
            second=answer_of(second.completion),
        )
        for prompt, first, second in pairs
    ]


def read_answers(path: Path, *, asked: Sequence[ToAnnotateRow], where: str | None = None) -> dict[str, AnnotatedRow]:
    """Pair id -> its answer; rows without a choice are pairs not answered yet.

    `asked` are the questions the file answers; `where` is its name in messages, by default its path.

    Raises:
        DataError: lines that are no answers, with line, column, value and what to do; all in one go.
    """
    name = where or str(path)
    known = {row.id: row for row in asked}
    answers: dict[str, AnnotatedRow] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, offset, line in numbered_lines(path, name):
        try:
            row = _checked(_answer(parse_row(line, line=None, offset=offset)), known)
            if row.id in lines and answers.get(row.id) != row:
                raise BadRow("id", f"{row.id} has another answer in line {lines[row.id]}: keep one of the two")
        except BadRow as bad:
            problems.append(f"line {number}" + (f", field {bad.field}: " if bad.field else ": ") + bad.reason)
            continue
        lines.setdefault(row.id, number)
        answers[row.id] = row
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS:,} more"] if len(problems) > _SHOWN_PROBLEMS else []
        listed = "\n".join(f"  - {problem}" for problem in [*problems[:_SHOWN_PROBLEMS], *more])
        what = "1 line is no answer" if len(problems) == 1 else f"{len(problems):,} lines are no answers"
        raise DataError(f"{name}: {what}:\n{listed}\nMend the file and run the same command again")
    return {row_id: row for row_id, row in answers.items() if row.choice is not None}


def answered_ids(path: Path) -> set[str]:
    """Ids that have a choice, of a file that may still be in the making: what cannot be read counts for nothing."""
    found = set()
    for _, offset, line in numbered_lines(path):
        try:
            row = parse_row(line, line=None, offset=offset)
        except BadRow:
            continue
        if isinstance(row, dict) and row.get("choice") not in (None, "") and type(row.get("id")) is str:
            found.add(row["id"])
    return found


def annotations_of(pairs: Sequence[Pair], answers: Mapping[str, AnnotatedRow]) -> Annotations:
    """Preferences and verdicts of people's answers: `asked` == `annotated` + `ties` + `unanswered`."""
    rows: list[PreferenceRow] = []
    verdicts: list[VerdictRow] = []
    for pair in pairs:
        _, first, second = pair
        pair_id = question_id(first.id, second.id)
        answer = answers.get(pair_id)
        if answer is None or answer.choice is None:
            continue
        if answer.choice != "tie":
            rows.append(_preference(pair, answer, answer.choice))
        verdicts.append(
            VerdictRow(
                id=pair_id,
                first=first.id,
                second=second.id,
                winner=answer.choice,
                strength=answer.strength,
                reason="",
                answers=[],
                judge=answer.annotator,
            )
        )
    counts = {
        "asked": len(pairs),
        "annotated": len(rows),
        "ties": len(verdicts) - len(rows),
        "unanswered": len(pairs) - len(verdicts),
    }
    return Annotations(rows, verdicts, counts, {"ties_share": counts["ties"] / len(verdicts)} if verdicts else {})


def _preference(pair: Pair, answer: AnnotatedRow, winner: Winner) -> PreferenceRow:
    row = preference(
        *best_first(pair, winner), strength=answer.strength, annotator=answer.annotator, compared_by="people"
    )
    more = {"annotation": dict(answer.meta)} if answer.meta else {}
    return row.model_copy(update={"edited": edited_completion(row.chosen, answer.edited), "meta": {**row.meta, **more}})


def _answer(value: object) -> AnnotatedRow:
    if not isinstance(value, dict):
        raise BadRow(None, f"must be a JSON object, found {shown(value)}: write one object a line")
    values = {key: item for key, item in value.items() if key in _OWN and key != "meta" and item not in (None, "")}
    if "id" not in values:
        raise BadRow("id", "is missing: repeat the id of the pair")
    values["id"] = check_text(values["id"], "id")
    for key, allowed in (("choice", CHOICES), ("strength", STRENGTHS)):
        if key in values:
            values[key] = _one_of(values[key], allowed, key)
    for key in ("edited", "annotator", "first", "second"):
        if key in values:
            values[key] = check_text(values[key], key)
    if not has_answer(values.get("edited", "x")):
        raise BadRow("edited", "holds no answer, only spaces or reasoning: write the improved text, or leave it out")
    values["meta"] = _free_columns(value)
    try:
        return AnnotatedRow.model_validate(values)
    except ValidationError as error:
        raise BadRow(*plain_problems(error)[0]) from None


def _one_of(value: object, allowed: Sequence[str], field: str) -> str:
    text = check_text(value, field).strip().lower().replace(" ", "_").replace("-", "_")
    if text not in allowed:
        raise BadRow(field, f"{value!r} is unknown; allowed: {', '.join(allowed)}")
    return text


def _free_columns(value: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that are not ours; one that is nearly ours is taken for a slip, not for free."""
    meta = value.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise BadRow("meta", f"must be an object, found {shown(meta)}")
    free = {key: item for key, item in value.items() if key not in _OWN}
    for key in free:
        if near := did_you_mean(
            key.lower(), ("id", "choice", "strength", "edited", "annotator"), cutoff=0.8, quote="'"
        ):
            raise BadRow(key, f"unknown column: {near}")
    free |= meta or {}
    for key, item in free.items():
        check_text(key, "meta")
        check_nested(item, key)
    return free


def _checked(row: AnnotatedRow, asked: Mapping[str, ToAnnotateRow]) -> AnnotatedRow:
    if row.id not in asked:
        near = did_you_mean(row.id, asked, cutoff=0.8)
        hint = f"; {near}" if near else f", such as {next(iter(asked), '(none was asked)')}"
        raise BadRow("id", f"{row.id!r} is not a pair of this round{hint}")
    question = asked[row.id]
    for field in ("messages", "first", "second"):
        repeated = getattr(row, field)
        if repeated is not None and repeated != getattr(question, field):
            raise BadRow(field, f"is not what was asked under {row.id}: is this the answer to an older file?")
    if row.choice is None and (row.strength or row.edited):
        raise BadRow("choice", f"is missing, but there is {'a strength' if row.strength else 'an edited text'}")
    if row.choice == "tie" and row.strength is not None:
        reason = f"{row.strength!r} says that one is better, but choice is tie: leave one of the two out"
        raise BadRow("strength", reason)
    if row.choice == "tie" and row.edited is not None:
        raise BadRow("edited", "improves the chosen one, but choice is tie: choose the one that was edited")
    rejected = question.second if row.choice == "first" else question.first
    if row.edited is not None and row.edited.strip() == rejected.strip():
        raise BadRow("edited", "is the same text as the rejected one: choose that one, or edit the chosen one")
    return row
