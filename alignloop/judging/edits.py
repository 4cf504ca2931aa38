"""The third response of a comparison, an improved text of the chosen one: by people, or by the judge that compared
(The Llama 3 Herd of Models, section 4.2.1: edited > chosen > rejected).

comparisons with a winner --edit prompt: both answers, the judge's reason--> texts --what improves nothing--> dropped
                                                                             +------------------------------> edits
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignloop.chat.reasoning import answer_of, has_answer, join_reasoning, split_reasoning
from alignloop.errors import UserError
from alignloop.judging.verdicts import Judge, JudgeTexts, PairToCompare, PairToEdit, Verdict

Fault = Literal["unreadable", "empty", "repeated"]
FAULTS: tuple[Fault, ...] = ("unreadable", "empty", "repeated")
"""Why an edit is dropped; `repeated`: it is the text of one of the two answers again."""


@dataclass(frozen=True)
class Edit:
    """What a judge made of a chosen answer.

    Attributes:
        text: the improved answer; None where it is dropped, and `reason` says why.
        answers: every text the judge wrote about it, in order.
    """

    text: str | None
    answers: tuple[str, ...]
    fault: Fault | None = None
    reason: str | None = None


def edits_of(compared: Sequence[PairToCompare], verdicts: Mapping[str, Verdict], *, editor: Judge) -> dict[str, Edit]:
    """By comparison, the edit of each that has a winner.

    Raises:
        UserError: not one answer can be read.
        EngineError: the engine or the endpoint failed; what is finished is kept.
    """
    asked = [
        PairToEdit(pair, verdict.winner, verdict.reason)
        for pair in compared
        if (verdict := verdicts[pair.id]).winner == "first" or verdict.winner == "second"
    ]
    edits = {item.pair.id: _edit(item, answer) for item, answer in zip(asked, editor.edit(asked), strict=True)}
    if edits and all(edit.fault == "unreadable" for edit in edits.values()):
        first = next(iter(edits.values()))
        raise UserError(
            f"judge {editor.name}: none of its {len(edits)} edits can be read. The first: {first.reason}\n"
            "Raise judge.max_tokens (an edit is as long as an answer), take another judge.model or collect.edits, or "
            "leave collect.edits out"
        )
    return edits


def _edit(item: PairToEdit, answer: JudgeTexts) -> Edit:
    if answer.texts is None:
        return Edit(None, answer.answers, "unreadable", answer.reason)
    (text,) = answer.texts
    if not has_answer(text):
        return Edit(None, answer.answers, "empty", "it holds no answer")
    for place, completion in (("first", item.pair.first), ("second", item.pair.second)):
        if text.strip() == completion.strip():
            which = "chosen" if place == item.better else "rejected"
            return Edit(None, answer.answers, "repeated", f"it is the {which} answer again")
    return Edit(text, answer.answers)


def edit_counts(edits: Mapping[str, Edit]) -> dict[str, int]:
    """`edited`, and how many are dropped by each fault: with them, all that were asked for."""
    faults = Counter(edit.fault for edit in edits.values())
    return {"edited": faults[None], **{f"edits_{fault}": faults[fault] for fault in FAULTS}}


def edited_completion(chosen: str, edited: str | None) -> str | None:
    """An edited answer as a whole completion, the chosen one's reasoning kept; None where nothing was changed.

    A template that asks for a thought trains no answer without one.
    """
    if edited is None or edited.strip() in (chosen.strip(), answer_of(chosen).strip()):
        return None
    if split_reasoning(edited)[0] is not None:
        return edited  # whoever wrote it wrote a thought, too
    return join_reasoning(split_reasoning(chosen)[0], edited)
